"""Data files that strangers made to hurt: each is read, or is a gap with a reason, within bounded
memory.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.forked import grown_mib

from hubkit.data.readers.files import rows
from hubkit.data.readers.items import Broken, Row

pytestmark = pytest.mark.attack
MIB = 2**20


def read(path: Path) -> list[str]:
    """What is read of a file: for each item ``row``, or the reason of a gap."""
    found = []
    for item in rows(path):
        found.append("row" if isinstance(item, Row) else getattr(item, "reason", "passed over"))
        if isinstance(item, Broken):
            assert item.position
    return found


def talk(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "b"}]}


def _parquet(path: Path) -> bytes:
    pq.write_table(pa.Table.from_pylist([talk(f"text {n}") for n in range(50)]), path)
    return path.read_bytes()


def footer_of_gigabytes(path: Path) -> None:
    data = _parquet(path)
    path.write_bytes(data[:-8] + (2**31 - 9).to_bytes(4, "little") + b"PAR1")


def footer_without_end(path: Path) -> None:
    data = _parquet(path)
    path.write_bytes(data[:-8] + (2**32 - 1).to_bytes(4, "little") + b"PAR1")


def footer_of_junk(path: Path) -> None:
    junk = b"\x15" * 5000
    path.write_bytes(b"PAR1" + junk + len(junk).to_bytes(4, "little") + b"PAR1")


def only_marks(path: Path) -> None:
    path.write_bytes(b"PAR1PAR1")


def a_billion_rows_in_a_kilobyte(path: Path) -> None:
    table = pa.table({"messages": pa.array([None] * 3_000_000, pa.int32())})
    pq.write_table(table, path, row_group_size=3_000_000, compression="zstd")


def one_large_value_in_every_row(path: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 120, pa.int32()), ["a" * (40 * MIB)])
    options = {"compression": "zstd", "dictionary_pagesize_limit": 2**30}
    pq.write_table(pa.table({"messages": values}), path, store_schema=False, **options)


def one_value_of_half_a_gigabyte(path: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 9, pa.int32()), ["a" * (400 * MIB)])
    options = {"compression": "zstd", "dictionary_pagesize_limit": 2**30}
    pq.write_table(pa.table({"messages": values}), path, store_schema=False, **options)


def row_of_millions_of_lists(path: Path) -> None:
    path.write_bytes(b'{"messages": [' + b"[]," * (20 * MIB) + b"[]]}\n" + _line())


def row_of_millions_of_lists_in_an_array(path: Path) -> None:
    path.write_bytes(b'[{"messages": [' + b"{}," * (20 * MIB) + b"{}]}," + _line().strip() + b"]")


def packed_row_without_end(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"messages": "')
        for _ in range(400):
            file.write(b"a" * MIB)
        file.write(b'"}\n' + _line())


def nesting_without_end(path: Path) -> None:
    path.write_bytes(b'{"messages": ' + b"[" * (8 * MIB) + b"\n" + _line())


def _line() -> bytes:
    return json.dumps(talk("good")).encode() + b"\n"


HOSTILE: list[Callable[[Path], None]] = [
    footer_of_gigabytes,
    footer_without_end,
    footer_of_junk,
    only_marks,
    a_billion_rows_in_a_kilobyte,
    one_large_value_in_every_row,
    one_value_of_half_a_gigabyte,
    row_of_millions_of_lists,
    row_of_millions_of_lists_in_an_array,
    packed_row_without_end,
    nesting_without_end,
]


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_hostile_data_files_are_gaps_with_a_reason_within_bounded_memory(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "data.parquet"
    make(path)
    found, grown = grown_mib(lambda: read(path))
    assert grown < 1200, f"{grown} MiB"  # the allocator keeps some of what was freed
    if make is one_large_value_in_every_row:
        assert found == ["row"] * 120
    else:
        assert set(found) - {"row"}, "the damage is counted"
        assert (
            "row" not in found
            or b"good" in path.read_bytes()
            or path.read_bytes()[:2] == b"\x1f\x8b"
        )


def test_a_row_of_fifty_megabytes_is_read_and_costs_a_few_times_its_size(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(talk("long " * (10 * MIB))).encode() + b"\n" + _line())
    found, grown = grown_mib(lambda: read(path))
    assert found == ["row", "row"]
    assert grown < 400, f"{grown} MiB"
