"""The texts inside files of any kind, scanned: where a value stands, never the value.

Read are text in UTF-8, UTF-16 and UTF-32 (others as Latin-1), JSON's escapes, base64 inside text,
every column of every Arrow type with its name and metadata, headers of weight files, members of
archives and compressed files, and the printable runs of any other binary file."""

from __future__ import annotations

import codecs
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from hubkit.sensitive_data import carriers
from hubkit.sensitive_data.scanner import KINDS, mask, scan_text

UNREADABLE = "unreadable"  # the kind of a member that is too deep or too large to be looked into
_BLOCK_CHARS = 1 << 20
_OVERLAP_CHARS = 4096  # of the next block: no secret is cut in two
_LEAD_CHARS = 64  # of the block before: the words before a number
_NESTING = 4
_UNPACKED_BYTES = 1 << 30  # of one compressed file or member
_ALL_UNPACKED_BYTES = 16 << 30  # of all that is packed in one file
_MODEL_HEADER_BYTES = 64 << 20  # of a GGUF file: its metadata and tokenizer lie before the tensors
_HEADER_BYTES = 100 << 20  # the most that safetensors allows
_PRINTABLE = bytes((*range(32, 127), *b"\t\r\n\0"))
_LONG_INTEGER = 10**7
_Scan = Callable[[IO[bytes], str, int], None]


@dataclass
class FileFindings:
    """What was found in one file: how often each kind, and where each kind was first seen."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, location: str) -> None:
        """Count one finding."""
        self.counts[kind] += 1
        self.places.setdefault(kind, location)

    def copy(self) -> FileFindings:
        """The findings so far."""
        return FileFindings(self.counts.copy(), dict(self.places))

    def restore(self, findings: FileFindings) -> None:
        """Take over `findings` in place of one's own."""
        self.counts, self.places = findings.counts, findings.places

    def without(self, kinds: frozenset[str]) -> FileFindings:
        """The findings of all other kinds."""
        counts = Counter({k: n for k, n in self.counts.items() if k not in kinds})
        return FileFindings(counts, self.places)

    def __str__(self) -> str:
        listed = sorted(self.counts.items())
        return ", ".join(
            f"{count} {kind.replace('_', ' ')} ({self.places[kind]})" for kind, count in listed
        )


def scan_folder(path: Path, kinds: Iterable[str] = KINDS) -> dict[str, int]:
    """Count how often each kind occurs in the files below `path` (or in the file `path`)."""
    total: Counter[str] = Counter()
    for counts in scan_files(path, kinds).values():
        total.update(counts)
    return dict(sorted(total.items()))


def scan_files(path: Path, kinds: Iterable[str] = KINDS) -> dict[str, dict[str, int]]:
    """Count by file: ``{"relative/path": {kind: count}}``, files without findings left out."""
    below = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [p for p in below if p.is_file() and ".git" not in p.relative_to(path).parts]
    counted: dict[str, dict[str, int]] = {}
    for file in files:
        name = file.relative_to(path).as_posix() if file != path else file.name
        findings = scan_file(name, file, kinds)
        if findings.counts:
            counted[name] = dict(sorted(findings.counts.items()))
    return counted


def scan_file(name: str, content: Path | bytes, kinds: Iterable[str] = KINDS) -> FileFindings:
    """Scan one file and its name.

    Args:
        name: Its path in its repo.
        content: The file, or its bytes.
        kinds: What is looked for.
    """
    kinds_set = frozenset(kinds)
    findings = FileFindings()
    scanner = _Scanner(kinds_set, findings)
    for part in _name_parts(name):
        scanner.text(part, "the file's name", 0)
    if isinstance(content, bytes):
        scanner.binary(io.BytesIO(content), "", 0)
    else:
        with content.open("rb") as file:
            scanner.binary(file, "", 0)
    return findings


class _Scanner:
    """Walks into one file and adds what is found to `findings`."""

    def __init__(self, kinds: frozenset[str], findings: FileFindings) -> None:
        self._kinds, self._findings = kinds, findings
        self._left_bytes = _ALL_UNPACKED_BYTES

    def binary(self, file: IO[bytes], location: str, depth: int) -> None:
        """Scan a file of any kind; `location` says where inside the outer file it is."""
        if depth > _NESTING:
            self._findings.add(UNREADABLE, location or "nested too deeply")
            return
        head = file.read(8192)
        file.seek(0)
        encoding = carriers.text_encoding(head)
        if carriers.has_columns(head):
            scan = self._parquet if carriers.has_columns(head) == "parquet" else self._arrow
            self._guarded(scan, file, location, depth)
        elif carriers.is_archive(head):
            scan = self._zip if carriers.is_archive(head) == "zip" else self._tar
            self._packed(scan, file, location, depth)
        elif opener := carriers.compression(head):
            self._packed(partial(self._compressed, opener), file, location, depth)
        elif carriers.is_opaque(head) and encoding != "utf-8":
            self._opaque(file, location)
        elif length := _safetensors_header(head):
            file.seek(8)
            self.text(
                file.read(length).decode("utf-8", "replace"), _join(location, "header"), depth
            )
        elif encoding:
            self._lines(file, encoding, location, depth)
            if encoding.startswith(("utf-16", "utf-32")):  # as a mark at its beginning says
                file.seek(0)
                self._printable(file, location, wide=False)
        else:
            self._unknown(head, file, location, depth)

    def _packed(self, scan: _Scan, file: IO[bytes], location: str, depth: int) -> None:
        """What is packed in a file, or else what stands before, between and behind it."""
        before = self._findings.counts.total()
        self._guarded(scan, file, location, depth)
        if self._findings.counts.total() == before:
            file.seek(0)
            self._printable(file, location)

    def _guarded(self, scan: _Scan, file: IO[bytes], location: str, depth: int) -> None:
        """`scan`, and where the file cannot be read its printable runs instead: text that begins
        like a file of another kind is text.
        """
        try:
            scan(file, location, depth)
        except Exception:  # damaged files raise whatever their libraries like
            file.seek(0)
            encoding = carriers.text_encoding(file.read(8192))
            file.seek(0)
            if encoding == "utf-8":
                self._lines(file, encoding, location, depth)
            else:
                self._opaque(file, location)

    def _opaque(self, file: IO[bytes], location: str) -> None:
        """What cannot be looked into: that is said, beside what can be seen of it."""
        self._findings.add(UNREADABLE, location or "the whole file")
        self._printable(file, location)

    def _unknown(self, head: bytes, file: IO[bytes], location: str, depth: int) -> None:
        """A binary file: what it may be, by a weak sign, or else its printable runs."""
        opener = carriers.may_be_compressed(head)
        if head[:4] == b"\xff\xff\xff\xff" and self._succeeds(self._arrow, file, location, depth):
            return
        if opener:
            self._succeeds(partial(self._compressed, opener), file, location, depth)
            file.seek(0)
        self._printable(file, location)
        file.seek(0)
        if _ends_as_zip(file):
            self._succeeds(self._zip, file, location, depth)

    def _succeeds(self, scan: _Scan, file: IO[bytes], location: str, depth: int) -> bool:
        """Whether `scan` can read the file; what it found in one that it cannot is left out."""
        before = self._findings.copy()
        try:
            scan(file, location, depth)
        except Exception:  # damaged files raise whatever their libraries like
            self._findings.restore(before)
            file.seek(0)
            return False
        return True

    def text(self, text: str, location: str, depth: int) -> None:
        """Scan text that is in memory."""
        for finding in scan_text(text, self._kinds):
            self._findings.add(finding.kind, location)
        self._hidden(text, location, depth)

    def _hidden(self, text: str, location: str, depth: int) -> None:
        """What escapes, base64 and its like hide."""
        if depth >= _NESTING:
            return
        for plain in carriers.unescaped(text):
            for finding in scan_text(plain, self._kinds):
                if plain[finding.start : finding.end] not in text:
                    self._findings.add(finding.kind, _join(location, "escaped"))
        for data in carriers.encoded(text):
            self.binary(io.BytesIO(data), _join(location, "encoded"), depth + 1)

    def _lines(self, file: IO[bytes], encoding: str, location: str, depth: int) -> None:
        """Text in blocks that overlap; what starts in the overlap belongs to the next block."""
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        lead, block, line = "", "", 1
        while True:
            data = file.read(_BLOCK_CHARS)
            block += decoder.decode(data, not data)
            cut = max(len(block) - _OVERLAP_CHARS, 0) if data else len(block)
            subject = lead + block
            for finding in scan_text(subject, self._kinds):
                start = finding.start - len(lead)
                if 0 <= start < cut:
                    number = line + block.count("\n", 0, start)
                    self._findings.add(finding.kind, _join(location, f"line {number}"))
            self._hidden(block if not data else block[:cut], _join(location, f"line {line}"), depth)
            if not data:
                return
            line += block.count("\n", 0, cut)
            lead, block = (lead + block[:cut])[-_LEAD_CHARS:], block[cut:]

    def _printable(self, file: IO[bytes], location: str, *, wide: bool = True) -> None:
        """The printable runs of a binary file; of a model's weights, those of its header."""
        is_model = file.read(4) == b"GGUF"
        file.seek(0)
        remaining = _MODEL_HEADER_BYTES if is_model else -1
        run = b""  # a run that continues in the next block
        while data := file.read(_BLOCK_CHARS):
            block = run + data
            end = len(block.rstrip(_PRINTABLE))
            is_long = len(block) - end > _OVERLAP_CHARS
            run = block[-_OVERLAP_CHARS if is_long else end :]
            self._runs(block if is_long else block[:end], location, wide)
            remaining -= len(data)
            if is_model and remaining <= 0:
                return
        self._runs(run, location, wide)

    def _runs(self, data: bytes, location: str, wide: bool) -> None:
        if runs := carriers.printable_runs(data, wide=wide):
            self.text("\n\n".join(runs), _join(location, "binary content"), _NESTING)

    def _zip(self, file: IO[bytes], location: str, depth: int) -> None:
        import zipfile

        with zipfile.ZipFile(file) as archive:
            self._labels([archive.comment], location)
            for member in archive.infolist():
                self._labels([member.filename, member.comment], location)
                if not member.is_dir():
                    self._member(archive.open(member), member.filename, location, depth)

    def _tar(self, file: IO[bytes], location: str, depth: int) -> None:
        import tarfile

        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                names = (member.name, member.linkname, member.uname, member.gname)
                self._labels([*names, *member.pax_headers.values()], location)
                if member.isfile() and (opened := archive.extractfile(member)):
                    self._member(opened, member.name, location, depth)

    def _labels(self, labels: Iterable[str | bytes], location: str) -> None:
        """Names and comments of what is packed."""
        for label in labels:
            text = label.decode("utf-8", "replace") if isinstance(label, bytes) else label
            for part in _name_parts(text):
                self.text(part, _join(location, "a member's name"), 0)

    def _member(self, file: IO[bytes], name: str, location: str, depth: int) -> None:
        inner = f"member {len(name)} characters" if scan_text(name) else f"member {name}"
        with file:
            self._unpacked(file, _join(location, inner), depth)

    def _compressed(
        self, opener: Callable[[Any], Any], file: IO[bytes], location: str, depth: int
    ) -> None:
        self._labels(_gzip_labels(file), location)
        with opener(file) as unpacked:
            self._unpacked(unpacked, _join(location, "compressed"), depth)

    def _unpacked(self, file: Any, location: str, depth: int) -> None:
        """Scan what is packed, as far as all of one file may be unpacked."""
        import tempfile

        left_bytes = min(_UNPACKED_BYTES, self._left_bytes)
        with tempfile.SpooledTemporaryFile(max_size=64 << 20) as copy:
            while block := file.read(1 << 20):
                left_bytes -= len(block)
                self._left_bytes -= len(block)
                if left_bytes < 0:
                    self._findings.add(UNREADABLE, location)
                    break
                copy.write(block)
            copy.seek(0)
            self.binary(copy, location, depth + 1)

    def _parquet(self, file: IO[bytes], location: str, depth: int) -> None:
        import pyarrow.parquet as pq

        # Without a small buffer it keeps all that it has read.
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as table:
            self._schema(table.schema_arrow, location)
            row = 0
            for batch in table.iter_batches(batch_size=1000):
                self._batch(batch, row, location, depth)
                row += batch.num_rows

    def _arrow(self, file: IO[bytes], location: str, depth: int) -> None:
        import pyarrow as pa

        data = pa.py_buffer(file.read())
        is_file = bytes(data[:6]) == b"ARROW1"
        source = pa.BufferReader(data)
        with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source) as reader:
            self._schema(reader.schema, location)
            row = 0
            batches = (
                (reader.get_batch(n) for n in range(reader.num_record_batches))
                if is_file
                else reader
            )
            for batch in batches:
                self._batch(batch, row, location, depth)
                row += batch.num_rows

        if not is_file and (remainder := data.slice(source.tell())).size:
            self.binary(io.BytesIO(remainder), location, depth + 1)

    def _schema(self, schema: Any, location: str) -> None:
        """Names and metadata of columns, and of what is inside them."""
        names: list[str] = []
        labels = dict(schema.metadata or {})
        labels.pop(b"ARROW:schema", None)
        self._metadata(labels, location)
        for column in schema:
            for inner in _fields(column):
                names.append(inner.name)
                self._metadata(inner.metadata or {}, location)
        self.text("\n".join(names), _join(location, "column names"), 0)

    def _metadata(self, labels: Mapping[bytes, bytes], location: str) -> None:
        for key, value in labels.items():
            text = f"{key.decode('utf-8', 'replace')}: {value.decode('utf-8', 'replace')}"
            self.text(text, _join(location, "metadata"), 0)

    def _batch(self, batch: Any, row: int, location: str, depth: int) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            for path, values in _leaves(name, column):
                where = _join(
                    location, f"column {mask(path)}, rows {row} to {row + batch.num_rows - 1}"
                )
                clean: set[str] = set()  # texts in which nothing was found before
                for value in values:
                    if value in clean:
                        continue
                    if isinstance(value, bytes):
                        self.binary(io.BytesIO(value), where, depth + 1)
                    elif isinstance(value, str):
                        count_before = self._findings.counts.total()
                        self.text(value, where, depth)
                        if self._findings.counts.total() == count_before:
                            clean.add(value)
                    elif abs(value) > _LONG_INTEGER:
                        named = path.rpartition(".")[2].replace("_", " ")
                        self.text(f"{named}: {value}", where, _NESTING)


def _fields(field: Any) -> Iterator[Any]:
    """A field of a schema, and all fields inside it."""
    import pyarrow as pa

    yield field
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    for number in range(kind.num_fields):
        yield from _fields(kind.field(number))


def _leaves(path: str, column: Any) -> Iterator[tuple[str, Iterator[Any]]]:
    """(path, values) of the text, binary and number columns inside `column`, of any Arrow type."""
    import pyarrow as pa
    import pyarrow.types as types

    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(path, column.storage)
    elif types.is_dictionary(kind):
        yield from _leaves(path, column.dictionary)
    elif types.is_run_end_encoded(kind):
        yield from _leaves(path, column.values)
    elif types.is_struct(kind):
        for number, inner in enumerate(column.flatten()):
            yield from _leaves(f"{path}.{kind.field(number).name}", inner)
    elif types.is_map(kind):
        yield from _leaves(f"{path}.key", column.keys)
        yield from _leaves(f"{path}.value", column.items)
    elif types.is_nested(kind) and not types.is_union(kind):
        inner = column.flatten()
        if inner.type in (pa.uint8(), pa.int8()):  # bytes, as some programs write them
            yield path, iter([inner.drop_null().cast(pa.uint8(), safe=False).to_numpy().tobytes()])
        else:
            yield from _leaves(path, inner)
    elif _holds_text(kind):
        yield path, (value for value in _values(column) if value)
    elif types.is_integer(kind) or types.is_decimal(kind) or types.is_floating(kind):
        yield path, (int(value) for value in column.to_pylist() if _is_whole(value))
    elif types.is_union(kind):
        yield path, (_plain(value) for value in column.to_pylist() if value is not None)


def _values(column: Any) -> list[Any]:
    """The texts of a column; those that are not UTF-8 as far as they are."""
    import pyarrow as pa

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
        return [value and value.decode("utf-8", "replace") for value in values]


def _is_whole(value: Any) -> bool:
    """Whether a number can be a phone's, a card's or an account's."""
    return value is not None and abs(value) > _LONG_INTEGER and value == value // 1


def _holds_text(kind: Any) -> bool:
    import pyarrow.types as types

    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(getattr(types, f"is_{name}")(kind) for name in names) or bool(
        types.is_fixed_size_binary(kind)
    )


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | bytes | int) else json.dumps(value, default=str)


def _name_parts(path: str) -> Iterator[str]:
    """A path as it is scanned: its parts, each without what follows its last dot too where the dot
    makes a difference.
    """
    for part in filter(None, path.split("/")):
        stem = part.rpartition(".")[0]
        yield part if scan_text(part) or not stem else stem if scan_text(stem) else part


def _ends_as_zip(file: IO[bytes]) -> bool:
    """Whether a zip archive stands behind something else in a file."""
    import zipfile

    is_zip = zipfile.is_zipfile(file)
    file.seek(0)
    return is_zip


def _gzip_labels(file: IO[bytes]) -> list[bytes]:
    """The name and the comment that gzip keeps of what it packed."""
    head = file.read(8192)
    file.seek(0)
    if head[:3] != b"\x1f\x8b\x08":
        return []
    start = 10
    if head[3] & 4:
        start += 2 + int.from_bytes(head[10:12], "little")
    count = bool(head[3] & 8) + bool(head[3] & 16)
    return head[start:].split(b"\0")[:count]


def _join(outer: str, inner: str) -> str:
    return f"{outer}, {inner}" if outer else inner


def _safetensors_header(head: bytes) -> int:
    """The length of a safetensors header, 0 for any other file."""
    length = int.from_bytes(head[:8], "little")
    return length if head[8:9] == b"{" and 2 <= length <= _HEADER_BYTES else 0
