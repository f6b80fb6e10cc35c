"""The rollout's baseline and the measures of curation, through the stages, a real Hub and real
HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from support.mock_endpoint import Handle, mock
from tokenizers import Tokenizer, models, pre_tokenizers

from hubkit import load_dataset
from hubkit.data.parquet import conversation_schema
from hubkit.hub import Hub, Ref, connect
from hubkit.pipeline import STAGES, RunContext
from hubkit.progress import silent
from hubkit.publishing import lint
from hubkit.recipe import load

BASE = "somebody/base"
SYSTEM = "Play the person."


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Handle]:
    with mock() as handle:
        yield handle


@pytest.fixture(scope="module")
def hub(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    found = connect()
    folder = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    found.commit(BASE, folder, "a base", repo_type="model")
    return found


@pytest.fixture(scope="module")
def corpus(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Ref:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "data").mkdir()
    for split in ("train", "openings", "test"):
        rows = [
            {"id": f"{split}{n}", "messages": _talk(split, n), "source": "people"}
            for n in range(16)
        ]
        table = pa.Table.from_pylist(rows, schema=conversation_schema())
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return hub.commit(hub.qualify("beside-corpus"), folder, "a corpus", repo_type="dataset")


def _talk(split: str, number: int) -> list[dict[str, str]]:
    said = [f"{split} asks {number} about bread {turn}, please" for turn in range(8)]
    return [
        {"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(said)
    ]


@pytest.fixture(scope="module")
def made(hub: Hub, endpoint: Handle, corpus: Ref) -> dict[str, Any]:
    """Both stages, run as the pipeline runs them."""
    overrides = {
        "repos.dialogues": "beside-dialogues", "asker.base": BASE, "rollout.dialogues": 10,
        "rollout.turns.value": 5, "rollout.asker.repo": BASE, "rollout.chat.repo": BASE,
        "rollout.asker.endpoints": [endpoint.url], "rollout.chat.endpoints": [endpoint.url],
        "rollout.baseline": {"dialogues": 6, "system": SYSTEM}, "rollout.retry_on": [],
        "curate.filters": [{"name": "empty_turn"}],
        "curate.measure": {"sample": 50, "topics": False},
    }  # fmt: skip
    recipe = load(
        "parrot",
        profiles=["laptop"],
        overrides=[f"{k}={json.dumps(v)}" for k, v in overrides.items()],
    )
    context = RunContext(recipe, hub, {"corpus": corpus})
    found: dict[str, Any] = {"context": context}
    for stage in STAGES:
        if stage.name in ("rollout", "curate"):
            found[stage.name] = stage.run(context, stage.inputs(context, silent), silent)
            context.commits[stage.name] = found[stage.name].ref
    return found


def test_the_baseline_goes_on_from_the_same_exchanges_with_the_chat_model_in_both_seats(
    made: dict[str, Any],
) -> None:
    raw = load_dataset("beside-dialogues", "raw", split="train")
    beside = load_dataset("beside-dialogues", "baseline", split="train")
    assert (raw.num_rows, beside.num_rows) == (10, 6)
    by_opening = {row["opening"]["id"]: row["messages"][:2] for row in raw}
    for row in beside:
        assert row["messages"][:2] == by_opening[row["opening"]["id"]]
        assert row["finish_reasons"][:3] == [None, None, "stop"] and row["human_turns"] == 5
        assert (
            row["asker"]
            == row["chat"]
            == {"repo_id": BASE, "revision": made["rollout"].inputs["chat"].revision}
        )
        assert json.loads(row["sampling"])["asker"]["system"] == SYSTEM
    assert (
        made["rollout"].report["baseline"]["dialogues"] == 6
        and made["rollout"].report["dialogues"] == 10
    )


def test_the_asker_s_seat_is_asked_as_an_assistant_that_was_told_to_play_the_user(
    made: dict[str, Any], endpoint: Handle
) -> None:
    asked = [
        entry["body"]
        for entry in endpoint.ledger()
        if entry["body"]["messages"][0]["content"] == SYSTEM
    ]
    assert len(asked) == 6 * 4
    roles = [message["role"] for message in asked[0]["messages"]]
    assert roles == ["system", "assistant", "user"], (
        "the opening is its own, the answer is its partner's"
    )
    partner = [
        e["body"] for e in endpoint.ledger() if e["body"]["messages"][0]["content"] != SYSTEM
    ]
    names = {body["user"] for body in asked}
    assert names and not names & {body["user"] for body in partner}, (
        "one model, two seats: two names, so two prefixes"
    )


def test_curation_measures_all_four_beside_each_other_and_the_card_shows_it(
    hub: Hub, made: dict[str, Any]
) -> None:
    shown = made["curate"].report["measures"]
    names = [
        "Parrot-Ask, raw",
        "Parrot-Ask, kept",
        "the chat model told to play the user",
        "people, held out",
    ]
    assert [name.removesuffix(" (baseline)") for name in shown["columns"]] == ["measure", *names]
    assert shown["rows"][0] == ["dialogues", "10", "10", "6", "16"]
    assert set(shown["likeness"]) == set(names) and shown["without_topics"]
    card = hub.read(made["curate"].ref, "README.md").decode()
    assert lint(card, "dialogues") == []
    assert (
        "| dialogues | 10 | 10 | 6 | 16 |" in card
        and "topics: not measured" in card
        and SYSTEM in card
    )
    stored = json.loads(hub.read(made["curate"].ref, "stats.json"))
    assert [one["name"] for one in stored["datasets"]] == names
    for name in ("turns.png", "lengths.png", "funnel.png"):
        assert hub.read(made["curate"].ref, name)[:4] == b"\x89PNG"
    configs = [config["config_name"] for config in DatasetCard(card).data["configs"]]
    assert configs == ["default", "raw", "baseline"], "nothing was dropped"
    assert made["curate"].inputs["corpus"] == made["context"].commits["corpus"]


def test_a_recipe_without_a_baseline_or_measures_makes_neither(
    hub: Hub, corpus: Ref, endpoint: Handle
) -> None:
    recipe = load("parrot")
    assert recipe.rollout.baseline is None
    settings = [
        f"asker.base={BASE}",
        "curate.measure=null",
        "curate.filters=[]",
        "repos.dialogues=beside-nothing",
    ]
    settings += [f"rollout.{seat}.repo={BASE}" for seat in ("asker", "chat")]
    settings += [f"rollout.{seat}.endpoints=[{endpoint.url}]" for seat in ("asker", "chat")]
    settings += [
        "rollout.dialogues=2",
        "rollout.turns={kind: fixed, value: 2}",
        "rollout.retry_on=[]",
    ]
    context = RunContext(load("parrot", overrides=settings), hub, {"corpus": corpus})
    for stage in [stage for stage in STAGES if stage.name in ("rollout", "curate")]:
        result = stage.run(context, stage.inputs(context, silent), silent)
        context.commits[stage.name] = result.ref
        assert "baseline" not in result.report and "measures" not in result.report
    assert set(result.inputs) == {"rollout"}
    files = hub.api.list_repo_files(result.ref.repo_id, repo_type="dataset")
    assert not [name for name in files if "baseline" in name or name == "stats.json"]


def test_curation_looks_for_the_questions_that_a_recipe_names(
    hub: Hub, made: dict[str, Any], tmp_path: Path
) -> None:
    said = load_dataset("beside-dialogues", "raw", split="train")[3]["messages"][0]["content"]
    (tmp_path / "mine.txt").write_text(said + "\n")
    named = [
        f"corpus.questions.mine.path={tmp_path}/mine.txt",
        "curate.filters=[{name: decontaminate}]",
    ]
    settings = [
        "repos.dialogues=beside-dialogues",
        f"asker.base={BASE}",
        "curate.measure=null",
        *named,
    ]
    recipe = load("parrot", profiles=["laptop"], overrides=settings)
    context = RunContext(recipe, hub, {"rollout": made["rollout"].ref})
    stage = next(stage for stage in STAGES if stage.name == "curate")
    inputs = stage.inputs(context, silent)
    assert inputs["questions mine"].repo_type == "file" and "tokenizer" not in inputs
    result = stage.run(context, inputs, silent)
    assert result.report["steps"][0]["dropped"]["contains_mine"]["count"] == 1
    assert result.tag == "v2"
    (tmp_path / "mine.txt").write_text("Something else entirely.\n")
    assert stage.find(context, stage.inputs(context, silent)) is None, (
        "other questions, another version"
    )
