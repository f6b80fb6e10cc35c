"""``hubkit eval asker``, through its own command: askers of a Hub, at their endpoints, beside
people.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation.test_scorecard import write
from support.mock_endpoint import Handle, mock
from support.tiny_models import tiny_base
from typer import Typer
from typer.testing import CliRunner

from hubkit.cli import eval_asker
from hubkit.errors import HubkitError, RecipeError, SourceError
from hubkit.evaluation import Seating, heldout_loss
from hubkit.hub import Hub, Ref, connect
from hubkit.recipe import Evals, Training
from hubkit.training import Base, train

SYSTEM = "You are a person."
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
SFT = {"learning_rate": 1e-2, "max_length": 128, "max_steps": 1, "per_device_train_batch_size": 1}


@pytest.fixture(scope="module")
def hub(hubkit_home: Path) -> Hub:
    return connect()


@pytest.fixture(scope="module")
def repos(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ref]:
    """A base, conversations, and an asker as its stage leaves it: an adapter with its record."""
    folder = tmp_path_factory.mktemp("repos")
    (folder / "base").mkdir()
    (folder / "corpus" / "data").mkdir(parents=True)
    base = hub.commit(hub.qualify("tiny-base"), tiny_base(folder / "base"), "base")
    write(folder / "corpus" / "data" / "test-00000-of-00001.parquet")
    corpus = hub.commit(
        hub.qualify("tiny-corpus"), folder / "corpus", "corpus", repo_type="dataset"
    )
    block = Training(
        base=base.repo_id, seat="user", system=SYSTEM, end_mark="[bye]", lora=LORA, sft=SFT
    )
    data = [folder / "corpus" / "data" / "test-00000-of-00001.parquet"]
    train(
        block,
        data,
        Base(folder / "base", base.repo_id),
        folder / "out",
        seed=1,
        work=folder / "work",
    )
    record = {"stage": "asker", "block": block.model_dump(), "report": {},
              "inputs": {"base": base.to_dict(), "corpus": corpus.to_dict()}}  # fmt: skip
    (folder / "out" / "provenance").mkdir()
    (folder / "out" / "provenance" / "asker.json").write_text(json.dumps(record))
    asker = hub.commit(hub.qualify("tiny-ask"), folder / "out", "asker")
    return {"base": base, "corpus": corpus, "asker": asker}


@pytest.fixture(scope="module")
def server() -> Iterator[Handle]:
    with mock(deterministic=True) as handle:
        yield handle


def run(*arguments: str) -> Any:
    """What the command prints on stdout; what it raises is raised. No encoder is fetched."""
    app = Typer()
    if "--embedder" not in arguments:
        arguments = (*arguments, "--embedder", "none")
    app.command()(eval_asker.asker)
    done = CliRunner().invoke(app, list(arguments))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def _data(hub: Hub, repos: dict[str, Ref]) -> list[Path]:
    return sorted((hub.snapshot(repos["corpus"]) / "data").glob("*.parquet"))


def test_an_asker_is_compared_with_its_base_and_people(
    hub: Hub, repos: dict[str, Ref], server: Handle, tmp_path: Path
) -> None:
    served = ["--endpoint", f"tiny-ask={server.url}", "--endpoint", f"base={server.url}"]
    out = tmp_path / "out"
    done = run("tiny-ask", *served, "-n", "30", "--openings", "4", "--perplexity",
               "--out", str(out), "--json")  # fmt: skip
    card = json.loads(done.stdout)
    assert [row["name"] for row in card["rows"]] == ["people", "tiny-ask", "base as user"]
    assert (
        card["settings"]["data"]["revision"] == repos["corpus"].revision
        and card["settings"]["contexts"] == 30
    )
    asker, base = card["rows"][1:]
    assert asker["model"] == repos["asker"].to_dict() and base["model"] == repos["base"].to_dict()
    ends = card["settings"]["ends"]
    assert (asker["counts"]["asked"], base["counts"]["asked"]) == (34 + ends, 34), (
        "only an end mark can end"
    )
    assert asker["values"]["perplexity"]["value"] != base["values"]["perplexity"]["value"] > 1
    told = heldout_loss(Evals(conversations=30), hub.snapshot(repos["base"]), None,
                        _data(hub, repos),
                        Seating("user", SYSTEM, printed_as="assistant"))  # fmt: skip
    assert base["values"]["perplexity"]["value"] == pytest.approx(told.perplexity), (
        "in its own seat"
    )
    assert (
        asker["values"]["end_recall"]["value"] == 0
        and base["missing"]["end_recall"] == "it has no end mark"
    )
    assert (out / "scorecard.png").read_bytes()[:4] == b"\x89PNG" and "| words per turn |" in (
        out / "scorecard.md"
    ).read_text()
    (entry, *_) = yaml.safe_load((out / ".eval_results" / "scorecard.yaml").read_text())
    assert entry["dataset"] == {
        "id": repos["corpus"].repo_id, "task_id": "perplexity", "revision": repos["corpus"].revision
    }  # fmt: skip
    assert (
        yaml.safe_load((out / "model-index.yaml").read_text())["model-index"][0]["name"]
        == "tiny-ask"
    )
    assert len((out / "turns.jsonl").read_text().splitlines()) == 30
    assert json.loads((out / "scorecard.json").read_text()) == card


def test_nobody_is_asked_at_what_one_of_them_was_trained_on(
    hub: Hub, repos: dict[str, Ref], server: Handle, tmp_path: Path
) -> None:
    """Another asker, whose corpus has conversations that the first was held out from."""
    import pyarrow.parquet as pq

    (held_out,) = _data(hub, repos)
    (tmp_path / "corpus" / "data").mkdir(parents=True)
    for split, rows in (("train", pq.read_table(held_out).slice(3, 2)), ("test", held_out)):
        table = pq.read_table(rows) if isinstance(rows, Path) else rows
        pq.write_table(table, tmp_path / "corpus" / "data" / f"{split}-00000-of-00001.parquet")
    corpus = hub.commit(hub.qualify("other-corpus"), tmp_path / "corpus", "c", repo_type="dataset")
    copy = Path(shutil.copytree(hub.snapshot(repos["asker"]), tmp_path / "asker"))
    record = json.loads((copy / "provenance" / "asker.json").read_text())
    record["inputs"]["corpus"] = corpus.to_dict()
    (copy / "provenance" / "asker.json").unlink()
    (copy / "provenance" / "asker.json").write_text(json.dumps(record))
    hub.commit(hub.qualify("other-ask"), copy, "asker")
    served = [part for name in ("tiny-ask", "other-ask")
              for part in ("--endpoint", f"{name}={server.url}")]  # fmt: skip
    options = ["-n", "200", "--openings", "0", "--no-base", "--no-perplexity"]
    done = run("tiny-ask", "--against", "other-ask", *served, *options,
               "--out", str(tmp_path / "out"))  # fmt: skip
    assert "other-ask was trained on 2 of the held-out conversations" in done.stderr
    card = json.loads((tmp_path / "out" / "scorecard.json").read_text())
    assert card["settings"]["trained_on"] == {"other-ask": 2}
    lines = (tmp_path / "out" / "turns.jsonl").read_text().splitlines()
    turns = [json.loads(line) for line in lines]
    asked = {turn["id"] for turn in turns}
    assert asked and not asked & {"c3", "c4"}
    record["inputs"]["corpus"]["repo_id"] = "somebody/private"
    (copy / "provenance" / "asker.json").write_text(json.dumps(record))
    hub.commit(hub.qualify("other-ask"), copy, "its corpus is elsewhere")
    done = run("tiny-ask", "--against", "other-ask", *served, "-n", "4", *options[2:])
    assert "other-ask: what it was trained on is not known here" in done.stderr


def test_a_table_says_what_is_missing(repos: dict[str, Ref], server: Handle) -> None:
    done = run(
        "tiny-ask",
        "--no-base",
        "--no-perplexity",
        "--endpoint",
        f"tiny-ask={server.url}",
        "-n",
        "4",
        "--openings",
        "0",
    )
    assert (
        "words per turn" in done.stdout
        and "people" in done.stdout
        and "base as user" not in done.stdout
    )
    assert (
        "told from people's turns (AUC): not measured for tiny-ask (fewer than 25 turns on a side)"
        in done.stderr
    )
    missing = [line for line in done.stderr.splitlines() if "not measured" in line]
    assert missing and all(line.endswith(")") for line in missing), "each says why"


def test_a_dry_run_asks_nothing(repos: dict[str, Ref], server: Handle) -> None:
    before = server.stats()["requests"]
    done = run(
        "tiny-ask",
        "--against",
        f"tiny-ask@{repos['asker'].revision}",
        "-n",
        "10",
        "--dry-run",
        "--json",
    )
    plan = json.loads(done.stdout)["players"]
    assert [(p["name"].partition("@")[0], p["requests"]) for p in plan] == [
        ("tiny-ask", 44), ("tiny-ask", 44), ("base as user", 34)
    ]  # fmt: skip
    full = json.loads(run("tiny-ask", "-n", "10", "--full", "--dry-run", "--json").stdout)
    assert full["players"][0]["tokens_at_most"] == (100 + 10 + 10) * 256
    assert plan[0]["tokens_at_most"] == (10 + 10 + 24) * 64 and plan[0]["base"] == str(
        repos["base"]
    )
    assert server.stats()["requests"] == before
    assert "requests" in run("tiny-ask", "-n", "10", "--dry-run").stdout


def test_a_repo_without_a_record_is_told_to_play(repos: dict[str, Ref], server: Handle) -> None:
    data = f"tiny-corpus@{repos['corpus'].revision}:test"
    with pytest.raises(SourceError, match="give conversations with --data"):
        run("tiny-base", "--no-perplexity", "--endpoint", f"tiny-base={server.url}")
    done = run("tiny-base", "--data", data, "--system", "Play a user.", "--no-perplexity",
               "-n", "4", "--json", "--endpoint", f"tiny-base={server.url}")  # fmt: skip
    assert [row["name"] for row in json.loads(done.stdout)["rows"]] == ["people", "tiny-base"]
    prompt = server.ledger()[-1]["body"]["inputs"]
    assert prompt.startswith("<|im_start|>system\nPlay a user."), (
        "a base without a chat template gets its family's"
    )
    assert prompt.endswith("<|im_start|>assistant\n"), "in its own seat"


def test_a_base_is_told_what_the_asker_is_told_and_plays_once(
    repos: dict[str, Ref], server: Handle
) -> None:
    served = [
        part
        for name in ("tiny-ask", "tiny-base")
        for part in ("--endpoint", f"{name}={server.url}")
    ]
    done = run(
        "tiny-ask",
        "--against",
        "tiny-base",
        *served,
        "--no-perplexity",
        "-n",
        "4",
        "--openings",
        "1",
        "--json",
    )
    assert [row["name"] for row in json.loads(done.stdout)["rows"]] == [
        "people",
        "tiny-ask",
        "tiny-base",
    ]
    assert server.ledger()[-1]["body"]["inputs"].startswith(f"<|im_start|>system\n{SYSTEM}")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (
            ["tiny-ask", "--endpoint", "other=http://127.0.0.1:9"],
            RecipeError,
            "with a NAME out of tiny-ask, base",
        ),
        (["tiny-ask", "--endpoint", "tiny-ask"], RecipeError, "must be NAME=URL"),
        (
            ["tiny-ask", "--against", "tiny-ask", "--no-perplexity"],
            RecipeError,
            "give every repo once",
        ),
        (["no-such-asker"], HubkitError, "no-such-asker"),
    ],
)
def test_mistakes_are_sentences(
    repos: dict[str, Ref], arguments: list[str], error: Any, says: str
) -> None:
    with pytest.raises(error, match=says):
        run(*arguments)


def test_the_embedded_engine_serves_an_asker_and_its_base_together(repos: dict[str, Ref]) -> None:
    done = run(
        "tiny-ask", "--no-perplexity", "-n", "3", "--openings", "1", "--max-tokens", "4", "--json"
    )
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    for name in ("tiny-ask", "base as user"):
        counts = rows[name]["counts"]
        assert counts["asked"] >= 4 and counts["failed"] == 0 and "cut_off" in rows[name]["values"]


@pytest.mark.parametrize(("verdict", "flips"), [("[[A]]", 1.0), ("[[C]]", 0.0)])
def test_a_judge_tells_turns_from_people_s_and_one_that_goes_by_position_shows_it(
    repos: dict[str, Ref], server: Handle, verdict: str, flips: float
) -> None:
    with mock() as judge:
        judge.script(rules=[[".", [f"Verdict: {verdict}"]]])
        done = run("tiny-ask", "--no-base", "-n", "10", "--openings", "0", "--json",
                   "--endpoint", f"tiny-ask={server.url}", "--judge", f"{judge.url}#any",
                   "--judge-pairs", "4")  # fmt: skip
        asked = judge.stats()["answered"]
    card = json.loads(done.stdout)
    row, said = card["rows"][1], card["settings"]["turing"]
    pairs = row["counts"]["turing_pairs"]
    assert 0 < pairs <= 4 and asked == 2 * pairs
    assert row["values"]["turing_rate"]["value"] == 0.5 and said["prompts"]["name"] == "turing-v1"
    assert row["values"]["turing_flips"]["value"] == flips
    assert pairs + row["counts"]["turing_unmatched"] >= 4, "pairs of unlike length are left out"
    plan = run("tiny-ask", "--judge", "http://127.0.0.1:9", "-n", "4", "--dry-run", "--json").stdout
    assert json.loads(plan)["judgments"] == 2 * 50 * 2


def test_meanings_are_measured_with_an_encoder(
    repos: dict[str, Ref], server: Handle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import numpy as np

    from hubkit.pipeline import inputs

    def vectors(texts: list[str], model: Path, *, progress: Any) -> Any:
        rows = np.array([[len(text), text.count("e") + 1, text.count("o") + 1] for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    monkeypatch.setattr(inputs, "embed", vectors)
    monkeypatch.setattr(inputs, "encoder", lambda hub, name, progress: Path(name))
    done = run("tiny-ask", "--no-base", "-n", "30", "--openings", "0", "--json",
               "--endpoint", f"tiny-ask={server.url}", "--embedder", "any/encoder",
               "--out", str(tmp_path / "out"))  # fmt: skip
    entries = yaml.safe_load((tmp_path / "out" / ".eval_results" / "scorecard.yaml").read_text())
    assert "embedding_auc" in {entry["dataset"]["task_id"] for entry in entries}
    card = json.loads(done.stdout)
    assert card["settings"]["embedder"] == "any/encoder"
    people, asker = (row["values"] for row in card["rows"])
    for measure in ("embedding_auc", "coverage", "cluster_divergence", "context_fit"):
        assert people[measure]["low"] <= people[measure]["value"] and measure in asker
