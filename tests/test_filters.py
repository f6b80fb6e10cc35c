"""Filters one by one, and the ledger of the chain they run in."""

from __future__ import annotations

import pytest

from hubkit.errors import RecipeError
from hubkit.filters import FILTERS, Chain, Drop, Dropped, Edit
from hubkit.recipe import Filter
from hubkit.schema import Conversation, Message


def talk(*turns: str, first: str = "user", name: str = "c", **meta: object) -> Conversation:
    """A conversation whose turns alternate, `first` speaking first."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    messages: list[Message] = [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]  # type: ignore[typeddict-item]
    return Conversation(name, messages, "test", dict(meta))


def judge(name: str, conversation: Conversation, **args: object) -> object:
    return FILTERS[name](**args)(conversation)


def reason(name: str, conversation: Conversation, **args: object) -> str | None:
    verdict = judge(name, conversation, **args)
    return verdict.reason if isinstance(verdict, Drop) else None


ENGLISH = "Could you tell me how the tides of the sea come about, and why there are two of them every day?"
GERMAN = "Kannst du mir bitte erklären, wie die Gezeiten des Meeres entstehen und warum es zwei am Tag gibt?"


def test_clean_text_takes_export_leftovers_out_and_leaves_people_s_html_alone() -> None:
    answer = '<div class="markdown prose"><p>Hello <b>you</b></p><ol><li>one</li></ol></div>'
    dirty = talk("Read <b>this</b>:\r\n<p>mine</p>\n2 / 2", answer, "a\u200bb\x00", "```pythonCopy code\nx = 1\n```")
    verdict = judge("clean_text", dirty)
    assert isinstance(verdict, Edit)
    texts = [m["content"] for m in verdict.rows[0].messages]
    assert texts == ["Read <b>this</b>:\n<p>mine</p>", "Hello **you**\n\n1. one", "ab", "```python\nx = 1\n```"]
    assert judge("clean_text", talk("fine", "<?php echo 1;")) is None


def test_alternate_roles_says_what_is_wrong_in_the_schema_s_words() -> None:
    assert judge("alternate_roles", talk("a", "b")) is None
    broken = talk("a", "b")
    broken.messages.append({"role": "assistant", "content": "c"})
    assert reason("alternate_roles", broken) == "roles_not_alternating"
    assert reason("alternate_roles", talk("a", " ")) == "empty_turn"
    assert reason("alternate_roles", talk()) == "empty_conversation"


def test_alternate_roles_cuts_a_leading_answer_off_or_keeps_it() -> None:
    continuation = talk("so", "go on", "done", first="assistant", is_start=False)
    verdict = judge("alternate_roles", continuation)
    assert isinstance(verdict, Edit) and [m["content"] for m in verdict.rows[0].messages] == ["go on", "done"]
    assert judge("alternate_roles", continuation, first="any") is None


def test_min_and_max_turns_count_human_turns() -> None:
    three = talk("a", "b", "c", "d", "e")
    assert reason("min_turns", three, human_turns=4) == "too_few_turns"
    assert judge("min_turns", three, human_turns=3) is None
    assert reason("max_turns", three, human_turns=2) == "too_many_turns"


def test_language_looks_at_both_sides_and_lets_translations_pass() -> None:
    assert judge("english", talk(ENGLISH, ENGLISH)) is None
    assert reason("english", talk(GERMAN, ENGLISH)) == "human_side_language"
    assert reason("english", talk(ENGLISH, GERMAN)) == "answers_language"
    assert judge("english", talk("Translate this text to German, please: " + ENGLISH, GERMAN)) is None
    assert judge("language", talk(GERMAN, GERMAN), languages=["de"]) is None
    assert judge("english", talk("hm", "ok")) is None, "too short to tell is no reason to drop"


def test_basic_latin_is_the_published_rule_with_its_exception() -> None:
    assert judge("basic_latin", talk("plain", "text")) is None
    assert reason("basic_latin", talk("plain", "“curly”")) == "not_basic_latin"
    assert judge("basic_latin", talk("translate: été", "summer")) is None
    assert reason("basic_latin", talk("translate: été", "summer"), translations=False) == "not_basic_latin"


def test_provider_mentions_ignores_case_and_takes_other_words() -> None:
    assert reason("provider_mentions", talk("hi", "I am ChatGPT.")) == "provider_mention"
    assert reason("provider_mentions", talk("hi", "I am Bard"), words=["bard"]) == "provider_mention"
    assert judge("provider_mentions", talk("hi", "there")) is None


def test_rollout_filters_empty_repeated_and_cut_off_turns() -> None:
    assert reason("empty_turn", talk("a", "\n")) == "empty_turn"
    assert reason("empty_turn", talk()) == "empty_conversation"
    assert reason("repeated_turn", talk("Why?", "x", "why", "y")) == "repeated_user_turn"
    assert judge("repeated_turn", talk("Why?", "x", "why", "y"), seat="assistant") is None
    assert judge("repeated_turn", talk("go on", "x", "Go on!", "y"), min_words=3) is None
    assert reason("repeated_turn", talk("a", "same", "b", "same")) == "repeated_assistant_turn"
    cut = talk("a", "b", "c", "d", finish_reasons=[None, "stop", "stop", "length"])
    assert reason("cut_off_turn", cut) == "cut_off_assistant_turn"
    assert judge("cut_off_turn", cut, seat="user") is None
    unjudged = judge("cut_off_turn", talk("a", "b"))
    assert isinstance(unjudged, Edit) and unjudged.note == "no_finish_reasons"


def test_whole_sentences_cuts_only_what_ran_into_its_limit() -> None:
    finish = [None, "length", "stop", "length"]
    said = ("Why?", "It is so. First:\n1. The moon pu", "and then", "Yes! See:\n```py\nx = 1. \nand th")
    verdict = judge("whole_sentences", talk(*said, finish_reasons=finish))
    assert isinstance(verdict, Edit)
    assert [m["content"] for m in verdict.rows[0].messages] == ["Why?", "It is so.", "and then", "Yes!"]
    assert reason("whole_sentences", talk("a", "no end", finish_reasons=[None, "length"])) == "cut_off_assistant_turn"
    assert judge("whole_sentences", talk("a", "no end", finish_reasons=[None, "stop"])) is None


def test_exact_duplicates_keep_the_first() -> None:
    same = FILTERS["exact_duplicates"]()
    assert [same(talk("a", "b")), same(talk("a ", "b")), same(talk("a", "b", "c"))] == [
        None,
        Drop("exact_duplicate"),
        None,
    ]
    assert same(talk("ab", "")) is None, "where a turn ends counts"


def test_the_ledger_balances_at_every_step_and_keeps_examples() -> None:
    chain = Chain([Filter(name="empty_turn"), Filter(name="min_turns", args={"human_turns": 2})])
    rows = [talk("a", "b", "c", name=f"k{i}") for i in range(3)]
    rows += [talk("a", name=f"short{i}") for i in range(8)] + [talk("", name="blank")]
    results = [result for row in rows for result in chain(row)]
    assert sum(not isinstance(r, Dropped) for r in results) == 3
    for step in chain.steps:
        assert step.rows_in + step.added == step.rows_out + sum(t.count for t in step.dropped.values())
    tally = chain.steps[1].dropped["too_few_turns"]
    assert tally.count == 8 and tally.examples == [f"short{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("filter_", "says"),
    [
        (Filter(name="min_turn"), "did you mean 'min_turns'"),
        (Filter(name="min_turns", args={"turns": 2}), "has no argument 'turns'; it takes human_turns"),
        (Filter(name="empty_turn", args={"x": 1}), "takes no arguments"),
    ],
)
def test_a_wrong_filter_is_an_error_before_anything_runs(filter_: Filter, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Chain([filter_])
