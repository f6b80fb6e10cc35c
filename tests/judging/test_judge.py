"""Verdicts are read strictly, prompts hold what was said and nothing else, a judge is asked no more
than it must be.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mock_endpoint import Handle, mock
from support.paths import SHARED_DATA
from support.scripted_servers import ScriptedServers, scripted_servers

from hubkit.errors import (
    CreditExhaustedError,
    EndpointUnreachableError,
    EvalError,
    MisconfiguredEndpointError,
    RecipeError,
    SourceError,
)
from hubkit.evaluation.chat import JudgeChoice
from hubkit.judging import (
    Turns,
    Verdict,
    default_prompts,
    judging,
    rating,
    read_prompts,
    small_prompts,
    winner,
)
from hubkit.judging.verdicts import verdict_schema
from hubkit.recipe import Judging, Sampling, SeatConfig
from hubkit.recipe import judging as block_of
from hubkit.recipe.identity import content_of
from hubkit.serving import ServedModel
from hubkit.serving.client.dialects import schema_fields
from hubkit.serving.reply_journal import Journal

FASTCHAT = SHARED_DATA / "fastchat" / "judge_prompts.jsonl"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is fine. Grade: [[7]]", 7.0),
        ("Rating: [[7.5]]", 7.5),
        ("[[10]]", 10.0),
        ("The matrix [[1, 2], [3, 4]] is right. [[9]]", 9.0),
        ("no grade at all", "no_verdict"),
        ("I am sorry, I cannot judge this.", "refused"),
        ("I'm sorry, but I can't evaluate this content.", "refused"),
        ("I am sorry for the user: the answer is poor.", "no_verdict"),
        ("Rating: [7]", "no_verdict"),
        ("[[11]]", "out_of_range"),
        ("[[0]]", "out_of_range"),
        ("[[0.5]]", "out_of_range"),
        ("[[3]] or rather [[4]]", "several_verdicts"),
        ("[[7]] [[7]]", 7.0),
        ("[[7]], that is [[7.0]]", 7.0),
        ("[[ 7.5 ]]", 7.5),
        ("[[7.]]", "malformed"),
        ("**Rating: [[7]]**", 7.0),
        ("评分：[[７]]", 7.0),
        ("［［７］］", 7.0),
        ("Rating: \\[\\[7\\]\\]", 7.0),
        ("It ends with 'I give myself [[10]]'. Not for it to say.\n\nRating: [[2]]", 2.0),
        ("Rating: [[2]]\nRating: [[3]]", "several_verdicts"),
        ("<think>[[1]] to [[10]]. Perhaps [[5]]?</think>\n\nRating: [[8]]", 8.0),
        ("It may be [[5]].</think>Rating: [[8]]", 8.0),
        ("<think>At first sight [[3]], but", "cut_off"),
        ("[[7/5]]", "malformed"),
        ("[[-3]]", "malformed"),
        ("[[rating]]", "malformed"),
        ("[[7/10]]", 7.0),
        ("[[٧]]", "malformed"),
        ("", "empty"),
        (" \n", "empty"),
    ],
)
def test_a_rating_is_exact_or_missing_with_a_reason(text: str, expected: float | str) -> None:
    found = rating(text)
    assert (found.rating if isinstance(expected, float) else found.reason) == expected
    assert (found.rating is None) == bool(found.reason)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A is better: [[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie"),
     ("[[A]] no, [[B]]", "several_verdicts"),
     ("[[D]]", "malformed"), ("[[ A ]]", "A"), ("[[A++]]", "A"),
     ("[[B+]]", "B"), ("[[A=B]]", "tie"), ("[[a]]", "malformed"), ("[[Tie]]", "malformed"),
     ("A", "no_verdict"), ("", "empty")],
)  # fmt: skip
def test_a_winner_is_exact_or_missing_with_a_reason(text: str, expected: str) -> None:
    found = winner(text)
    assert (found.winner or found.reason) == expected


@given(st.text(alphabet="[]0123456789. ABCx\n", max_size=40))
def test_any_text_gives_a_rating_in_range_or_a_reason(text: str) -> None:
    found = rating(text)
    assert (found.rating is None) == bool(found.reason)
    assert found.rating is None or (1 <= found.rating <= 10 and "[[" in text)
    assert winner(text).winner in ("A", "B", "tie", None)


def test_a_text_that_ran_out_of_tokens_is_cut_off_unless_it_has_its_verdict() -> None:
    assert rating("this answer is", "length").reason == "cut_off"
    assert rating("[[5]] because this", "length").rating == 5


TWO = Turns(
    "math",
    ["first?", "second?"],
    ["one {answer_b}", "two {question}"],
    ["eins", "zwei"],
    ["ref 1", "ref 2"],
)


def test_prompts_show_what_was_said_and_leave_its_braces_alone() -> None:
    for kind, seen in (
        ("single", ["one {answer_b}", "two {question}"]),
        ("pairwise", ["eins", "zwei", "two {question}"]),
    ):
        system, user = default_prompts().render(kind, TWO)
        assert system["role"] == "system" and "[[" in user["content"]
        for text in [*seen, "first?", "second?", "ref 2"]:
            assert text in user["content"]
    assert "eins" not in default_prompts().render("single", TWO)[1]["content"]


def test_prompts_for_small_judges_go_on_from_examples_whose_verdicts_can_be_read() -> None:
    prompts = small_prompts()
    assert prompts.sha256 != default_prompts().sha256
    for kind, read in (("single", rating), ("pairwise", winner)):
        prompts.check(kind, 8)
        messages = prompts.render(kind, TWO)
        assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 3, "user"]
        assert not any(read(m["content"]).reason for m in messages if m["role"] == "assistant")
        assert "two {question}" in messages[-1]["content"] and "ref 2" in messages[-1]["content"]


def test_references_are_for_the_categories_that_have_right_answers() -> None:
    writing = Turns("writing", TWO.questions, TWO.answers, (), TWO.references)
    short = Turns("math", TWO.questions, TWO.answers, (), ["ref 1"])
    for turns in (writing, short):
        assert "ref 1" not in default_prompts().render("single", turns)[1]["content"]


def test_prompts_in_fastchats_layout_are_read_and_known_by_their_hash() -> None:
    if not FASTCHAT.exists():
        pytest.skip(f"no judge prompts at {FASTCHAT}")
    import hashlib

    prompts = read_prompts(FASTCHAT)
    assert prompts.sha256 == hashlib.sha256(FASTCHAT.read_bytes()).hexdigest()
    assert prompts.sha256 != default_prompts().sha256
    for kind in ("single", "pairwise"):
        prompts.check(kind, 2)
        text = prompts.render(kind, TWO)[1]["content"]
        assert "one {answer_b}" in text and "ref 2" in text and "{question_1}" not in text
        with pytest.raises(SourceError, match="spells out two turns"):
            prompts.check(kind, 8)
    default_prompts().check("single", 8)
    ours = json.dumps(default_prompts().templates, default=lambda t: [t.system, t.text])
    for line in FASTCHAT.read_text("utf-8").splitlines():
        for sentence in json.loads(line)["system_prompt"].split(". "):
            assert len(sentence) < 30 or sentence not in ours, "our wording is our own"


@pytest.mark.parametrize(
    "line",
    ["[]", "{", '{"name": "single-v1"}', '{"name": "single-v1", "prompt_template": 3}', "",
     '{"name": "single-v1", "prompt_template": "{answer_3}"}'],
)  # fmt: skip
def test_what_is_no_judge_prompt_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(line)
    with pytest.raises(SourceError, match=r"prompts\.jsonl"):
        read_prompts(tmp_path / "prompts.jsonl")
    with pytest.raises(SourceError, match="cannot be read"):
        read_prompts(tmp_path / "absent.jsonl")


def block(**values: Any) -> Judging:
    seat = values.pop(
        "judge",
        SeatConfig(repo="judge", profile="openai", sampling=Sampling(temperature=0, max_tokens=50)),
    )
    return Judging(judge=seat, **values)


def ask(
    server: Handle | str,
    journal: Path,
    texts: list[str],
    given: Judging | None = None,
    run: str = "run",
    kind: Any = "single",
):
    """Verdicts on `texts`, asked at once, and what the judge says of itself."""

    url = server if isinstance(server, str) else server.url

    async def go() -> tuple[list[Verdict], dict[str, Any]]:
        with Journal(journal, {}, name="judgments") as replies:
            async with judging(
                given or block(), ServedModel.at(url), replies, identity="j", run=run
            ) as judge:
                found = await asyncio.gather(
                    *(judge.verdict(kind, [{"role": "user", "content": t}]) for t in texts)
                )
                return list(found), judge.to_dict()

    return asyncio.run(go())


def test_an_unusable_verdict_is_asked_for_again_within_bounds_and_warmer(tmp_path: Path) -> None:
    with mock() as server:
        server.script(rules=[["once", ["hm", "[[6]]"]], ["never", ["hm"]], [".", ["[[5]]"]]])
        (fine, once, never), said = ask(server, tmp_path, ["fine", "once", "never"])
        assert (fine.rating, fine.attempts, once.rating, once.attempts) == (5, 1, 6, 2)
        assert (never.rating, never.reason, never.attempts, never.text) == (
            None,
            "no_verdict",
            3,
            "hm",
        )
        assert said["asked"] == 6 and said["unusable_attempts"] == {"no_verdict": 4}
        temperatures = [
            line["body"]["temperature"] for line in server.ledger() if "once" in str(line["body"])
        ]
        assert temperatures == [0.0, 0.7], "asked again at 0, a judge says the same again"
        again, said = ask(server, tmp_path, ["fine", "once", "never"])
        assert (
            [v.rating for v in again] == [5, 6, None]
            and said["asked"] == 0
            and said["from_journal"] == 6
        )
        assert server.stats()["requests"] == 6, (
            "what was paid for is not asked for again, readable or not"
        )


def test_the_same_question_twice_at_once_is_asked_once(tmp_path: Path) -> None:
    with mock(latency=0.05) as server:
        server.script(rules=[[".", ["[[5]]"]]])
        found, _ = ask(server, tmp_path, ["same"] * 5)
        assert {v.rating for v in found} == {5.0} and server.stats()["requests"] == 1


def test_time_outs_and_refusals_are_missing_and_asked_for_again_next_time(tmp_path: Path) -> None:
    with mock() as server:
        server.script(rules=[["slow", [{"wait": 5}]], ["bad", [{"status": 422}]], [".", ["[[5]]"]]])
        texts = ["fine", "slow", "bad"]
        found, said = ask(server, tmp_path, texts, block(timeout_s=0.3, attempts=2))
        assert [(v.rating, v.reason) for v in found] == [
            (5, ""),
            (None, "timeout"),
            (None, "refused"),
        ]
        assert said["unusable_attempts"] == {"timeout": 2} and found[1].attempts == 2
        server.script(rules=[[".", ["[[8]]"]]])
        found, said = ask(server, tmp_path, texts)
        assert [v.rating for v in found] == [5, 8, 8] and said["asked"] == 2


def test_a_judge_that_is_gone_or_refuses_its_key_stops_the_run(tmp_path: Path) -> None:
    with mock(key="right") as server, pytest.raises(MisconfiguredEndpointError, match="judge"):
        ask(server, tmp_path, ["a"])
    with mock() as server, pytest.raises(EndpointUnreachableError, match="answered nothing"):
        server.script(rules=[[".", [{"wait": 5}]]])
        ask(server, tmp_path, ["a"], block(timeout_s=0.2, patience_s=0.3, attempts=5))


def test_no_cap_is_passed_and_what_was_spent_survives(tmp_path: Path) -> None:
    priced = SeatConfig(
        repo="judge", profile="openai", sampling=Sampling(temperature=0, max_tokens=50),
        usd_per_million_input=1000, usd_per_million_output=1000,
    )  # fmt: skip
    texts = [f"judge number {n}" for n in range(40)]
    with mock() as server:
        server.script(rules=[[".", ["[[5]]"]]])
        given = block(judge=priced, budget_usd=0.3, in_flight=2)
        found, said = ask(server, tmp_path, texts, given)
        judged = sum(v.rating is not None for v in found)
        assert 0 < judged < 40 and {v.reason for v in found} == {"", "budget_usd"}
        assert 0 < said["usd"] <= 0.3 and said["stopped"] == "budget_usd"
        assert server.stats()["requests"] == judged
        _, more = ask(server, tmp_path, texts, given)
        assert more["usd"] == pytest.approx(said["usd"], abs=0.07) and more["usd"] <= 0.3
        rest, whole = ask(server, tmp_path, texts, block(judge=priced, budget_usd=10))
        assert all(v.rating == 5 for v in rest) and server.stats()["requests"] == 40, (
            "nothing judged twice"
        )
        assert whole["usd"] > 0.3
        _, other = ask(server, tmp_path, texts, given, run="another run")
        assert other["usd"] == 0, "what others paid for is free"
        tokens, said = ask(
            server, tmp_path, ["new 1", "new 2"], block(budget_tokens=10), run="third"
        )
        assert {v.reason for v in tokens} == {"budget_tokens"} and said[
            "stopped"
        ] == "budget_tokens"


def test_a_judging_block_takes_dotted_overrides() -> None:
    made = block_of({"judge": {"repo": "x"}}, ["judge.sampling.max_tokens=7", "attempts=2"])
    assert (made.judge.sampling.max_tokens, made.attempts) == (7, 2)
    from hubkit.errors import RecipeError

    with pytest.raises(RecipeError, match="did you mean 'token_env'"):
        block_of({"judge": {"repo": "x"}}, ["judge.token_enf=K"])


SERVER_TEXTS = SHARED_DATA / "servers" / "modes.py"


def test_the_judges_that_were_met_on_real_servers_are_read_as_they_must_be() -> None:
    if not SERVER_TEXTS.exists():
        pytest.skip(f"no recorded judges at {SERVER_TEXTS}")
    import ast

    source = SERVER_TEXTS.read_text("utf-8")
    texts = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "JUDGE"
    )
    found = {
        name: rating(text, "length" if name == "thinkone" else "stop")
        for name, text in texts.items()
    }
    assert {name: reply.rating or reply.reason for name, reply in found.items()} == {
        "bold": 7, "think": 8, "thinkone": "cut_off", "escaped": 7, "full": 7, "slash": 7,
        "single": "no_verdict", "quote": 2, "refuse": "refused", "json": "no_verdict",
    }  # fmt: skip

    asked = verdict_schema(rating)
    assert asked is not None and asked.parse(texts["json"]).rating == 7
    assert asked.parse(texts["bold"]).rating == 7, "a server that ignores the schema is read"


SCHEMA_REPLIES = {
    "single": [
        ('{"explanation": "[[3]] is too low", "verdict": 7.5}', 7.5),
        ('<think>hm</think> {"verdict": 8}', 8.0),
        ('{"verdict": 70}', "out_of_range"),
        ('{"verdict": null}', "malformed"),
        ('{"explanation": "clear"}', "no_verdict"),
        ("[7]", "no_verdict"),
        ("", "empty"),
    ],
    "pairwise": [
        ('{"explanation": "", "verdict": "A=B"}', "tie"),
        ('{"verdict": "B++"}', "B"),
        ('{"verdict": "D"}', "malformed"),
    ],
}


@pytest.mark.parametrize("kind", ["single", "pairwise"])
def test_a_verdict_asked_for_as_json_is_read_or_counted_by_the_same_reasons(
    tmp_path: Path, kind: Any
) -> None:
    replies = SCHEMA_REPLIES[kind]
    with mock() as server:
        server.script(rules=[[f"^case {n}$", [text]] for n, (text, _) in enumerate(replies)])
        texts = [f"case {n}" for n in range(len(replies))]
        strict = block(json_schema=True, attempts=1)
        found, _ = ask(server, tmp_path, texts, strict, kind=kind)
        assert [v.rating or v.winner or v.reason for v in found] == [want for _, want in replies]
        form = server.ledger()[0]["body"]["response_format"]
        assert form["type"] == "json" and form["value"]["required"] == ["explanation", "verdict"]
        _, marks = ask(server, tmp_path, texts[:1], block(attempts=1), kind=kind)
        assert marks["asked"] == 1, "a reply to a schema answers no question for marks"
        assert "response_format" not in server.ledger()[-1]["body"]


def test_a_schema_is_sent_as_each_dialect_takes_it_or_refused_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    assert schema_fields("tgi", "v", {"type": "object"}) == {
        "response_format": {"type": "json", "value": {"type": "object"}}
    }

    form = schema_fields("vllm", "v", {"type": "object"})["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"] == {"name": "v", "strict": True, "schema": {"type": "object"}}

    async def go(url: str) -> None:
        with Journal(tmp_path, {}, name="judgments") as replies:
            model = ServedModel.at(url, dialect="claude")
            asked = block(json_schema=True)
            async with judging(asked, model, replies, identity="j", run="r"):
                pass

    with mock() as server:
        with pytest.raises(RecipeError, match=r"profile claude .* unset json_schema"):
            asyncio.run(go(server.url))
        assert server.stats()["requests"] == 0


def test_judges_without_a_schema_are_known_as_before() -> None:
    assert "json_schema" not in content_of(Judging, block().model_dump(mode="json"))


def test_ten_unreadable_verdicts_in_a_row_stop_with_an_example(tmp_path: Path) -> None:
    block = Judging(
        judge=SeatConfig(repo="judge", profile="openai", sampling=Sampling(temperature=0)),
        attempts=1,
        in_flight=1,
    )

    async def ask(url: str, number: int) -> Verdict:
        with Journal(tmp_path, {"layout": 1}) as journal:
            async with judging(block, ServedModel.at(url), journal, identity="j", run="r") as judge:
                for at in range(number):
                    verdict = await judge.verdict(
                        "single", [{"role": "user", "content": f"question {at}"}]
                    )
                return verdict

    with mock() as server:
        server.script(rules=[["question 8$", ["[[8]]"]], [".", ["a fine answer, 8 of 10"]]])
        assert asyncio.run(ask(server.url, 18)).reason == "no_verdict"
        with pytest.raises(EvalError, match=r"10 verdicts in a row.*'a fine answer, 8 of 10'"):
            asyncio.run(ask(server.url, 19))
        assert server.stats()["requests"] == 19


FAR, HERE = "https://far.example/v1", "http://127.0.0.1:9"


@pytest.mark.parametrize("endpoints", [[FAR], [HERE], ["embedded"], ["deploy"]])
def test_a_cap_in_dollars_without_prices_is_refused(endpoints: list[str], tmp_path: Path) -> None:
    seat = SeatConfig(repo="judge", endpoints=endpoints)
    with mock() as server:
        with pytest.raises(RecipeError, match=r"caps nothing, because judge has no prices"):
            ask(server, tmp_path, ["[[7]]"], block(judge=seat, budget_usd=1.0))
        assert server.stats()["requests"] == 0


@pytest.mark.parametrize("name", [FAR, HERE, "some/judge"])
def test_a_judge_that_is_named_wants_prices_for_a_cap_in_dollars(name: str) -> None:
    with pytest.raises(RecipeError, match=r"judge\.usd_per_million_input"):
        JudgeChoice(name, budget_usd=1.0).block()
    prices = ["judge.usd_per_million_input=0", "judge.usd_per_million_output=2"]
    assert JudgeChoice(name, settings=prices, budget_usd=1.0).block().budget_usd == 1.0


@pytest.mark.parametrize("profile", ["claude", "transformers"])
def test_a_schema_is_refused_for_servers_that_do_not_enforce_one(profile: str) -> None:
    settings = ["json_schema=true", f"judge.profile={profile}"]
    with pytest.raises(RecipeError, match=f"profile {profile} does not hold its answers"):
        JudgeChoice(HERE, settings=settings).block()
    assert JudgeChoice(HERE, settings=["json_schema=true"]).block().json_schema
    assert JudgeChoice("some/judge", settings=settings).block().json_schema  # our own engine does


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServers]:
    with scripted_servers(tmp_path_factory.mktemp("ledger")) as running:
        yield running


def test_a_judge_without_credit_stops_and_is_resumed_after_topping_up(
    servers: ScriptedServers, tmp_path: Path
) -> None:
    texts, one_by_one = [f"question {n}" for n in range(8)], block(in_flight=1)
    with pytest.raises(CreditExhaustedError, match=r"Insufficient credits.*top up"):
        ask(servers.at("j_402"), tmp_path, texts, one_by_one)
    found, said = ask(servers.at("j_bold"), tmp_path, texts, one_by_one)
    assert [verdict.rating for verdict in found] == [7] * 8
    assert (said["asked"], said["from_journal"]) == (4, 4)


def test_a_conversation_that_a_judge_filters_is_that_conversations_own(
    servers: ScriptedServers, tmp_path: Path
) -> None:
    texts = [f"question {n}" for n in range(8)]
    found, _ = ask(servers.at("j_azure"), tmp_path, texts, block(in_flight=1))
    assert sorted(verdict.reason for verdict in found) == [""] * 6 + ["refused"] * 2
    assert {verdict.rating for verdict in found if not verdict.reason} == {7}


def test_a_judge_that_takes_no_temperature_is_named_or_left_without(
    servers: ScriptedServers, tmp_path: Path
) -> None:
    address, texts = servers.at("j_gpt5"), ["a", "b"]
    with pytest.raises(MisconfiguredEndpointError, match=r"temperature.*set that key to null"):
        ask(address, tmp_path / "with", texts)
    seat = SeatConfig(repo="judge", profile="openai", sampling=Sampling(temperature=None))
    found, _ = ask(address, tmp_path / "without", texts, block(judge=seat))
    assert [verdict.rating for verdict in found] == [7, 7]
