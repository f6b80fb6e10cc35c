"""Somebody's file → its raw rows, streamed, as far as it can be read; every byte that cannot is
said.

JSON arrays, JSON Lines, objects one after another, parquet; plain, gzip or zstd; UTF-8, or UTF-16
with its mark; told apart by content, not by name. Other containers are one gap that names them
(``zip_archive``, ``arrow_file``, …). A file that is cut off gives every whole row before the cut.
Memory holds one row and a few blocks, not the file."""

from __future__ import annotations

import json
import zlib
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from hubkit.data.parquet import opened
from hubkit.data.readers.items import Broken, Item, Row, id_in
from hubkit.data.readers.json_arrays import array_rows
from hubkit.errors import SourceError

BLOCK = 1 << 16
_ZSTD_FEED = 1 << 12  # packed bytes unpacked at once: the most they can swell to is some 128 MB
SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".gz", ".zst")
_SPACE = b" \t\r\n"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_NOT_READ = {
    b"PK": "zip_archive",
    b"BZh": "bzip2_file",
    b"\xfd7zX": "xz_file",
    b"ARRO": "arrow_file",
    b"\xff\xfe\0\0": "utf32_file",
}


OnBytes = Callable[[int], None]


def data_files(paths: list[Path]) -> list[Path]:
    """`paths` with every folder replaced by the data files below it, in order of name. Raises
    `SourceError`.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES
            )
            if not inside:
                raise SourceError(
                    f"{path} holds no {', '.join(SUFFIXES)} file; give a file, or a folder with some"
                )
            files.extend(inside)
        elif path.exists():
            files.append(path)
        else:
            raise SourceError(f"{path} does not exist; check the path")
    return files


def rows(path: Path, on_bytes: OnBytes = lambda _: None) -> Iterator[Item]:
    """Every row of `path` in order, and every gap. `on_bytes` hears how many bytes of the file have
    been read.

    Raises `SourceError` only where the file cannot be opened at all.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}") from None
    foreign = next((reason for mark, reason in _NOT_READ.items() if head.startswith(mark)), None)
    if foreign:
        yield Broken(foreign, "start of file", path.stat().st_size)
    elif head == b"PAR1":
        yield from _parquet_rows(path, on_bytes)
    else:
        yield from _text_rows(path, head, on_bytes)


def _parquet_rows(path: Path, on_bytes: OnBytes) -> Iterator[Item]:
    import pyarrow as pa

    size, number = path.stat().st_size, 0
    try:
        with opened(path) as file:
            total = max(file.metadata.num_rows, 1)
            for group in range(file.num_row_groups):
                about, first = file.metadata.row_group(group), number
                try:
                    for batch in file.iter_batches(batch_size=256, row_groups=[group]):
                        yield from _batch_rows(batch, number)
                        number += batch.num_rows
                        on_bytes(size * min(number, total) // total)
                except (
                    pa.ArrowException,
                    OSError,
                ) as error:  # a page of it: what else the group holds is lost with it
                    last = first + about.num_rows
                    place = f"rows {number + 1} to {last}: {type(error).__name__}"
                    yield Broken("broken_parquet", place, about.total_byte_size)
                    number = last
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        cut = "broken_parquet" if _ends_with(path, b"PAR1") else "cut_off"
        yield Broken(cut, f"after row {number}: {type(error).__name__}", size if number == 0 else 0)


def _batch_rows(batch: Any, number: int) -> Iterator[Item]:
    """The rows of a batch behind row `number`; what cannot be said in Python (text that is none, a
    year 100,000).
    """
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        if batch.num_rows == 1:
            yield Broken("broken_row", f"row {number + 1}", batch.nbytes)
            return
        for at in range(batch.num_rows):
            yield from _batch_rows(batch.slice(at, 1), number + at)
        return
    for value in values:
        number += 1
        yield Row(value, f"row {number}")


def _ends_with(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(mark)))
        return file.read() == mark


def _text_rows(path: Path, head: bytes, on_bytes: OnBytes) -> Iterator[Item]:
    blocks = _Blocks(path, head, on_bytes)
    stream = iter(blocks)
    first = b""
    for block in stream:  # skip blank blocks, and a byte order mark
        first = (first + block).removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
        if first:
            break
    if first[:1] == b"[":
        yield from _array_rows(first, stream, blocks)
    elif first:
        yield from _object_rows(first, stream, blocks)
    if blocks.fault:
        yield Broken(blocks.fault, "end of file", 0)


class _Blocks:
    """A file's bytes, unpacked, block by block; a broken end of a packed file sets `fault` and ends
    the stream.
    """

    def __init__(self, path: Path, head: bytes, on_bytes: OnBytes) -> None:
        self.fault: str | None = None
        self._path, self._head, self._on_bytes = path, head, on_bytes

    def __iter__(self) -> Iterator[bytes]:
        if self._head[:2] == b"\x1f\x8b":
            yield from self._gzip()
        elif self._head == b"\x28\xb5\x2f\xfd":
            yield from self._zstd()
        elif self._head[:2] in _UTF16:
            decoder = getincrementaldecoder("utf-16")("replace")
            yield from (decoder.decode(block).encode("utf-8", "replace") for block in self._plain())
            yield decoder.decode(b"", final=True).encode("utf-8", "replace")
        else:
            yield from self._plain()

    def _plain(self) -> Iterator[bytes]:
        done = 0
        try:
            with self._path.open("rb") as file:
                while block := file.read(BLOCK):
                    done += len(block)
                    self._on_bytes(done)
                    yield block
        except OSError:
            self.fault = "disk_error"

    def _gzip(self) -> Iterator[bytes]:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            for block in self._plain():
                while block:
                    yield unpacker.decompress(block, 1 << 20)
                    while unpacker.unconsumed_tail:
                        yield unpacker.decompress(unpacker.unconsumed_tail, 1 << 20)
                    block = unpacker.unused_data if unpacker.eof else b""
                    if unpacker.eof and block:
                        unpacker = zlib.decompressobj(
                            wbits=31
                        )  # a gzip file may be several, one after another
        except zlib.error:
            self.fault = "broken_gzip"
            return
        if not unpacker.eof:
            self.fault = self.fault or "cut_off"

    def _zstd(self) -> Iterator[bytes]:
        import zstandard

        unpacker, fresh = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(), False
        try:
            for packed in self._plain():
                for at in range(0, len(packed), _ZSTD_FEED):
                    block = packed[at : at + _ZSTD_FEED]
                    while block:
                        yield unpacker.decompress(block)
                        block, fresh = unpacker.unused_data if unpacker.eof else b"", unpacker.eof
                        if unpacker.eof:  # a zstd file may be several frames, one after another
                            unpacker = zstandard.ZstdDecompressor(
                                max_window_size=1 << 31
                            ).decompressobj()
        except zstandard.ZstdError:
            self.fault = "broken_zstd"
            return
        if not fresh:
            self.fault = self.fault or "cut_off"


def _array_rows(
    first: bytes, stream: Iterator[bytes], blocks: _Blocks, prefix: str = "item"
) -> Iterator[Item]:
    """The rows of an array, or of objects one after another; where the packed file broke is where
    the array is cut.
    """
    for item in array_rows(first, stream, prefix):
        if isinstance(item, Broken) and item.reason == "cut_off" and blocks.fault:
            item, blocks.fault = replace(item, reason=blocks.fault), None
        yield item


def _object_rows(first: bytes, stream: Iterator[bytes], blocks: _Blocks) -> Iterator[Item]:
    """JSON Lines, or objects spread over lines: the first two lines tell."""
    lines = _lines(first, stream)
    head = [line for _, line in zip(range(2), lines, strict=False)]
    spread = (
        not _load(head[0])[1]
        and head[0].startswith(b"{")
        and (len(head) < 2 or not head[1].startswith(b"{"))
    )
    if spread:
        yield from _array_rows(b"".join(head), lines, blocks, prefix="")
    else:
        yield from _line_rows(chain(head, lines), blocks)


def _line_rows(lines: Iterator[bytes], blocks: _Blocks) -> Iterator[Item]:
    for number, line in enumerate(lines, start=1):
        if not line.strip(_SPACE):
            continue
        value, good = _load(line)
        if good:
            yield Row(value, f"line {number}")
            continue
        cut = not line.endswith(b"\n") and line.lstrip().startswith(b"{")
        reason = "cut_off" if cut else "broken_json"
        yield Broken(reason, f"line {number}", len(line), id_in(line))
        if cut:
            blocks.fault = None  # told: this line is where the packed file broke


def _lines(first: bytes, stream: Iterator[bytes]) -> Iterator[bytes]:
    """Lines with their ends. A long line is gathered in parts, so that it costs its length once."""
    parts: list[bytes] = []
    for block in chain([first], stream):
        *whole, rest = block.split(b"\n")
        for line in whole:
            parts.append(line + b"\n")
            yield b"".join(parts)
            parts = []
        if rest:
            parts.append(rest)
    if parts:
        yield b"".join(parts)


def _load(line: bytes) -> tuple[Any, bool]:
    """The value of one JSON text, and whether it is one. NaN and Infinity, which Python writes, are
    read.
    """
    import orjson

    try:
        return orjson.loads(line), True
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(line), True
    except (ValueError, RecursionError):
        return None, False
