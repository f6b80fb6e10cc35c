"""Filters over a Ray cluster: to the byte what they keep and drop on one machine, whoever is killed
on the way.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.mock_endpoint import mock
from support.small_run import WORDS, small_recipe

from hubkit.data import corpus
from hubkit.data.curation import curate
from hubkit.data.filters import FILTERS, Context, parallel
from hubkit.errors import MissingDependencyError
from hubkit.recipe import Corpus, Curate, Filter, Source

cluster = pytest.mark.usefixtures("nodes")
slow = pytest.mark.slow
FRONT = [
    Filter(name="failed"),
    Filter(name="empty_turn"),
    Filter(name="personal_data"),
    Filter(name="decontaminate"),
]
CHAIN = [
    *FRONT,
    Filter(name="max_tokens", args={"tokens": 500}),
    Filter(name="exact_duplicates"),
    Filter(name="near_duplicates"),
    Filter(name="min_turns", args={"human_turns": 2}),
]
# What a filter of the chain of all needs beside its defaults, or so that some rows pass it.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "english": {"min_score": 0.0},
    "language": {"languages": ["en", "la"], "min_score": 0.0},
    "leaves_topic": {"overlap": 1.0},
    "max_tokens": {"tokens": 500},
    "max_turns": {"human_turns": 9},
}
LAST = ["exact_duplicates", "near_duplicates"]
EVERY = [
    Filter(name=name, args=ARGUMENTS.get(name, {}))
    for name in [*sorted(FILTERS.keys() - set(LAST)), *LAST]
]


@pytest.fixture(scope="module")
def needed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Context]:
    """A tokenizer of one token a word, and a benchmark's questions: files that other nodes do not
    have.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("needed")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    question = " ".join(f"asked{i}" for i in range(20))
    (folder / "bench.jsonl").write_text(json.dumps({"question_id": 1, "turns": [question]}) + "\n")
    return {"context": Context(folder, {"bench": folder / "bench.jsonl"})}


def raw(folder: Path, count: int) -> list[Path]:
    """`count` dialogues in three files: some repeated, some almost, some broken, with addresses,
    with a question.
    """
    rng = random.Random(3)
    rows = []
    for i in range(count):
        turns = [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for _ in range(4)]
        if i % 7 == 6:
            turns = [m["content"] for m in rows[-3]["messages"]]
        if i % 11 == 10:
            turns[1] = " " if i % 2 else "write to jane.doe@university.edu"
        if i % 13 == 12:
            turns[0] = " ".join(f"asked{k}" for k in range(20))
        if i % 17 == 16:
            turns = [
                *(m["content"] for m in rows[-4]["messages"][:3]),
                rows[-4]["messages"][3]["content"] + " yes",
            ]
        messages = [
            {"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(turns)
        ]
        rows.append(
            {
                "id": f"d{i}",
                "messages": messages,
                "finish_reasons": ["given", *["stop"] * 3],
                "seed": i,
            }
        )
    paths = [folder / f"raw-{k}.parquet" for k in range(3)]
    for k, path in enumerate(paths):
        pq.write_table(pa.Table.from_pylist(rows[k::3]), path)
    return paths


def content(folder: Path) -> dict[str, Any]:
    """Every byte that was written, and the report without its time."""
    report = json.loads((folder / "report.json").read_text())
    del report["seconds"]
    return {"report": report} | {
        path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())
    }


@slow
@cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chain", [CHAIN, EVERY], ids=["a few filters", "every filter"])
def test_curation_is_the_same_to_the_byte(
    chain: list[Filter],
    needed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = raw(tmp_path, 3000)
    here = curate(Curate(filters=chain), files, tmp_path / "here", workers=0, **needed)

    def fail(*_: Any) -> None:
        raise AssertionError("a filter that judges rows by themselves ran in the driver")

    monkeypatch.setattr(parallel.Chain, "__call__", fail)
    monkeypatch.setattr(parallel.Chain, "keys", fail)
    curate(Curate(filters=chain, on="ray"), files, tmp_path / "there", **needed)
    assert content(tmp_path / "here") == content(tmp_path / "there")
    reasons = {reason for step in here.steps for reason in step.dropped}
    assert {
        "empty_turn",
        "contains_bench",
        "exact_duplicate",
        "near_duplicate",
    } <= reasons and here.kept > 300


@slow
@cluster
@pytest.mark.timeout(600)
def test_a_corpus_too_and_a_killed_worker_changes_nothing(
    needed: dict[str, Any], tmp_path: Path
) -> None:
    rows = [
        {"id": row["id"], "messages": row["messages"]}
        for path in raw(tmp_path, 6000)
        for row in pq.read_table(path).to_pylist()
    ]
    source = tmp_path / "chats.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    block = Corpus(sources=[Source(path="chats.jsonl")], filters=CHAIN[1:], openings=50, test=50)
    corpus.build(block, [source], tmp_path / "here", seed=1, workers=0, **needed)
    killed: set[int] = set()
    over = threading.Event()

    def killer() -> None:
        while not over.is_set() and len(killed) < 3:
            for process in psutil.process_iter(["name", "cmdline"]):
                if (process.info["cmdline"] or [""])[0].startswith(
                    "ray::decide"
                ) and process.pid not in killed:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.add(process.pid)
                    break
            time.sleep(0.05)

    thread = threading.Thread(target=killer)
    thread.start()
    corpus.build(
        block.model_copy(update={"on": "ray"}), [source], tmp_path / "there", seed=1, **needed
    )
    over.set()
    thread.join()
    assert killed and content(tmp_path / "here") == content(tmp_path / "there")


@slow
@cluster
@pytest.mark.timeout(600)
def test_from_the_command_line_it_is_the_same_stage(
    cli_process: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = small_recipe(
        tmp_path, "curate-ray", count=60, openings=40, rollout__dialogues=20, curate__measure=None,
        curate__filters=[{"name": "failed"}, {"name": "empty_turn"}, {"name": "exact_duplicates"}],
    )  # fmt: skip
    with mock() as server:
        for verb in ("corpus", "rollout"):
            urls = (
                ["--asker-url", server.url, "--chat-url", server.url] if verb == "rollout" else []
            )
            done = cli_process(verb, *recipe, *urls)
            assert done.returncode == 0, done.stderr
    seats = [f"rollout.{seat}.endpoints={json.dumps([server.url])}" for seat in ("asker", "chat")]
    recipe += [part for value in seats for part in ("--set", value)]
    found = []
    for more in (["--on", "ray"], []):
        done = cli_process("curate", *recipe, *more, "--json")
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["stages"][0])
    assert found[0]["report"]["kept"] == 20 and not found[0]["skipped"]
    assert found[1]["skipped"] and found[1]["revision"] == found[0]["revision"]


def test_without_ray_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hubkit-simulators\[ray\]'"):
        curate(Curate(filters=FRONT[:2], on="ray"), raw(tmp_path, 30), tmp_path / "out")
