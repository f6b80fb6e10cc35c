"""The first rows of a data file, read in a process of its own.

Files come from strangers and the parsers are large: a file that crashes or swallows memory takes
this process with it, never the server. `python -m hubkit.local_hub.pages.preview KIND START` reads
the file on standard input's descriptor and prints JSON: {"total": int or null, "rows": [[[name,
value], …], …]}."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from hubkit.local_hub.errors import Refusal
from hubkit.untrusted import JsonObject, parse_json

ROWS = 20
TIMEOUT_S = 20
MEMORY_BYTES = 4 * 2**30
MAX_LINE_BYTES = 8 * 2**20
MAX_TEXT = 4000
MAX_COLUMNS, MAX_OUTPUT_BYTES = 200, 8 * 2**20
MAX_AT_ONCE = 2
MAX_COUNTED_BYTES = 64 * 2**20
_slots = threading.BoundedSemaphore(MAX_AT_ONCE)
KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}


def kind_of(path: str) -> str | None:
    """How a file would be previewed, or None."""
    return KINDS.get(Path(path).suffix.lower())


def preview(path: Path, kind: str, start: int) -> JsonObject:
    """Rows `start` and following of a file. Raises `Refusal` 422 where it cannot be read."""
    command = [sys.executable, "-m", "hubkit.local_hub.pages.preview", kind, str(start)]
    package_root = str(Path(__file__).resolve().parents[3])
    env = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": package_root,
        "OMP_NUM_THREADS": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    with _slots, path.open("rb") as file:
        try:
            process = subprocess.run(
                command, stdin=file, capture_output=True, timeout=TIMEOUT_S, env=env, check=False
            )
        except subprocess.TimeoutExpired:
            raise Refusal(422, f"Reading this file took longer than {TIMEOUT_S} seconds.") from None
    if process.returncode != 0:
        reason = process.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise Refusal(
            422, f"This file cannot be read as {kind}: {reason[:300] or 'the reader crashed'}."
        )
    answer: JsonObject = parse_json(process.stdout)
    return answer


def _parquet(start: int) -> tuple[int | None, Iterator[JsonObject]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(1)
    file = pq.ParquetFile(pa.PythonFile(sys.stdin.buffer, mode="r"))
    return file.metadata.num_rows, islice(_parquet_rows(file, start), ROWS)


def _parquet_rows(file: Any, start: int) -> Iterator[JsonObject]:
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if start >= count:
            start -= count
            continue
        for batch in file.iter_batches(batch_size=64, row_groups=[group], use_threads=False):
            yield from batch.slice(min(start, batch.num_rows)).to_pylist()
            start = max(0, start - batch.num_rows)


def _jsonl(start: int) -> tuple[int | None, Iterator[JsonObject]]:
    def rows() -> Iterator[JsonObject]:
        while line := sys.stdin.buffer.readline(MAX_LINE_BYTES):
            if line.strip():
                value = parse_json(line)
                yield value if isinstance(value, dict) else {"value": value}

    total = sum(1 for line in sys.stdin.buffer if line.strip()) if _is_small() else None
    sys.stdin.buffer.seek(0)
    return total, islice(rows(), start, start + ROWS)


def _is_small() -> bool:
    """Whether the file is read to its end to count its rows."""
    return os.fstat(sys.stdin.fileno()).st_size <= MAX_COUNTED_BYTES


def _csv(start: int, delimiter: str) -> tuple[int | None, Iterator[JsonObject]]:
    text = io.TextIOWrapper(sys.stdin.buffer, "utf-8", "replace", newline="")
    total = sum(1 for _ in csv.DictReader(text, delimiter=delimiter)) if _is_small() else None
    text.seek(0)
    rows = csv.DictReader(text, delimiter=delimiter)
    return total, islice(({str(k): v for k, v in row.items()} for row in rows), start, start + ROWS)


def _cell(value: Any) -> Any:
    """A value as it is shown: text cut, conversations kept as such."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(turn, dict) and "role" in turn for turn in value)
    ):
        return {
            "turns": [[str(turn["role"])[:100], _text(turn.get("content"))] for turn in value[:50]]
        }
    return {"text": _text(value)}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_odd)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"


def _odd(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def main() -> int:
    """The child: limits first, then the file."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT_S, TIMEOUT_S))
    kind, start = sys.argv[1], int(sys.argv[2])
    readers = {"parquet": lambda: _parquet(start), "jsonl": lambda: _jsonl(start)}
    readers |= {"csv": lambda: _csv(start, ","), "tsv": lambda: _csv(start, "\t")}
    try:
        total, rows = readers[kind]()
        cells = [
            [[str(name)[:200], _cell(value)] for name, value in islice(row.items(), MAX_COLUMNS)]
            for row in rows
        ]
        output = json.dumps({"total": total, "rows": cells})
        if len(output) > MAX_OUTPUT_BYTES:
            raise ValueError(f"its rows are larger than {MAX_OUTPUT_BYTES} bytes")
    except Exception as error:  # whatever the parser says of a stranger's file
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}\n")
        return 1
    sys.stdout.write(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
