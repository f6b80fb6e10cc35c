"""A judge that is asked about conversations: what people want, and which questions need their
context.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.mock_endpoint import Handle, mock
from support.tiny_models import tiny_base, write_rows

from hubkit.errors import (
    EndpointError,
    EndpointUnreachableError,
    MisconfiguredEndpointError,
    RecipeError,
    RunLockedError,
    StageError,
)
from hubkit.hub import Ref, connect
from hubkit.judging import PromptedJudge, line, question_prompts, turn_values, yes_or_no
from hubkit.pipeline import run
from hubkit.progress import silent
from hubkit.recipe import Judging, load
from hubkit.serving import ServedModel

TALKS = [
    [("user", f"How do I bake bread number {n}, please?"), ("assistant", "Mix flour."),
     ("user", f"Now rye {n}?"), ("assistant", "Use less water.")]
    for n in range(24)
]  # fmt: skip
SFT = {
    "max_steps": 2,
    "max_length": 128,
    "per_device_train_batch_size": 1,
    "bf16": False,
    "packing": False,
}
TINY = {"lora": {"r": 4, "target_modules": "all-linear"}, "sft": SFT}


@pytest.fixture
def judge() -> Iterator[Handle]:
    with mock() as server:
        yield server


@pytest.fixture(scope="module")
def folder(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("asked")
    hub = connect()
    hub.commit(hub.qualify("asked-base"), tiny_base(made / "base"), "A tiny base")
    write_rows(made / "chats.parquet", TALKS)
    return made


def judging(url: str, **more: Any) -> dict[str, Any]:
    seat = {"repo": "acme/judge", "endpoints": [url], "profile": "openai", "model": "grader",
            "sampling": {"temperature": 0.0, "max_tokens": 40}}  # fmt: skip
    return {"judge": seat, "attempts": 2, "in_flight": 3, **more}


def recipe(folder: Path, name: str, **changes: Any) -> Any:
    base = connect().qualify("asked-base")
    asker: dict[str, Any] = {"base": base, "seat": "user", "system": "You ask.", **TINY}
    if any(key.startswith("corpus.intents") for key in changes):
        asker |= {"system": "You want: {intent}.", "intent_column": "intent"}
    values: dict[str, Any] = {
        "corpus.sources": [{"path": str(folder / "chats.parquet"), "license": "other"}],
        "corpus.filters": [],
        "corpus.openings": 6,
        "corpus.test": 4,
        "asker": asker,
        "repos": {
            part: f"asked-{name}-{part}"
            for part in ("corpus", "asker", "dialogues", "chat", "results")
        },
        **changes,
    }
    return load("parrot", overrides=[f"{key}={json.dumps(value)}" for key, value in values.items()])


def corpus(folder: Path, name: str, **changes: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The corpus stage's report and the rows of all its splits."""
    import pyarrow.parquet as pq

    [made] = run(recipe(folder, name, **changes), connect(), only="corpus")
    data = connect().snapshot(made.ref) / "data"
    return made, [
        row for path in sorted(data.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def test_what_counts_as_a_line_and_as_yes():
    assert line('"bake rye bread"').answer == "bake rye bread" and line(" bake \n").answer == "bake"
    reasons = [line(text, end).reason for text, end in
               (("", "stop"), ("a\nb", "stop"), ("x" * 301, "stop"), ("cut", "length"),
                ('""', "stop"))]  # fmt: skip
    assert reasons == ["empty", "several_lines", "too_long", "cut_off", "empty"]
    assert (
        yes_or_no("It needs it. [[YES]]").answer == "yes" and yes_or_no("[[ no ]]").answer == "no"
    )
    found = [yes_or_no(text).reason for text in ("yes", "[[yes]] or [[no]]", "[[maybe]]", "")]
    assert found == ["no_verdict", "several_verdicts", "malformed", "empty"]


def test_a_judge_words_what_each_person_wants_and_its_failures_are_counted(
    folder: Path, judge: Handle
):
    judge.script(
        rules=[
            [r"number 3,", ["two\nlines"]],
            [r"number 5,", ["", "bake the fifth"]],
            [".", ["bake rye"]],
        ]
    )
    made, rows = corpus(folder, "made", **{"corpus.intents": {"judging": judging(judge.url)}})
    told = made.report["intents"]
    by_id = {row["id"]: row["intent"] for row in rows}
    assert (
        by_id["c3"] is None
        and by_id["c5"] == "bake the fifth"
        and by_id["c7"] == "bake rye"
        and len(rows) == 24
    )
    assert (told["rows"], told["with_intent"], told["missing"]) == (24, 23, {"several_lines": 1})
    assert told["asked"] == 26 and told["unusable_attempts"] == {"several_lines": 2, "empty": 1}
    assert told["tokens"]["prompt"] > 0 and told["prompts"]["name"] == "intent-v1"
    system, asked = judge.ledger()[0]["body"]["messages"]
    assert (
        system["role"] == "system"
        and "bread number" in asked["content"]
        and "Mix flour" not in asked["content"]
    )
    card = " ".join(connect().read(made.ref, "README.md").decode().split())
    assert (
        "Written by a model" in card
        and "grader" in card
        and "23 of 24" in card
        and "`several_lines` 1" in card
    )


def test_nothing_is_asked_twice_after_a_stop_and_caps_hold(folder: Path, judge: Handle):
    judge.script(texts=["bake rye"])
    block = {"judging": judging(judge.url, budget_tokens=3000), "max_missing_share": 0.1}
    with pytest.raises(
        StageError,
        match=r"of 24 conversations have no intent \(budget_tokens \d+\), more than .* 10%",
    ):
        corpus(folder, "capped", **{"corpus.intents": block})
    paid = judge.stats()["answered"]
    assert 0 < paid < 24
    block["judging"]["budget_tokens"] = 100_000
    made, rows = corpus(folder, "capped", **{"corpus.intents": block})
    assert judge.stats()["answered"] == 24 and made.report["intents"]["from_journal"] == paid
    assert {row["intent"] for row in rows} == {"bake rye"}


def test_a_judge_that_cannot_be_asked_is_one_sentence(
    folder: Path, judge: Handle, monkeypatch: pytest.MonkeyPatch
):
    judge.script(status=401)
    with pytest.raises(EndpointError, match="judge"):
        corpus(folder, "refused", **{"corpus.intents": {"judging": judging(judge.url)}})
    keyed = judging(judge.url)
    keyed["judge"]["token_env"] = "ASKED_KEY"
    with pytest.raises(RecipeError, match="ASKED_KEY, which is not set"):
        corpus(folder, "keyless", **{"corpus.intents": {"judging": keyed}})
    with pytest.raises(RecipeError, match="name one of them"):
        recipe(folder, "both", **{"corpus.intents": {}})


def test_an_intent_goes_from_the_source_to_training_rollout_and_cards(folder: Path, judge: Handle):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "chats.parquet")
    wishes = [None if n == 2 else f"learn to bake, case {n}" for n in range(24)]
    pq.write_table(table.append_column("wish", pa.array(wishes)), folder / "wishes.parquet")
    with mock() as asker, mock() as chat:
        asker.script(texts=["And how long does it take?"])
        system = "You want: {intent}."
        wanted = recipe(
            folder, "column",
            **{"corpus.sources": [{"path": str(folder / "wishes.parquet"), "license": "other"}],
               "corpus.intents": {"column": "wish"},
               "rollout.asker": {"repo": "asker", "endpoints": [asker.url], "system": system},
               "rollout.chat": {"repo": connect().qualify("asked-base"), "endpoints": [chat.url]},
               "rollout.dialogues": 4, "rollout.turns": {"kind": "fixed", "value": 2},
               "rollout.retry_on": []},
        )  # fmt: skip
        made = {}
        for stage in ("corpus", "asker", "rollout"):
            [made[stage]] = run(wanted, connect(), only=stage)
        prompts = [json.dumps(entry["body"]) for entry in asker.ledger()]  # rendered here
    told, trained = made["corpus"].report["intents"], made["asker"].report["rows"]
    assert told == {"from": "column wish", "rows": 24, "with_intent": 23}
    assert (
        trained["rows_used"] + trained["dropped"]["counts"].get("no_intent", 0)
        == trained["rows_read"]
        == 14
    )
    rows = pq.read_table(connect().snapshot(made["rollout"].ref) / "data").to_pylist()
    assert {row["intent"] for row in rows} <= set(wishes) and len(
        {row["intent"] for row in rows}
    ) > 1
    wishes_asked = {f"You want: {row['intent']}." for row in rows}
    assert {wish for wish in wishes_asked for prompt in prompts if wish in prompt} == wishes_asked
    assert all(any(wish in prompt for wish in wishes_asked) for prompt in prompts)
    cards = {stage: connect().read(made[stage].ref, "README.md").decode() for stage in made}
    assert (
        "column wish" in cards["corpus"]
        and "{intent}" in cards["asker"]
        and "in place of" in cards["asker"]
    )
    assert "what the opening's own person wanted" in " ".join(cards["rollout"].split())


def test_an_opening_without_an_intent_is_passed_over_and_counted():
    from collections import Counter

    from hubkit.conversation import Conversation
    from hubkit.rollout.plan import plans

    block = recipe_block(dialogues=4)
    talk = [{"role": "user", "content": "Hi"}]
    openings = [
        Conversation(str(n), talk, "s", {"intent": wish})
        for n, wish in enumerate(["a", "", "b", ""])
    ]
    skipped: Counter[str] = Counter()
    made = list(
        plans(block, openings, seed=1, digest="d" * 8, skip=lambda _: False, skipped=skipped)
    )
    assert [plan.intent for plan in made] == ["a", "b"] and skipped == {"no_intent": 2}


def recipe_block(**changes: Any) -> Any:
    return load("parrot").rollout.model_copy(update=changes)


def _asking(block: Any, url: str, folder: Path, **more: str) -> PromptedJudge:
    given = {"identity": "a judge", "run": "r", **more}
    return PromptedJudge(
        Judging(**block),
        ServedModel.at(url),
        question_prompts(),
        "context-v1",
        folder=folder,
        **given,
    )


def test_each_thing_is_asked_once_and_what_was_refused_again_the_next_time(
    judge: Handle, tmp_path: Path
):
    judge.script(
        rules=[["number 3", [{"status": 400}, "[[yes]]"]], ["number 4", ["hm"]], [".", ["[[no]]"]]]
    )
    block, seen = judging(judge.url), []
    about = [(str(n), turn_values([], f"And number {n}?")) for n in range(6)]
    asked = _asking(block, judge.url, tmp_path)
    said = asked.ask(
        [*about, ("again", about[0][1])], yes_or_no, lambda *progress: seen.append(progress[:2])
    )
    assert said == {"0": "no", "1": "no", "2": "no", "5": "no", "again": "no"}
    assert sorted(seen) == [(n, 7) for n in range(1, 8)] and judge.stats()["requests"] == 7
    assert (
        asked.stats["missing"] == {"refused": 1, "no_verdict": 1}
        and asked.stats["judge"] == "a judge"
    )
    seen.clear()
    later = _asking(block, judge.url, tmp_path)
    assert (
        later.ask(iter(about), yes_or_no, lambda *progress: seen.append(progress[:2]))["3"] == "yes"
    )
    assert later.stats["asked"] == 1 and judge.stats()["requests"] == 8
    assert seen[-1] == (6, None), "nobody knows how many there are"
    _asking(block, judge.url, tmp_path, identity="another judge").ask(about[:2], yes_or_no, silent)
    assert judge.stats()["requests"] == 10, "another judge is another judge"


def test_what_concerns_all_questions_is_one_error(judge: Handle, tmp_path: Path):
    about = [(str(n), turn_values([], f"Number {n}?")) for n in range(9)]
    judge.script(status=401)
    with pytest.raises(MisconfiguredEndpointError):
        _asking(judging(judge.url), judge.url, tmp_path).ask(about, yes_or_no, silent)
    gone = "http://127.0.0.1:9"
    with pytest.raises(EndpointUnreachableError):
        _asking(judging(gone, patience_s=0.2), gone, tmp_path).ask(about, yes_or_no, silent)
    (folder,) = tmp_path.iterdir()
    with (
        FileLock(folder / "lock"),
        pytest.raises(RunLockedError, match="another process is asking the same judge"),
    ):
        _asking(judging(judge.url), judge.url, tmp_path).ask(about, yes_or_no, silent)


def test_a_judge_is_shown_the_end_of_the_conversation():
    history = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "x" * 2000},
               {"role": "user", "content": "then"}]  # fmt: skip
    values = turn_values(history, "y" * 2000)
    assert values == {"conversation": "x" * 1500 + " […]\n\nthen", "question": "y" * 1500}


DIALOGUES = [[("user", f"How do I bake bread {n}?"), ("assistant", "Mix flour."),
              ("user", f"Rye number {n}, then."),
              ("assistant", f"About {n} hours."), ("user", "What is the capital of France?"),
              ("assistant", "Paris.")]
             for n in range(8)]  # fmt: skip


def test_a_judge_chooses_the_questions_that_need_their_context(
    folder: Path, judge: Handle, tmp_path: Path
):
    from hubkit.pipeline.stage import RunContext, StageDirs
    from hubkit.pipeline.stages.prefer import build as build_prefer
    from hubkit.pipeline.stages.prefer import inputs as prefer_inputs

    hub = connect()
    data = tmp_path / "dialogues"
    (data / "data").mkdir(parents=True)
    write_rows(data / "data" / "train-00000-of-00001.parquet", DIALOGUES)
    at = hub.commit(hub.qualify("asked-dialogues"), data, "Dialogues", repo_type="dataset")
    judge.script(rules=[["<message>\nRye number 3", ["hm", "who knows"]],
                        ["<message>\nRye", ["Rye what? [[yes]]"]],
                        ["<message>", ["[[no]]"]]])  # fmt: skip
    with mock(deterministic=True) as answers:
        seat = {"repo": hub.qualify("asked-base"), "endpoints": [answers.url]}
        block = {"chat": seat, "pairs": 9, "in_flight": 4, "judging": judging(judge.url)}
        context = RunContext(recipe(folder, "prefer", preference=block), hub, {"curate": at})
        found = []
        for name in ("first", "again"):
            work = StageDirs(tmp_path / name, tmp_path / f"{name}-scratch", lambda *_: None)
            inputs = prefer_inputs(context, work.progress)
            assert set(inputs) == {"dialogues", "answers"}, (
                "a judge with an address of its own is no repo"
            )
            found.append(build_prefer(context, inputs, work))
    first, again = found
    assert first["dependent"] == {"judged": 3} and first["wanted"] == 9 and first["turns"] == 16
    told = first["judging"]
    assert (
        told["chosen"] == 3
        and 3 <= told["looked_at"] < 16
        and told["prompts"]["name"] == "context-v1"
    )
    assert again["judging"]["asked"] == 0 and again["judging"]["from_journal"] >= told["looked_at"]
    chosen = {(m["question"], m["kind"]) for m in _pairs(tmp_path / "first")}
    assert len(chosen) == 3 and all(q.startswith("Rye") and kind == "judged" for q, kind in chosen)


def _pairs(folder: Path) -> list[dict[str, str]]:
    import pyarrow.parquet as pq

    rows = [
        row
        for path in (folder / "data").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    return [{"question": row["prompt"][-1]["content"], "kind": row["dependence"]} for row in rows]


def test_a_judge_that_runs_out_of_money_leaves_what_it_chose(
    folder: Path, judge: Handle, tmp_path: Path
):
    from hubkit.pipeline.judges import prompted_judge
    from hubkit.pipeline.stage import RunContext, StageDirs

    judge.script(texts=["[[yes]]"])
    priced = judging(judge.url, budget_usd=0.01, in_flight=1)
    priced["judge"]["usd_per_million_input"] = 20.0
    work = StageDirs(tmp_path / "out", tmp_path / "scratch", lambda *_: None)
    with prompted_judge(
        RunContext(recipe(folder, "poor"), connect()), "prefer", Judging(**priced),
        {"a": Ref("a", "file", "1")}, work, "context-v1",
    ) as asked:  # fmt: skip
        about = ((str(n), {"conversation": "", "question": f"Why {n}?"}) for n in range(9))
        said = asked.ask(about, yes_or_no, work.progress)
    assert (
        0 < len(said) < 9 and asked.stats["stopped"] == "budget_usd" and asked.stats["usd"] <= 0.01
    )
    assert asked.stats["missing"] == {"budget_usd": 9 - len(said)}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_seat_that_answers_wrongly_can_be_deployed_and_is_given_back(
    folder: Path, tmp_path: Path
):
    from local_hub.test_local_hub_inference import tiny_model

    from hubkit import cloud
    from hubkit.pipeline.stage import RunContext, StageDirs
    from hubkit.pipeline.stages.prefer import build as build_prefer
    from hubkit.pipeline.stages.prefer import inputs as prefer_inputs

    hub = connect()
    hub.commit(hub.qualify("asked-seat"), tiny_model(tmp_path / "model"), "A model")
    data = tmp_path / "dialogues"
    (data / "data").mkdir(parents=True)
    talk = [
        ("user", "Bread?"),
        ("assistant", "Mix flour."),
        ("user", "And rye?"),
        ("assistant", "Less water."),
    ]
    write_rows(data / "data" / "train-00000-of-00001.parquet", [talk, talk])
    at = hub.commit(hub.qualify("asked-deployed"), data, "Dialogues", repo_type="dataset")
    seat = {"repo": hub.qualify("asked-seat"), "endpoints": ["deploy"],
            "deploy": {"hardware": "intel-spr-x1"},
            "context": 512, "sampling": {"max_tokens": 8}}  # fmt: skip
    block = {"chat": seat, "strategies": ["neglect"], "in_flight": 2, "cut_off": "whole_sentences"}
    context = RunContext(recipe(folder, "deployed", preference=block), hub, {"curate": at})
    notes: list[str] = []
    work = StageDirs(
        tmp_path / "out", tmp_path / "scratch", lambda done, total=None, note="": notes.append(note)
    )
    report = build_prefer(context, prefer_inputs(context, work.progress), work)
    assert report["asked"] == 2 == report["wanted"] and any("endpoint" in note for note in notes), (
        set(notes)
    )
    assert cloud.listed(hub) == []
