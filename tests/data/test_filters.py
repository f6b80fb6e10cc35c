"""Filters one by one, and the ledger of the chain they run in."""

from __future__ import annotations

import inspect
import json
from itertools import count, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import SHARED_DATA
from support.real_templates import marked_templates

from hubkit.conversation import Conversation, Message
from hubkit.data.curation import curate
from hubkit.data.filters import FILTERS, Chain, Context, Drop, Dropped, Edit
from hubkit.errors import PublishError, RecipeError, SourceError
from hubkit.hub import gate
from hubkit.recipe import Curate, Filter


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


ENGLISH = (
    "Could you tell me how the tides of the sea come about, "
    "and why there are two of them every day?"
)
GERMAN = (
    "Kannst du mir bitte erklären, wie die Gezeiten des Meeres entstehen und "
    "warum es zwei am Tag gibt?"
)


def test_clean_text_takes_export_leftovers_out_and_leaves_people_s_html_alone() -> None:
    answer = '<div class="markdown prose"><p>Hello <b>you</b></p><ol><li>one</li></ol></div>'
    dirty = talk(
        "Read <b>this</b>:\r\n<p>mine</p>\n2 / 2",
        answer,
        "a\u200bb\x00",
        "```pythonCopy code\nx = 1\n```",
    )
    verdict = judge("clean_text", dirty)
    assert isinstance(verdict, Edit)
    texts = [m["content"] for m in verdict.rows[0].messages]
    assert texts == [
        "Read <b>this</b>:\n<p>mine</p>",
        "Hello **you**\n\n1. one",
        "ab",
        "```python\nx = 1\n```",
    ]
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
    assert isinstance(verdict, Edit) and [m["content"] for m in verdict.rows[0].messages] == [
        "go on",
        "done",
    ]
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
    assert (
        judge("english", talk("Translate this text to German, please: " + ENGLISH, GERMAN)) is None
    )
    assert judge("language", talk(GERMAN, GERMAN), languages=["de"]) is None
    assert judge("english", talk("hm", "ok")) is None, "too short to tell is no reason to drop"


def test_basic_latin_is_the_published_rule_with_its_exception() -> None:
    assert judge("basic_latin", talk("plain", "text")) is None
    assert reason("basic_latin", talk("plain", "“curly”")) == "not_basic_latin"
    assert judge("basic_latin", talk("translate: été", "summer")) is None
    assert (
        reason("basic_latin", talk("translate: été", "summer"), translations=False)
        == "not_basic_latin"
    )


def test_provider_mentions_ignores_case_and_takes_other_words() -> None:
    assert reason("provider_mentions", talk("hi", "I am ChatGPT.")) == "provider_mention"
    assert (
        reason("provider_mentions", talk("hi", "I am Bard"), words=["bard"]) == "provider_mention"
    )
    assert judge("provider_mentions", talk("hi", "there")) is None


def test_rollout_filters_empty_repeated_and_cut_off_turns() -> None:
    assert reason("empty_turn", talk("a", "\n")) == "empty_turn"
    assert reason("empty_turn", talk()) == "empty_conversation"
    assert reason("repeated_turn", talk("Why?", "x", "why", "y")) == "repeated_user_turn"
    assert judge("repeated_turn", talk("Why?", "x", "why", "y"), seat="assistant") is None
    assert judge("repeated_turn", talk("go on", "x", "Go on!", "y"), min_words=3) is None
    assert reason("repeated_turn", talk("a", "same", "b", "same")) == "repeated_assistant_turn"
    assert judge("repeated_turn", talk("now here", "x", "nowhere", "y", "no where", "z")) is None
    assert (
        reason("repeated_turn", talk("a b", "x", "ab", "y", "A, b!", "z")) == "repeated_user_turn"
    )
    assert reason("repeated_turn", talk("你好，世界", "x", "你好世界", "y")) == "repeated_user_turn"
    assert judge("repeated_turn", talk("...", "x", "...", "y")) is None
    assert reason("repeated_turn", talk("!", "x", "!", "y"), min_words=0) == "repeated_user_turn"
    cut = talk("a", "b", "c", "d", finish_reasons=[None, "stop", "stop", "length"])
    assert reason("cut_off_turn", cut) == "cut_off_assistant_turn"
    assert judge("cut_off_turn", cut, seat="user") is None
    unjudged = judge("cut_off_turn", talk("a", "b"))
    assert isinstance(unjudged, Edit) and unjudged.note == "no_finish_reasons"


def test_whole_sentences_cuts_only_what_ran_into_its_limit() -> None:
    finish = [None, "length", "stop", "length"]
    said = (
        "Why?",
        "It is so. First:\n1. The moon pu",
        "and then",
        "Yes! See:\n```py\nx = 1. \nand th",
    )
    verdict = judge("whole_sentences", talk(*said, finish_reasons=finish))
    assert isinstance(verdict, Edit)
    assert [m["content"] for m in verdict.rows[0].messages] == [
        "Why?",
        "It is so.",
        "and then",
        "Yes!",
    ]
    assert (
        reason("whole_sentences", talk("a", "no end", finish_reasons=[None, "length"]))
        == "cut_off_assistant_turn"
    )
    assert judge("whole_sentences", talk("a", "no end", finish_reasons=[None, "stop"])) is None


def test_exact_duplicates_keep_the_first() -> None:
    same = FILTERS["exact_duplicates"]()
    assert [same(talk("a", "b")), same(talk("a ", "b")), same(talk("a", "b", "c"))] == [
        None,
        Drop("exact_duplicate"),
        None,
    ]
    assert same(talk("ab", "")) is None, "where a turn ends counts"


def test_exact_duplicates_compare_tool_calls_results_and_thinking() -> None:
    same = FILTERS["exact_duplicates"]()

    def using(**fields: object) -> Conversation:
        row = talk("a", "b")
        row.messages[1].update(fields)  # type: ignore[typeddict-item]
        return row

    ids = count()  # drawn anew for each call, as servers do

    def call(arguments: str) -> list[dict[str, object]]:
        return [
            {
                "id": f"call_{next(ids)}",
                "type": "function",
                "function": {"name": "find", "arguments": arguments},
            }
        ]

    variants: list[dict[str, object]] = [
        {},
        {"thinking": "x"},
        {"thinking": "y"},
        {"tool_calls": call('{"q": 1}')},
        {"tool_calls": call('{"q": 2}')},
        {"name": "x"},
    ]
    assert [same(using(**fields)) for fields in variants] == [None] * len(variants)
    variants[3] = {"tool_calls": call('{"q": 1}')}
    again = [same(using(**fields)) for fields in variants]
    assert again == [Drop("exact_duplicate")] * len(variants)
    for absent in ({"thinking": None}, {"tool_calls": []}, {"train": False}):
        assert same(using(**absent)) == Drop("exact_duplicate"), absent


def test_exact_duplicates_keep_the_key_of_plain_conversations() -> None:
    key = FILTERS["exact_duplicates"]().key(talk("a", "b"))  # type: ignore[attr-defined]
    assert key.hex() == "af5578d2b2b75316f393230cdf9b4cc0"


def test_the_ledger_balances_at_every_step_and_keeps_examples() -> None:
    chain = Chain([Filter(name="empty_turn"), Filter(name="min_turns", args={"human_turns": 2})])
    rows = [talk("a", "b", "c", name=f"k{i}") for i in range(3)]
    rows += [talk("a", name=f"short{i}") for i in range(8)] + [talk("", name="blank")]
    results = [result for row in rows for result in chain(row)]
    assert sum(not isinstance(r, Dropped) for r in results) == 3
    for step in chain.steps:
        assert step.rows_in + step.added == step.rows_out + sum(
            t.count for t in step.dropped.values()
        )
    tally = chain.steps[1].dropped["too_few_turns"]
    assert tally.count == 8 and tally.examples == [f"short{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("filter_", "says"),
    [
        (Filter(name="min_turn"), "did you mean 'min_turns'"),
        (
            Filter(name="min_turns", args={"turns": 2}),
            "has no argument 'turns'; it takes human_turns",
        ),
        (Filter(name="empty_turn", args={"x": 1}), "takes no arguments"),
    ],
)
def test_a_wrong_filter_is_an_error_before_anything_runs(filter_: Filter, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Chain([filter_])


def test_near_duplicates_go_by_runs_of_words() -> None:
    story = " ".join(f"word{i} follows word{i * 7 % 50}" for i in range(200))
    judge_one = FILTERS["near_duplicates"]()
    assert judge_one(talk(story, "fine")) is None
    assert judge_one(talk(story.replace("word3 ", "other ").upper(), "fine")) == Drop(
        "near_duplicate"
    )
    assert judge_one(talk(" ".join(reversed(story.split())), "fine")) is None
    assert judge_one(talk("", "")) is None and judge_one(talk("?", "!")) is None, (
        "nothing to compare"
    )
    with pytest.raises(ValueError, match="threshold"):
        FILTERS["near_duplicates"](threshold=1.2)


def test_shingles_are_exact() -> None:
    from hubkit.data.filters.shingles import shingles, words_of

    text = "The quick, brown FOX jumps; the quick brown fox sleeps. Ünder the—moon"
    words = words_of(text)
    by_run = {}
    for i, number in enumerate(shingles(text, 3).tolist()):
        assert by_run.setdefault(tuple(words[i : i + 3]), number) == number
    assert len(set(by_run.values())) == len(by_run) == len(words) - 2 - 2, "two runs come twice"
    assert set(shingles("brown fox jumps", 3).tolist()) < set(by_run.values())
    assert (
        len(
            {
                int(shingles(run, 3)[0])
                for run in ("a b cat", "a b car", "b b cat", "a bb cat", "a b", "ab cat")
            }
        )
        == 6
    )


def test_decontaminate_finds_long_runs_anywhere_and_near_copies_in_one_turn(tmp_path: Path) -> None:
    long = (
        "Compose an engaging travel blog post about a recent trip to Hawaii "
        "highlighting cultural experiences"
    )
    short = "What is the capital of Denmark and why?"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"turns": [long, short]}) + "\n")
    (tmp_path / "plain.txt").write_text("How many legs do nine spiders have\n")
    context = Context(questions={"bench": tmp_path / "bench.jsonl"})
    judge_one = FILTERS["decontaminate"](
        against=["bench", str(tmp_path / "plain.txt")], context=context
    )
    assert judge_one(talk("hi", f"Sure: {long.lower()}!")) == Drop("contains_bench")
    assert judge_one(talk("what is the capital of Denmark, and why?!", "x")) == Drop(
        "contains_bench"
    )
    assert judge_one(talk("How many legs do nine spiders have?", "72")) == Drop("contains_plain")
    assert judge_one(talk("What is the capital of Sweden and why?", "x")) is None
    assert judge_one(talk("", "")) is None
    with pytest.raises(RecipeError, match="'gone' names no known question file"):
        FILTERS["decontaminate"](against=["gone"], context=context)
    (tmp_path / "empty.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(SourceError, match="holds no questions"):
        FILTERS["decontaminate"](against=[str(tmp_path / "empty.jsonl")], context=context)


def test_decontaminate_on_the_benchmarks_themselves() -> None:
    folder = SHARED_DATA / "fastchat"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    files = {name: folder / f"{name}__question.jsonl" for name in ("mt_bench", "vicuna_bench")}
    judge_one = FILTERS["decontaminate"](against=list(files), context=Context(questions=files))
    for name, path in files.items():
        for line in path.read_text().splitlines():
            for turn in json.loads(line)["turns"][:1]:
                assert judge_one(talk(turn, "ok")) is not None, (name, turn)


def test_privacy_filters_mask_or_drop_and_count_by_kind() -> None:
    secret = "gh" + "p_" + "a1B2" * 9
    dirty = talk(f"my key is {secret}", "write jane.doe@university.edu")
    verdict = judge("secrets", dirty)
    assert isinstance(verdict, Edit) and verdict.note == ("masked_github_token",)
    assert verdict.rows[0].messages[0]["content"] == "my key is [GITHUB_TOKEN]"
    assert reason("secrets", dirty, action="drop") == "secret_github_token"
    verdict = judge("personal_data", dirty)
    assert isinstance(verdict, Edit) and verdict.rows[0].messages[1]["content"] == "write [EMAIL]"
    assert judge("personal_data", talk("a", "b")) is None
    with pytest.raises(RecipeError, match=r"action .*mask.* or .*drop"):
        Chain([Filter(name="secrets", args={"action": "hide"})])


@pytest.mark.parametrize(
    ("turn", "role", "why"),
    [
        ("Certainly! Here are five ideas", "user", "user_speaks_as_assistant"),
        ("You're welcome!", "user", "user_speaks_as_assistant"),
        ("As an AI language model I cannot", "user", "user_speaks_as_assistant"),
        ("Right. I’m here to help with that.", "user", "user_speaks_as_assistant"),
        ("Well, As An AI assistant it is hard", "user", "user_speaks_as_assistant"),
        ("But I am an AI language model.", "user", "user_speaks_as_assistant"),
        ("Good. Let me know if you need any more.", "user", "user_speaks_as_assistant"),
        ("Fine, feel free to ask if you have any.", "user", "user_speaks_as_assistant"),
        ("So, is there anything else I can help", "user", "user_speaks_as_assistant"),
        ("Tell me how else I can assist", "user", "user_speaks_as_assistant"),
        ("Nice. User: and then?", "user", None),
        ("ok\nAssistant: yes", "user", "speaker_label"),
        ("It works.\nUser: thanks", "assistant", "speaker_label"),
        ("```yaml\nUser: x\n```", "assistant", None),
        ("and<|im_end|>", "user", "special_token"),
        ("Certainly! Here are five ideas", "assistant", None),
        ("tides come from the pull of the moon", "user", "user_echoes"),
        ("Why are there two tides?", "user", None),
    ],
)
def test_role_leaks(turn: str, role: str, why: str | None) -> None:
    said = ["Sure, what makes the tides?", "Tides come from the pull of the moon."]
    said += [turn] if role == "user" else ["and?", turn]
    assert reason("role_leak", talk(*said)) == why


@pytest.mark.parametrize(("mark", "workers"), [("<｜{}｜>", 0), ("<@{}>", 2), ("[{}_7]", 0)])
def test_marks_of_the_seats_own_templates_are_leaks(
    tmp_path: Path, mark: str, workers: int
) -> None:
    marks = marked_templates(mark).turn_marks
    leaking = talk("How?", "So.", f"And {mark.format('assistant')} then", "Fine.", name="leaks")
    raw = tmp_path / "raw.parquet"
    pq.write_table(
        pa.Table.from_pylist(
            [{"id": c.id, "messages": c.messages} for c in (leaking, talk("How?", "So.", "And?"))]
        ),
        raw,
    )
    block = Curate(filters=[Filter(name="role_leak")], measure=None)
    assert curate(block, [raw], tmp_path / "unknown", workers=0).kept == 2
    known = Context(turn_marks=marks)
    report = curate(block, [raw], tmp_path / "known", context=known, workers=workers)
    assert report.kept == 1
    assert reason("role_leak", leaking, marks=list(marks)) == "special_token"


def test_refusals_by_share() -> None:
    half = talk("a", "I'm sorry, but I can't help with that.", "b", "Paris.")
    assert reason("refusals", half) == "refusal"
    assert judge("refusals", half, max_share=0.5) is None
    assert judge("refusals", talk("a", "I am sorry to hear that. Try tea.")) is None


def test_leaves_topic_wants_one_turn_that_moves_on() -> None:
    opening = (
        "How do volcanoes erupt through mountains?",
        "Magma rises through the crust and the mountain opens.",
    )
    stays = talk(*opening, "Why does magma rise through crust?", "Heat.", "go on", "More.")
    moves = talk(*opening, "Which recipe suits a rainy sunday evening?", "Soup.")
    assert reason("leaves_topic", stays) == "never_leaves_topic"
    assert judge("leaves_topic", moves) is None


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that gives one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def words(number: int, mark: str) -> str:
    return " ".join([mark] * number)


def cut(conversation: Conversation, tokenizer: Path, **args: object) -> list[list[str]]:
    verdict = FILTERS["segments"](**args, per_turn_tokens=0, context=Context(tokenizer=tokenizer))(
        conversation
    )
    rows = verdict.rows if isinstance(verdict, Edit) else [conversation]
    return [[m["content"].split()[0] for m in row.messages] for row in rows]


def test_segments_go_on_from_the_latest_answer(word_tokenizer: Path) -> None:
    tens = talk(*(words(10, f"t{i}") for i in range(6)))
    assert cut(tens, word_tokenizer, max_tokens=60) == [[f"t{i}" for i in range(6)]]
    # a human turn overflows: closed before it, next begins with the answer before it
    assert cut(tens, word_tokenizer, max_tokens=45) == [
        ["t0", "t1", "t2", "t3"],
        ["t3", "t4", "t5"],
    ]
    # an answer overflows: it stays, and the next begins with it
    assert cut(tens, word_tokenizer, max_tokens=35) == [
        ["t0", "t1", "t2", "t3"],
        ["t3", "t4", "t5"],
    ]
    assert cut(talk("a", "b", "c"), word_tokenizer, max_tokens=60) == [["a", "b"]], (
        "an unanswered turn is left out"
    )


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 60))
def test_segments_lose_no_answered_turn(word_tokenizer: Path, sizes: list[int], limit: int) -> None:
    conversation = talk(*(words(size, f"t{i}") for i, size in enumerate(sizes)))
    if len(sizes) < 2:
        return
    pieces = cut(conversation, word_tokenizer, max_tokens=limit)
    seen = list(dict.fromkeys(mark for piece in pieces for mark in piece))
    assert seen == [f"t{i}" for i in range(len(sizes) // 2 * 2)]
    assert all(one[-1] == two[0] for one, two in pairwise(pieces))


def test_max_tokens_keeps_whole_turns(word_tokenizer: Path) -> None:
    make = FILTERS["max_tokens"]
    context = Context(tokenizer=word_tokenizer / "tokenizer.json")
    verdict = make(tokens=25, per_turn_tokens=0, context=context)(
        talk(*(words(10, f"t{i}") for i in range(4)))
    )
    assert isinstance(verdict, Edit) and len(verdict.rows[0].messages) == 2
    assert make(tokens=5, per_turn_tokens=0, context=context)(talk(words(10, "x"), "y")) == Drop(
        "too_long"
    )
    with pytest.raises(RecipeError, match="needs a tokenizer"):
        make(tokens=5, context=Context())
    with pytest.raises(RecipeError, match="cannot be read as a tokenizer"):
        make(tokens=5, context=Context(tokenizer=Path("/nowhere")))


@pytest.mark.parametrize("value", [None, float("nan"), "x", -1, [], {}, 10**30])
def test_an_argument_of_the_wrong_type_is_told_before_any_row_is_read(value: object) -> None:
    told = 0
    for name, factory in FILTERS.items():
        for argument, parameter in inspect.signature(factory).parameters.items():
            needs = {"languages": ["en"]} if name == "language" else {}
            if parameter.annotation not in ("int", "float"):
                continue
            try:
                chain = Chain([Filter(name=name, args={**needs, argument: value})], Context())
            except RecipeError:
                told += 1
            else:
                list(chain(talk("hello there", "Hello.", "how are you", "Fine.")))
    assert told > 10 or value == 10**30


SENTENCES = {
    "en": "When the kitchen is cold in winter, how should I keep my sourdough starter alive so "
    "that it rises every single day before I bake two loaves for the neighbours number {}?",
    "zh": "冬天厨房很冷的时候，我应该怎样保持天然酵母的活性，让它每天都能正常发起来，"
    "好在早上为邻居烤两个面包，第{}个问题？",
    "ja": "冬に台所がとても寒いとき、天然酵母を元気に保って毎日きちんと膨らませ、"
    "朝に近所の人のためにパンを二つ焼くにはどうすればよいですか、{}番目の質問です。",
    "th": "เมื่อห้องครัวเย็นมากในฤดูหนาวฉันควรดูแลยีสต์ธรรมชาติอย่างไรให้ขึ้นฟูทุกวัน"
    "ก่อนอบขนมปังสองก้อนให้เพื่อนบ้านคำถามที่{}",
}


@pytest.mark.parametrize("language", sorted(SENTENCES))
def test_near_duplicates_are_found_in_every_script(language: str) -> None:
    chain = Chain([Filter(name="near_duplicates", args={"threshold": 0.6})])
    text = SENTENCES[language].format(1) + SENTENCES[language].format(2)
    assert not isinstance(chain(talk(text))[0], Dropped)
    found = 0
    for number in range(20):
        edited = text.replace("1", str(number + 3))
        found += isinstance(chain(talk(edited, name=f"c{number}"))[0], Dropped)
    assert found == 20
    other = {"en": "zh", "zh": "ja", "ja": "zh", "th": "en"}[language]
    assert not isinstance(chain(talk(SENTENCES[other].format(1) * 2, name="o"))[0], Dropped)


@pytest.mark.parametrize("language", sorted(SENTENCES))
def test_questions_are_found_in_every_script(language: str, tmp_path: Path) -> None:
    question = SENTENCES[language].format(7)
    (tmp_path / "questions.txt").write_text(question + "\n", "utf-8")
    context = Context(questions={"bench": tmp_path / "questions.txt"})
    chain = Chain([Filter(name="decontaminate", args={})], context)
    (dropped,) = chain(talk("Hi! " + question + " Thanks."))
    assert isinstance(dropped, Dropped) and dropped.reason == "contains_bench"
    (kept,) = chain(talk(SENTENCES["en" if language != "en" else "zh"].format(1)))
    assert not isinstance(kept, Dropped)


@pytest.mark.parametrize(
    "text",
    ["ok thanks", "go on", "Continue", "No.", "si", "Salsa?", "merci", "Non", "la la la", "no"],
)
def test_few_letters_are_not_decided_by_the_identifier(text: str) -> None:
    (kept,) = Chain([Filter(name="english", args={})])(
        talk(text, "Certainly! Here is what you asked for.")
    )
    assert not isinstance(kept, Dropped)


@pytest.mark.parametrize("text", ["谢谢", "спасибо", "ありがとう", "شكرا", "감사합니다"])
def test_few_letters_of_another_script_are_dropped(text: str) -> None:
    (dropped,) = Chain([Filter(name="english", args={})])(
        talk(text, "Certainly! Here is what you asked for.")
    )
    assert isinstance(dropped, Dropped) and dropped.reason == "human_side_language"


def test_any_language_of_the_identifier_may_be_asked_for() -> None:
    chain = Chain([Filter(name="language", args={"languages": ["ja", "th"]})])
    for code in ("ja", "th"):
        assert not isinstance(chain(talk(SENTENCES[code], SENTENCES[code]))[0], Dropped)
    assert isinstance(chain(talk(SENTENCES["zh"], SENTENCES["zh"]))[0], Dropped)


@pytest.mark.parametrize(("name", "meant"), [("english", "'en'"), ("jp", "'ja'"), ("EN", "'en'")])
def test_unknown_languages_are_refused(name: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=f"no language is called '{name}'; did you mean {meant}"):
        Chain([Filter(name="language", args={"languages": [name]})])


def test_sentences_end_in_other_scripts_too() -> None:
    from hubkit.data.filters.turns import to_sentence_end

    assert to_sentence_end("好的。我会做的！然后我") == "好的。我会做的！"
    assert to_sentence_end("はい。「そうです。」それから") == "はい。「そうです。」"


def test_heuristics_say_where_they_do_not_judge() -> None:
    (refused,) = Chain([Filter(name="refusals", args={})])(
        talk("写一首诗", "很抱歉，我不能帮助您。")
    )
    assert isinstance(refused, Dropped)
    chain = Chain([Filter(name="refusals", args={})])
    chain(talk("เขียนบทกวี", "ขอโทษ ฉันทำไม่ได้"))
    assert chain.steps[0].changed["refusals_not_judged"].count == 1
    chain = Chain([Filter(name="leaves_topic", args={})])
    chain(talk("你好吗", "我很好", "今天天气怎么样呢", "很好"))
    assert chain.steps[0].changed["topic_not_judged"].count == 1


def test_what_a_filter_needs_is_declared_where_it_is_written() -> None:
    from hubkit.data.filters import FILTERS, is_stateful, needs, register

    @register(needs={"tokenizer", "questions"}, stateful=True)
    def needy_filter() -> object:
        """Needs everything."""

    try:
        assert needs([Filter(name="needy_filter", args={})]) == {"tokenizer", "questions"}
        assert is_stateful(Filter(name="needy_filter", args={}))
        assert needs(
            [
                Filter(name="segments", args={}),
                Filter(name="english", args={}),
                Filter(name="unknown", args={}),
            ]
        ) == {"tokenizer"}
        with pytest.raises(ValueError, match="a filter may need questions, tokenizer, not a_gpu"):
            register(needs={"a_gpu"})
    finally:
        del FILTERS["needy_filter"]


def test_ids_thinking_tool_calls_and_what_reports_name_are_masked_too() -> None:
    email = "jane.doe@" + "university.edu"
    talked = talk("hello there", "fine", name=f"chat of {email}", title=f"for {email}")
    talked.messages[1]["thinking"] = f"it is {email}"
    call = {"type": "function", "function": {"name": "send", "arguments": {"to": [email]}}}
    talked.messages[1]["tool_calls"] = [call]
    chain = Chain([Filter(name="personal_data")])
    (row,) = chain(talked)
    assert isinstance(row, Conversation) and email not in repr(row)
    assert row.id.startswith("chat of [EMAIL]-") and row.messages[0] == talked.messages[0]
    assert row.messages[1]["tool_calls"][0]["function"]["arguments"] == {"to": ["[EMAIL]"]}
    assert email not in json.dumps([step.to_dict() for step in chain.steps])
    (other,) = chain(talk("hello there", "fine", name="chat of john.roe@" + "university.edu"))
    assert other.id != row.id


SENSITIVE = {
    "personal_data": "jane.doe@" + "university.edu",
    "secrets": "gh" + "p_" + "a1B2c3D4e5F6" * 3,
}
PLACES = ("thinking", "arguments", "name", "tools")


def holding(place: str, value: str) -> Conversation:
    """A conversation with `value` in one field beside the contents."""
    row = talk("hello there", "fine", tools=json.dumps([{"description": value}]))
    if place == "tools":
        return row
    row.meta.clear()
    if place == "arguments":
        arguments = json.dumps({"to": value})
        call = {"type": "function", "function": {"name": "send", "arguments": arguments}}
        row.messages[1]["tool_calls"] = [call]  # type: ignore[list-item]
    else:
        row.messages[1][place] = value  # type: ignore[literal-required]
    return row


@pytest.mark.parametrize("name", SENSITIVE)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("action", ["mask", "drop"])
def test_privacy_filters_look_into_every_field(name: str, place: str, action: str) -> None:
    value = SENSITIVE[name]
    row = holding(place, value)
    assert value in repr(row)
    (result,) = Chain([Filter(name=name, args={"action": action})])(row)
    assert isinstance(result, Dropped) == (action == "drop")
    assert action == "drop" or value not in repr(result)


@pytest.mark.parametrize("name", SENSITIVE)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_the_gate_looks_into_every_field(name: str, place: str, form: str, tmp_path: Path) -> None:
    row = holding(place, SENSITIVE[name])
    values = {"id": row.id, "messages": row.messages, **row.meta}
    path = tmp_path / f"train.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([values]), path)
    else:
        path.write_text(json.dumps(values) + "\n", "utf-8")
    with pytest.raises(PublishError, match=r"email|github token"):
        gate.check("not pushed", {path.name: path})
