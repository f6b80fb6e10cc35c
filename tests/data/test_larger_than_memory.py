"""Filters stream: what a corpus and a curation hold is some bytes a row, whatever rows weigh. Peaks
are measured.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FILES, ROWS_A_FILE = 12, 4000
TURNS, WORDS = 8, (40, 220)  # of both seats in turn: 18 KB of text a dialogue
BYTES_A_ROW = 4096  # what may be held of each: its digests, its place among the splits
PEAK_MB = (
    650  # of one process, over 860 MB of text: some hundreds for the program and the rows under way
)
COLUMNS = {
    "id": pa.string(),
    "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
}

RUN = """
import json, resource, sys
from pathlib import Path
from hubkit.data import corpus, curation
from hubkit.recipe import Corpus, Curate, Filter, Source
room, out, *files = sys.argv[1:]
names = ["alternate_roles", "empty_turn", "repeated_turn", "min_turns", "exact_duplicates",
         "near_duplicates"]
filters, files = [Filter(name=name) for name in names], [Path(file) for file in files]
if room == "curate":
    report = curation.curate(Curate(filters=filters), files, Path(out), workers=2)
else:
    block = Corpus(sources=[Source(path="chats.jsonl")], filters=filters, openings=1000, test=500)
    report = corpus.build(block, files, Path(out), seed=1, workers=2)
peaks = [resource.getrusage(who).ru_maxrss // 1024
         for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps([report.rows_read, report.kept, *peaks]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Dialogues of random words; each file ends with a copy of its first row, and is one row
    group.
    """
    folder = tmp_path_factory.mktemp("larger")
    rng = random.Random(0)
    words = [f"{rng.getrandbits(36):x}" for _ in range(50_000)]
    paths = []
    for number in range(FILES):
        rows = [_row(f"d{number}-{i}", words, rng) for i in range(ROWS_A_FILE - 1)]
        rows.append({**rows[0], "id": f"d{number}-copy"})
        paths.append(folder / f"raw-{number}.parquet")
        pq.write_table(
            pa.Table.from_pylist(rows, schema=pa.schema(COLUMNS)), paths[-1], compression="zstd"
        )
    return paths


def _row(name: str, words: list[str], rng: random.Random) -> dict[str, object]:
    turns = list(zip(("user", "assistant"), WORDS, strict=True)) * TURNS
    said = [(role, " ".join(rng.choices(words, k=count))) for role, count in turns]
    return {"id": name, "messages": [{"role": role, "content": text} for role, text in said]}


def measured(room: str, out: Path, files: list[Path]) -> tuple[int, int, int, int]:
    """Rows read and kept, and the peak of resident memory, in MB, of the process and of its largest
    worker.
    """
    command = [sys.executable, "-c", RUN, room, str(out), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=600)
    assert done.returncode == 0, done.stderr
    print(room, len(files), "files", done.stdout.strip())
    read, kept, peak, worker = json.loads(done.stdout)
    return read, kept, peak, worker


@pytest.mark.parametrize("room", ["curate", "corpus"])
def test_memory_grows_by_some_bytes_a_row(room: str, files: list[Path], tmp_path: Path) -> None:
    few, _, before, _ = measured(room, tmp_path / "few", files[:2])
    read, kept, peak, worker = measured(room, tmp_path / "all", files)
    assert (
        read == FILES * ROWS_A_FILE and kept == read - FILES
    )  # every copy was found, to the last file's
    assert (peak - before) * 2**20 < BYTES_A_ROW * (read - few), (
        f"{before} MB for {few} rows, {peak} MB for {read}"
    )
    assert peak < PEAK_MB and worker < 200
