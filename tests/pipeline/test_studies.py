"""A study of what asking is worth, through its public entry: a real Hub, real training of tiny
students, and a scripted teacher and askers at an address."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from support.loading import datasets_of, splits_of
from support.mock_endpoint import Handle, mock
from support.tiny_models import tiny_base

from hubkit import training
from hubkit.errors import StageError
from hubkit.hub import Hub, Ref, connect
from hubkit.pipeline import RunContext, studies
from hubkit.pipeline.stage import StageResult, parquet
from hubkit.pipeline.studies import balance, further, openings, result
from hubkit.progress import silent
from hubkit.recipe import Recipe, load_study
from hubkit.recipe.study import ANSWERS, BALANCE, HELD_OUT, OPENINGS, RESULT, STUDENT

BASE = "somebody/tiny"
ARMS = ["single", "prompted", "asker", "people"]
SYLLABLES = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Handle]:
    with mock() as handle:
        yield handle


@pytest.fixture(scope="module")
def hub(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    found = connect()
    base = tiny_base(tmp_path_factory.mktemp("tiny"))
    found.commit(BASE, base, "A tiny base", repo_type="model")
    return found


@pytest.fixture(scope="module")
def recipe(hub: Hub, endpoint: Handle, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return study(endpoint, _chats(tmp_path_factory.mktemp("chats")))


def study(endpoint: Handle, chats: Path, **changes: Any) -> Recipe:
    """The shipped study on a recipe so small that a test can run it."""
    values = {
        "repos": {name: f"study-{name}" for name in
                  ("corpus", "asker", "dialogues", "chat", "results")},
        "corpus": {"sources": [{"path": str(chats), "license": "other",
                                "columns": {"person": "who"}}],
                   "filters": [], "openings": 8, "test": 8},
        "asker.base": BASE, "asker.max_tokens": 900, "asker.lora": None,
        "rollout.asker.endpoints": [endpoint.url],
        "study.teacher": {"repo": None, "name": "scripted", "license": "cc0-1.0",
                          "endpoints": [endpoint.url], "profile": "openai",
                          "sampling": {"max_tokens": 32}},
        "study.arms.prompted.endpoints": [endpoint.url],
        "study.dialogues": 4, "study.conversations": 3, "study.turns": 2, "study.seeds": [1, 2],
        "study.student.base": BASE, "study.student.lora": None,
        "study.student.sft.max_length": 256, "study.max_tokens": 256, "study.resamples": 50,
        "study.student.sft.gradient_accumulation_steps": 1,
        "study.curve": [100, 900], "study.curve_conversations": 4,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }  # fmt: skip
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_study("utility", "parrot", profiles=["laptop"], overrides=overrides)


def _chats(folder: Path) -> Path:
    """Conversations of which no two share a run of words."""
    chance = random.Random(7)

    def words(count: int) -> str:
        return " ".join("".join(chance.choices(SYLLABLES, k=3)) for _ in range(count))

    chats = [
        {
            "id": f"c{number}",
            "who": f"person {number}",
            "conversations": [
                {"from": ("human", "gpt")[turn % 2], "value": f"{words(9)}?"} for turn in range(6)
            ],
        }
        for number in range(24)
    ]
    (folder / "chats.json").write_text(json.dumps(chats))
    return folder / "chats.json"


@pytest.fixture(scope="module")
def parts(hub: Hub, recipe: Recipe, endpoint: Handle) -> dict[str, StageResult]:
    """A study that was interrupted when its first student trained, and run again."""
    train, calls = training.train, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:  # the asker was the first
            raise StageError("the power went out")
        return train(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", interrupted)
        with pytest.raises(StageError, match="the power went out"):
            list(studies.run(recipe, hub))
    asked = endpoint.stats()
    again = dict(studies.run(recipe, hub))
    assert endpoint.stats() == asked, "what the teacher had said was asked for again"
    assert again["dialogues of people"].skipped and not again["result"].skipped
    return again


def test_every_arm_has_the_same_openings_teacher_and_tokens(
    hub: Hub, parts: dict[str, StageResult]
) -> None:
    report = parts["result"].report
    assert list(report["arms"]) == ARMS and report["balance"]["openings"] == 4
    trained = [part.report for about, part in parts.items() if about.startswith("student of")]
    assert {student["loss_tokens"] for student in trained} == {report["balance"]["loss_tokens"]}
    assert len(trained) == 8 and max(report["steps"].values()) <= 4 / 3 * min(
        report["steps"].values()
    )
    origins = {
        arm: {
            row["opening"]
            for path in parquet(hub, parts["balance"].ref, f"train_{arm}")
            for row in pq.read_table(path).to_pylist()
        }
        for arm in ARMS
    }
    assert len(set(map(frozenset, origins.values()))) == 1 and len(origins["single"]) == 4


def test_people_say_what_they_said(hub: Hub, parts: dict[str, StageResult]) -> None:
    original = {
        row.id: [m["content"] for m in row.messages if m["role"] == "user"]
        for row in openings.load(hub, parts["openings"].ref, openings.SPLIT)
    }
    for row in openings.load(hub, parts["dialogues of people"].ref, "people"):
        spoken = [m["content"] for m in row.messages if m["role"] == "user"]
        assert spoken == original[row.meta["origin"]] and len(spoken) == 2
    for name in ("prompted", "asker"):
        for row in openings.load(hub, parts[f"dialogues of {name}"].ref, name):
            spoken = [m["content"] for m in row.messages if m["role"] == "user"]
            assert spoken[0] == original[row.meta["origin"]][0]
            assert spoken[1] != original[row.meta["origin"]][1]


def test_the_result_is_data_a_plot_and_a_card(hub: Hub, parts: dict[str, StageResult]) -> None:
    ref = parts["result"].ref
    results = json.loads(hub.read(ref, "results.json"))
    assert results["depths"] == ["1", "2", "follow-ups"]
    pairs = {(e["arm"], e["against"]) for e in results["differences"] if e["depth"] == "2"}
    assert len(pairs) == 12
    for entry in results["differences"]:
        arms = results["arms"]
        direct = arms[entry["arm"]][entry["depth"]]["value"]
        direct -= arms[entry["against"]][entry["depth"]]["value"]
        assert entry["value"] == pytest.approx(direct) and entry["replicates"] == 2
        assert entry["low"] < entry["value"] < entry["high"]
    assert hub.read(ref, result.PICTURE).startswith(b"\x89PNG")
    card = DatasetCard(hub.read(ref, "README.md").decode())
    assert "hubkit" in card.data.tags and "people's own follow-ups" in card.text
    assert f"{results['arms']['people']['2']['value']:.3f}" in card.text
    assert "| arm | turn 1 | turn 2 |" in card.text and "| untrained base |" in card.text
    assert card.text.count(" compared with ") == len(ARMS) * (len(ARMS) - 1) // 2
    assert card.text.count("scores") < 4, "one line for all students, not one each"
    sizes = [f"| {point['tokens']:,} | {point['loss_tokens']:,} | {point['loss']:.3f} |"
             for point in results["learning_curve"]]  # fmt: skip
    assert all(size in card.text for size in sizes) and len(sizes) == 3


def test_what_a_study_commits_is_read_by_stock_datasets(
    hub: Hub, recipe: Recipe, parts: dict[str, StageResult], tmp_path: Path
) -> None:
    names = ["study-corpus", "study-dialogues-utility", "study-results-utility"]
    loaded = {
        name: splits_of(folder, tmp_path / name) for name, folder in datasets_of(hub, names).items()
    }
    dialogues = {config for config, _ in loaded["study-dialogues-utility"]}
    assert dialogues == {
        *("openings", "held-out", "answered"), *ARMS, *(f"train_{arm}" for arm in ARMS)
    }  # fmt: skip
    assert all(rows.num_rows for rows in loaded["study-dialogues-utility"].values())
    (table,) = loaded["study-results-utility"].values()
    results = parts["result"].report
    value = results["arms"]["people"]["2"]["value"]
    assert next(r["value"] for r in table if (r["arm"], r["depth"]) == ("people", "2")) == value
    assert {row["compared_with"] for row in table} == {None, *ARMS}


def test_the_learning_curve_ends_at_the_askers_own_size(
    hub: Hub, parts: dict[str, StageResult]
) -> None:
    curve = parts["result"].report["learning_curve"]
    assert [point["tokens"] > 0 for point in curve] == [False, True, True]
    assert curve[0]["loss_tokens"] < curve[1]["loss_tokens"] < curve[2]["loss_tokens"]
    assert parts["asker of 900 tokens"].ref == parts["asker of asker"].ref
    assert parts["asker of 100 tokens"].ref.repo_id.endswith("study-asker-curve")
    for point in curve[1:]:
        assert point["against_base"]["difference"] == pytest.approx(
            point["loss"] - curve[0]["loss"]
        )
    assert hub.read(parts["learning curve"].ref, "learning_curve.png").startswith(b"\x89PNG")


def test_a_study_that_is_done_does_nothing(
    hub: Hub, recipe: Recipe, endpoint: Handle, parts: dict[str, StageResult], tmp_path: Path
) -> None:
    asked = endpoint.stats()
    assert studies.plan(recipe, hub) == [(about, "done") for about in parts]
    assert recipe.study is not None
    larger = recipe.study.model_copy(update={"seeds": [1, 2, 3]})
    states = dict(studies.plan(recipe.model_copy(update={"study": larger}), hub))
    assert [about for about, state in states.items() if state == "to run"] == [
        part for arm in ARMS for part in (f"student of {arm}, seed 3", f"scores of {arm}, seed 3")
    ] + ["result"]
    files = studies.write(hub, parts["result"].ref, tmp_path)
    assert [file.name for file in files] == ["results.json", result.PICTURE, "README.md"]
    assert json.loads(files[0].read_text())["arms"] == parts["result"].report["arms"]
    again = dict(studies.run(recipe, hub))
    assert all(part.skipped for part in again.values()) and endpoint.stats() == asked
    assert again["result"].ref == parts["result"].ref


def test_further_openings_are_taken_where_filters_left_too_few(
    hub: Hub, endpoint: Handle, recipe: Recipe, tmp_path: Path
) -> None:
    (source,) = recipe.corpus.sources
    changes = {
        "repos": {name: f"study-grown-{name}" for name in
                  ("corpus", "asker", "dialogues", "chat", "results")},
        "study.filters": [{"name": "provider_mentions"}],
        "study.at_least": 4,
    }  # fmt: skip
    grown = study(endpoint, Path(str(source.path)), **changes)
    corpus = dict(_until("openings", grown, hub))["corpus"]
    opened = openings.load(hub, corpus.ref, openings.SPLIT)
    said = [m["content"] for m in opened[0].messages if m["role"] == "user"]
    endpoint.script(rules=[[re.escape(said[1]), ["OpenAI."]]])  # in the arm of people alone
    first = dict(_until("dialogues of people", grown, hub))
    assert first["dialogues of people"].report["kept"] == 3
    asked = len(endpoint.ledger())

    held_out = openings.load(hub, first["openings"].ref, openings.HELD_OUT)
    rows = _split(hub, corpus.ref, openings.SPLIT)
    rows[4]["messages"] = held_out[0].messages
    commits = {
        "corpus": _planted(hub, corpus.ref, openings.SPLIT, rows, tmp_path),
        OPENINGS: first["openings"].ref,
        "arm single": first["single turns"].ref,
        **{f"arm {arm}": first[f"dialogues of {arm}"].ref for arm in ARMS[1:]},
    }
    context = RunContext(_elsewhere(grown), hub, commits)
    made = further.STAGE.run(context, further.STAGE.inputs(context, silent), silent)
    assert made.report["passed_over"] == {"held out: conversation": 1}
    ids = [row.id for row in openings.load(hub, made.ref, openings.SPLIT)]
    assert ids == [opening.id for opening in (*opened[:4], *opened[5:7])]

    states = dict(studies.plan(grown, hub))
    assert states["dialogues of people"] == "done" and states["balance"] == "to run"
    parts = dict(_until("balance", grown, hub))
    endpoint.script()
    assert parts["openings, round 2"].report["further"] == 2  # ceil(1 * 4 / 3 * 1.25)
    # Two openings: two answers to each; then one more turn of an asker and its answer, in each arm.
    assert len(endpoint.ledger()) - asked == 2 * 2 + 2 * (2 + 2 + 1)
    report = parts["balance"].report
    assert (report["openings"], report["openings_asked_for"]) == (5, 6)
    ids = [row.id for row in openings.load(hub, parts["openings, round 2"].ref, openings.SPLIT)]
    assert ids == [opening.id for opening in opened[:6]]
    held_out = [openings.load(hub, parts[about].ref, openings.HELD_OUT)
                for about in ("openings", "openings, round 2")]  # fmt: skip
    assert [row.id for row in held_out[0]] == [row.id for row in held_out[1]]
    for arm in ("people", "asker"):
        before, after = (
            openings.load(hub, parts[f"dialogues of {arm}{again}"].ref, arm)
            for again in ("", ", round 2")
        )
        assert before == after[: len(before)]
        assert {row.meta["origin"] for row in after[len(before) :]} == set(ids[4:])
    states = dict(studies.plan(grown, hub))
    assert list(states)[: len(parts)] == list(parts) and states["balance"] == "done"
    again = dict(_until("balance", grown, hub))
    assert all(part.skipped for part in again.values())

    too_many = study(endpoint, Path(str(source.path)), **changes, study__at_least=50)
    with pytest.raises(StageError, match=r"only 7 of 8 openings.* raise corpus\.openings"):
        _until("balance", too_many, hub)


def _until(last: str, recipe: Recipe, hub: Hub) -> list[studies.Part]:
    """The parts of a study up to `last`."""
    made = []
    for part in studies.run(recipe, hub):
        made.append(part)
        if part[0] == last:
            break
    return made


def test_an_unfair_arm_is_refused(
    hub: Hub, recipe: Recipe, parts: dict[str, StageResult], tmp_path: Path
) -> None:
    rows = _rows(hub, parts)

    def refused(planted: list[dict[str, Any]], **study_changes: Any) -> str:
        changed = recipe
        if study_changes:
            assert recipe.study is not None
            block = recipe.study.model_copy(update=study_changes)
            changed = recipe.model_copy(update={"study": block})
        return _refusal(hub, changed, parts, planted, tmp_path)

    foreign = [{**rows[0], "opening": {"id": "elsewhere", "source": "x"}}, *rows]
    assert "openings that are not the study's (elsewhere)" in refused(foreign)
    assert "fewer than study.min_openings" in refused(rows[:1])
    other = {"repo_id": "another/teacher", "revision": None}
    assert "different teachers" in refused([{**rows[0], "chat": other}, *rows[1:]])
    short = [{**r, "messages": [*r["messages"][:1], {"role": "assistant", "content": "y"}]}
             for r in rows]  # fmt: skip
    assert "loss-bearing tokens" in refused(short, min_tokens=0.9)
    with pytest.raises(StageError, match=r"took 9 steps and that of single 1 6"):
        result.require_equal_steps({"single 1": 6, "people 1": 9})


def test_what_is_evaluated_on_is_refused_in_a_training_set(
    hub: Hub, recipe: Recipe, parts: dict[str, StageResult], tmp_path: Path
) -> None:
    rows = _rows(hub, parts)
    held_out = openings.load(hub, parts["openings"].ref, openings.HELD_OUT)[0]
    own_words = [m["content"] for m in held_out.messages if m["role"] == "user"]

    def planted(first: str, second: str) -> list[dict[str, Any]]:
        messages = [dict(m) for m in rows[0]["messages"]]
        messages[0]["content"], messages[2]["content"] = first, second
        return [{**rows[0], "messages": messages}, *rows[1:]]

    copy = _refusal(hub, recipe, parts, planted(*own_words), tmp_path)
    assert f"held-out {held_out.id} is " in copy and "in arm people" in copy
    near = _refusal(hub, recipe, parts, planted("Oh, and also:", " ".join(own_words)), tmp_path)
    assert f"held-out {held_out.id} is a near-duplicate (" in near

    assert held_out.meta["user"]
    opened = [
        {**row, "user": held_out.meta["user"] if row["id"] == rows[0]["opening"]["id"] else None}
        for row in _split(hub, parts["openings"].ref, openings.SPLIT)
    ]
    hers = _planted(hub, parts["openings"].ref, openings.SPLIT, opened, tmp_path)
    by_user = _refusal(hub, recipe, parts, rows, tmp_path, opened=hers)
    assert f"held-out {held_out.id} is by the user of {rows[0]['id']} in arm people" in by_user


def test_what_is_trained_on_is_passed_over_in_the_evaluation_and_counted(
    hub: Hub, recipe: Recipe, parts: dict[str, StageResult], tmp_path: Path
) -> None:
    corpus = parts["corpus"].ref
    test, train = (_split(hub, corpus, split) for split in ("test", "train"))
    copied, quoted, known = test[:3]
    words = " ".join(m["content"] for m in quoted["messages"] if m["role"] == "user")
    quoting = [
        {"role": role, "content": text}
        for role, text in zip(
            ("user", "assistant", "user", "assistant"), ("And this:", "Yes?", words, "I see."),
            strict=True,
        )
    ]  # fmt: skip
    planted = [
        {**train[0], "id": "a copy", "messages": copied["messages"][:4]},
        {**train[0], "id": "a quote", "messages": quoting},
        {**train[1], "id": "hers", "user": known["user"]},
    ]
    ref = _planted(hub, corpus, "train", [*train, *planted], tmp_path)
    context = RunContext(_elsewhere(recipe), hub, {"corpus": ref})
    made = openings.STAGE.run(context, openings.STAGE.inputs(context, silent), silent)
    assert made.report["users_compared"] and made.report["passed_over"] == {
        f"held out, but trained on: {kind}": 1
        for kind in ("conversation", "near_duplicate", "user")
    }
    held_out = {row["id"] for row in _split(hub, made.ref, openings.HELD_OUT)}
    assert len(held_out) == 3 and not held_out & {row["id"] for row in test[:3]}


def _rows(hub: Hub, parts: dict[str, StageResult]) -> list[dict[str, Any]]:
    return _split(hub, parts["dialogues of people"].ref, "people")


def _split(hub: Hub, ref: Ref, split: str) -> list[dict[str, Any]]:
    (shard,) = parquet(hub, ref, split)
    return list(pq.read_table(shard).to_pylist())


def _planted(hub: Hub, ref: Ref, split: str, rows: list[dict[str, Any]], work: Path) -> Ref:
    """The dataset `ref`, its one split being `rows`."""
    (shard,) = parquet(hub, ref, split)
    copy = Path(shutil.copytree(hub.snapshot(ref) / "data", work / split / "data"))
    (copy / shard.name).unlink()
    table = pa.Table.from_pylist(rows, schema=pq.read_schema(shard))
    pq.write_table(table, copy / shard.name)
    made = hub.commit(
        hub.qualify(f"study-planted-{split}"), copy.parent, "planted", repo_type="dataset"
    )
    shutil.rmtree(copy.parent)
    return made


def _elsewhere(recipe: Recipe) -> Recipe:
    """`recipe`, its dialogues going to a repo of their own."""
    repos = recipe.repos.model_copy(update={"dialogues": "study-refused"})
    return recipe.model_copy(update={"repos": repos})


def _refusal(
    hub: Hub,
    recipe: Recipe,
    parts: dict[str, StageResult],
    rows: list[dict[str, Any]],
    work: Path,
    *,
    opened: Ref | None = None,
) -> str:
    """Why the study's arms cannot be compared once the people's dialogues are `rows`."""
    commits: dict[str, Ref] = {
        OPENINGS: opened or parts["openings"].ref,
        HELD_OUT: parts["held-out dialogues"].ref,
        "arm single": parts["single turns"].ref,
        "arm people": _planted(hub, parts["dialogues of people"].ref, "people", rows, work),
    }
    context = RunContext(_elsewhere(recipe), hub, commits)
    with pytest.raises(StageError) as refusal:
        balance.STAGE.run(context, balance.STAGE.inputs(context, silent), silent)
    return str(refusal.value)


def test_what_a_recipe_says_of_a_study_identifies_its_parts(endpoint: Handle) -> None:
    now = study(endpoint, Path("chats.json"))
    stages = (OPENINGS, ANSWERS, BALANCE, STUDENT, RESULT)

    def changed(**changes: Any) -> set[str]:
        other = study(endpoint, Path("chats.json"), **changes)
        return {stage for stage in stages if other.digest(stage) != now.digest(stage)}

    assert changed(study__in_flight=3) == set()
    assert changed(study__conversations=2) == {OPENINGS}
    assert changed(study__teacher__sampling__temperature=0.1) == {ANSWERS}
    assert changed(study__seeds=[5]) == {RESULT}
    assert changed(study__student__sft__learning_rate=0.1) == {BALANCE, STUDENT}
