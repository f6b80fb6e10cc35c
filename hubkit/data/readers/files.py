"""A file to its raw rows, streamed, as far as it can be read; every byte that cannot is reported.

JSON arrays, JSON Lines, objects one after another or around the rows, parquet, Arrow; plain, gzip
or zstd; tar archives of these; UTF-8, UTF-16 and UTF-32 with their mark, or the encoding that the
recipe names; told apart by content. CSV and TSV are told by their names, since no content proves
them. Other containers are one gap that names them (``zip_archive``, ``sqlite_database``, …). A file
that is cut off gives every whole row before the cut. Memory holds one row and a few blocks, not the
file."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from hubkit.data.parquet import opened, safe_batch_rows
from hubkit.data.readers.containers import (
    GZIP,
    HEAD,
    ZSTD,
    Blocks,
    OnBytes,
    decoded,
    foreign_kind,
    is_tar,
    likely_encoding,
    lines_in,
    unmarked_encoding,
)
from hubkit.data.readers.delimited import table_rows
from hubkit.data.readers.items import Broken, Item, PassedOver, Row, id_in
from hubkit.data.readers.json_arrays import MAX_ROW_BYTES, Frame, array_rows, looks_wrapped
from hubkit.data.readers.json_text import parse_json
from hubkit.data.readers.layouts import is_row
from hubkit.data.readers.transcripts import looks_like_transcript
from hubkit.data.readers.turns import looks_like_turn
from hubkit.errors import SourceError

SUFFIXES = (
    ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst", ".tar",
    ".tgz",
)  # fmt: skip
IsRow = Callable[[Any], bool]
_TABLE_SUFFIXES = (".csv", ".tsv")
_TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".log")
_METADATA_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_BACKUP_FOLDERS = re.compile(r"__MACOSX|__pycache__|lost\+found|checkpoints?(-\d+)?", re.I)
_SPACE = b" \t\r\n"
_MAX_LIST = 1 << 26  # bytes of a file that is one conversation
_MOST_ROWS_A_BYTE = 100  # of a parquet file: run lengths can promise any number
_PEEK = 1 << 20  # bytes in which the first row is looked for
_SEARCHED = 50  # lines of plain text in which JSON is looked for


def find_files(paths: Iterable[Path]) -> tuple[list[Path], list[PassedOver]]:
    """Replace every folder of `paths` by the data files below it, in order of name.

    Returns:
        The files, and what lies in the folders and is not read, with the reason.

    Raises:
        SourceError: A path does not exist, or a folder holds no data file."""
    files: list[Path] = []
    passed: list[PassedOver] = []
    for path in paths:
        if path.is_dir():
            inside, passed_over = _data_files(path)
            if not inside:
                raise SourceError(
                    f"{path} holds no {', '.join(SUFFIXES)} file; give a file, or a folder with "
                    "some"
                )
            files.extend(inside)
            passed.extend(passed_over)
        elif path.exists():
            files.append(path)
        else:
            raise SourceError(f"{path} does not exist; check the path")
    return files, passed


def select_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Give the files of `folder` by their names or patterns, or `folder` itself without any.

    Raises:
        SourceError: No file has such a name."""
    selected: list[Path] = []
    for name in names:
        matches = [folder / name]
        if set(name) & set("*?["):
            files = (p for p in folder.rglob("*") if p.is_file())
            matches = [p for p in files if _matches(p.relative_to(folder), name)]
            if not matches:
                raise SourceError(f"{folder} holds no file {name}; check files: in the recipe")
        selected += sorted(matches)
    return selected or [folder]


def _matches(path: Path, name: str) -> bool:
    return path.as_posix() == name or fnmatchcase(path.as_posix(), name)


def _data_files(folder: Path) -> tuple[list[Path], list[PassedOver]]:
    files: list[Path] = []
    passed: list[PassedOver] = []
    for root, folders, names in os.walk(folder, followlinks=False):
        at = Path(root)
        for name in [n for n in folders if _hidden(n)]:
            folders.remove(name)
            inside = sum(len(files) for _, _, files in os.walk(at / name))
            where = f"{(at / name).relative_to(folder)}{os.sep}"
            passed.append(PassedOver(where, f"hidden or backup folder of {inside} files"))
        for name in names:
            reason = _why_not(name)
            if reason is None:
                files.append(at / name)
            else:
                passed.append(PassedOver(str((at / name).relative_to(folder)), reason))
    tables = [path for path in files if path.suffix.lower() in _TABLE_SUFFIXES]
    if len(tables) < len(files):  # most are about the data, and not the data
        files = [path for path in files if path not in tables]
        beside = "a table beside other data files: name it to have it read"
        passed += [PassedOver(str(path.relative_to(folder)), beside) for path in tables]
    return sorted(files), sorted(passed, key=lambda item: item.name)


def _hidden(name: str) -> bool:
    return name.startswith(".") or _BACKUP_FOLDERS.fullmatch(name) is not None


def _why_not(name: str) -> str | None:
    """Why a file of this name is not read, in a folder or an archive."""
    if name.startswith("."):
        return "hidden file"
    if name in _METADATA_FILES:
        return "describes a dataset"
    if name.startswith("cache-") and name.endswith(".arrow"):
        return "cache of datasets"
    return None if name.lower().endswith(SUFFIXES) else "no data file by its name"


def rows(
    path: Path,
    on_bytes: OnBytes = lambda _: None,
    *,
    encoding: str | None = None,
    name: str | None = None,
    is_one: IsRow = is_row,
) -> Iterator[Item]:
    """Give every row of `path` in order, and every gap.

    Args:
        path: The file.
        on_bytes: Called with the number of bytes of the file read so far.
        encoding: The encoding of its text, where it is not UTF-8.
        name: What it is called, where that is not its name on the disk.
        is_one: Whether a value is a row, where an object may be around the rows.

    Raises:
        SourceError: The file cannot be opened at all."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}") from None
    if foreign := foreign_kind(head):
        yield Broken(foreign, "start of file", path.stat().st_size)
    elif head[:4] == b"PAR1":
        yield from _parquet_rows(path, on_bytes)
    elif head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff":
        yield from _arrow_rows(path, on_bytes, stream=head[:6] != b"ARROW1")
    else:
        kind = PurePosixPath(re.sub(r"\.(gz|zst)\Z", "", (name or path.name).lower())).suffix
        blocks = Blocks(path, head, on_bytes)
        yield from _block_rows(path, blocks, head, encoding, kind, is_one)


def _parquet_rows(path: Path, on_bytes: OnBytes) -> Iterator[Item]:
    import pyarrow as pa

    size, number = path.stat().st_size, 0
    try:
        with opened(path) as file:
            total = max(file.metadata.num_rows, 1)
            if total > _MOST_ROWS_A_BYTE * size:
                yield Broken("broken_parquet", f"it promises {total} rows in {size} bytes", size)
                return
            for group in range(file.num_row_groups):
                about, first = file.metadata.row_group(group), number
                try:
                    rows_at_once = safe_batch_rows(path, about)
                    for batch in file.iter_batches(batch_size=rows_at_once, row_groups=[group]):
                        yield from _batch_rows(batch, number)
                        number += batch.num_rows
                        on_bytes(size * min(number, total) // total)
                except (pa.ArrowException, OSError, ValueError, IndexError) as error:
                    # A page of it is broken: what else the group holds is lost with it.
                    last = first + about.num_rows
                    position = f"rows {number + 1} to {last}: {type(error).__name__}"
                    yield Broken("broken_parquet", position, about.total_byte_size)
                    number = last
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = "broken_parquet" if _ends_with(path, b"PAR1") else "cut_off"
        lost = size if number == 0 else 0
        yield Broken(reason, f"after row {number}: {type(error).__name__}", lost)


def _arrow_rows(path: Path, on_bytes: OnBytes, *, stream: bool) -> Iterator[Item]:
    """The rows of an Arrow stream, as `Dataset.save_to_disk` writes it, or of an Arrow file."""
    import pyarrow as pa

    size, number = path.stat().st_size, 0
    try:
        with pa.OSFile(str(path), "rb") as file:
            for batch in _arrow_batches(file, stream=stream):
                for start in range(0, batch.num_rows, 256):
                    piece = batch.slice(start, 256)
                    yield from _batch_rows(piece, number)
                    number += piece.num_rows
                on_bytes(min(file.tell(), size))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        lost = size if number == 0 else 0
        yield Broken("broken_arrow", f"after row {number}: {type(error).__name__}", lost)


def _arrow_batches(file: Any, *, stream: bool) -> Iterator[Any]:
    import pyarrow as pa

    if stream:
        yield from pa.ipc.open_stream(file)
    else:
        reader = pa.ipc.open_file(file)
        yield from map(reader.get_batch, range(reader.num_record_batches))


def _batch_rows(batch: Any, number: int) -> Iterator[Item]:
    """The rows of a batch that comes after row `number`; a row that Python cannot hold (text that
    is none, a year 100,000) is a gap.
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


def _block_rows(
    path: Path, blocks: Blocks, head: bytes, encoding: str | None, kind: str, is_one: IsRow
) -> Iterator[Item]:
    """The rows of a file that is read from its start to its end: text or a tar archive, packed or
    not. `kind` is how its name ends.
    """
    stream = iter(blocks)
    if head[:2] == GZIP or head[:4] == ZSTD:
        inner, stream = _peek(stream, HEAD)
        foreign = foreign_kind(inner)
        if inner[:2] == GZIP or inner[:4] in (ZSTD, b"PAR1") or inner[:6] == b"ARROW1":
            foreign = "nested_container"
        if foreign:
            yield Broken(foreign, "start of the packed file", path.stat().st_size)
            return
        head = inner
    if is_tar(head):
        yield from _tar_rows(stream, blocks, encoding, is_one)
    elif encoding is None and (likely := unmarked_encoding(head)):
        yield Broken("not_utf8", "start of file", path.stat().st_size, encoding=likely)
    else:
        yield from _rows_by_name(decoded(stream, head, encoding), blocks, kind, is_one)


def _rows_by_name(
    stream: Iterator[bytes], blocks: Blocks, kind: str, is_one: IsRow
) -> Iterator[Item]:
    """The rows of text: JSON whatever the name is, else a table or plain text where it ends in
    `kind`.
    """
    if kind in (*_TABLE_SUFFIXES, *_TEXT_SUFFIXES):
        head, stream = _peek(stream, _PEEK)
        text = head.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
        if not text or text[:1] in (b"{", b"["):
            pass
        elif kind in _TEXT_SUFFIXES:
            lines = [line for line in text.splitlines()[:_SEARCHED] if line[:1] in (b"{", b"[")]
            if not any(parse_json(line)[1] is None for line in lines):
                about = "text_transcript" if looks_like_transcript(text) else "plain_text"
                yield Broken(about, "start of file", len(head))
                return
        else:
            rows = table_rows(stream, tabs=kind == ".tsv", cut=lambda: blocks.fault is not None)
            yield from _until_fault(rows, blocks)
            if blocks.fault:
                yield Broken(blocks.fault, "end of file", 0)
            return
    yield from _text_rows(stream, blocks, is_one)


def _peek(stream: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes of `stream`, at least `size` where it has so many, and the whole stream."""
    blocks: list[bytes] = []
    length = 0
    for block in stream:
        blocks.append(block)
        length += len(block)
        if length >= size:
            break
    head = b"".join(blocks)
    return head, chain([head], stream)


def _tar_rows(
    stream: Iterator[bytes], blocks: Blocks, encoding: str | None, is_one: IsRow
) -> Iterator[Item]:
    """The rows of an archive's members, one member after another."""
    name = ""
    try:
        with (
            tempfile.TemporaryDirectory(prefix="hubkit-tar-") as folder,
            tarfile.open(fileobj=cast("IO[bytes]", _Stream(stream)), mode="r|") as archive,
        ):
            for member in archive:
                name = member.name.encode("utf-8", "replace").decode()
                reason, path_name = _why_not_member(member), PurePosixPath(member.name).name
                if reason:
                    if not member.isdir():
                        yield PassedOver(name, reason)
                    continue
                copy = Path(folder) / "member"
                with copy.open("wb") as file:
                    shutil.copyfileobj(cast("IO[bytes]", archive.extractfile(member)), file)
                with copy.open("rb") as file:
                    if is_tar(file.read(HEAD)):
                        yield Broken("nested_container", name, member.size)
                        continue
                for item in rows(copy, encoding=encoding, name=path_name, is_one=is_one):
                    if isinstance(item, PassedOver):
                        yield replace(item, name=f"{name}:{item.name}")
                    else:
                        yield replace(item, position=f"{name}:{item.position}")
    except (tarfile.TarError, EOFError, ValueError) as error:
        reason, blocks.fault = blocks.fault or "broken_tar", None
        yield Broken(reason, f"after {name or 'the start'}: {type(error).__name__}", 0)
    if blocks.fault:
        yield Broken(blocks.fault, f"after {name or 'the start'}", 0)


def _why_not_member(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if not member.isfile():
        return "no file"
    if any(_hidden(part) for part in path.parts[:-1] if part != "."):
        return "in a hidden or backup folder"
    return _why_not(path.name)


class _Stream:
    """Blocks as a file that can only be read on."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._ready = blocks, b""

    def read(self, size: int) -> bytes:
        """Give the next `size` bytes; fewer at the end."""
        pieces, length = [self._ready], len(self._ready)
        while length < size and (block := next(self._blocks, None)) is not None:
            pieces.append(block)
            length += len(block)
        data = b"".join(pieces)
        self._ready = data[size:]
        return data[:size]


def _text_rows(stream: Iterator[bytes], blocks: Blocks, is_one: IsRow) -> Iterator[Item]:
    first = b""
    for block in stream:  # skip blank blocks, and a byte order mark
        first = (first + block).removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
        if first:
            break
    if first[:1] == b"[":
        yield from _list_rows(first, stream, blocks)
    elif first:
        yield from _object_rows(first, stream, blocks, is_one)
    if blocks.fault:
        yield Broken(blocks.fault, "end of file", 0)


def _list_rows(first: bytes, stream: Iterator[bytes], blocks: Blocks) -> Iterator[Item]:
    """The rows of an array; where its elements are turns, it is one conversation, a line or a
    file.
    """
    head, stream = _peek(chain([first], stream), _PEEK)
    element = next((i.value for i in array_rows(head, iter(())) if isinstance(i, Row)), None)
    if not looks_like_turn(element):
        yield from _array_rows(stream, blocks)
        return
    line, newline, _ = head.partition(b"\n")
    if newline and parse_json(line)[1] is None:
        yield from _line_rows(lines_in(stream, MAX_ROW_BYTES), blocks)
        return
    text, stream = _peek(stream, _MAX_LIST)
    value, reason = parse_json(text)
    if reason:
        yield from _array_rows(stream, blocks)
    else:
        yield Row(value, "row 1")


def _array_rows(stream: Iterator[bytes], blocks: Blocks, frame: Frame = "array") -> Iterator[Item]:
    """The rows of an array, or of objects."""
    yield from _until_fault(array_rows(next(stream, b""), stream, frame), blocks)


def _until_fault(items: Iterator[Item], blocks: Blocks) -> Iterator[Item]:
    """`items`; where the packed file broke is where they are cut."""
    for item in items:
        if isinstance(item, Broken) and item.reason == "cut_off" and blocks.fault:
            item, blocks.fault = replace(item, reason=blocks.fault), None
        yield item


def _object_rows(
    first: bytes, stream: Iterator[bytes], blocks: Blocks, is_one: IsRow
) -> Iterator[Item]:
    """JSON Lines, objects spread over lines, or one object around the rows: the start tells."""
    peeked, stream = _peek(chain([first], stream), _PEEK)
    if looks_wrapped(peeked, is_one):
        yield from _array_rows(stream, blocks, "wrapper")
        return
    lines = lines_in(stream, MAX_ROW_BYTES)
    head = [line for _, line in zip(range(2), lines, strict=False)]
    spread = (
        head[0] is not None
        and head[0].startswith(b"{")
        and parse_json(head[0])[1] == "broken_json"
        and (len(head) < 2 or not (head[1] or b"").startswith(b"{"))
    )
    if not spread:
        yield from _line_rows(chain(head, lines), blocks)
        return
    whole = chain((line or b"" for line in head), (line or b"" for line in lines))
    yield from _array_rows(whole, blocks, "objects")


def _line_rows(lines: Iterator[bytes | None], blocks: Blocks) -> Iterator[Item]:
    likely: str | None = None
    for number, line in enumerate(lines, start=1):
        if line is None:
            yield Broken("row_too_long", f"line {number}", MAX_ROW_BYTES)
            continue
        if not line.strip(_SPACE):
            continue
        value, reason = parse_json(line)
        if reason is None:
            yield Row(value, f"line {number}")
            continue
        cut = not line.endswith(b"\n") and line.lstrip().startswith(b"{")
        if reason == "not_utf8":
            likely = likely or likely_encoding(line)
        elif cut:
            reason = "cut_off"
            blocks.fault = None  # this line is where the packed file broke
        yield Broken(
            reason,
            f"line {number}",
            len(line),
            id_in(line),
            likely if reason == "not_utf8" else None,
        )
