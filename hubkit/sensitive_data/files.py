"""The texts inside files of any kind, scanned: where a value stands, never the value.

Read are text in UTF-8, UTF-16 and UTF-32 (others as Latin-1), JSON's escapes, base64 inside text,
every column of every Arrow type with its name and metadata, headers of weight files, members of
archives and compressed files, and the printable runs of any other binary file."""

from __future__ import annotations

import base64
import binascii
import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hubkit.sensitive_data.scanner import KINDS, mask, scan_text

UNREADABLE = "unreadable"  # the kind of a member that is too deep or too large to be looked into
_BLOCK_CHARS = 1 << 20
_OVERLAP_CHARS = 4096  # of the next block: no secret is cut in two
_LEAD_CHARS = 64  # of the block before: the words before a number
_NESTING = 4
_UNPACKED_BYTES = 1 << 30  # of one compressed file
_MODEL_HEADER_BYTES = 64 << 20  # of a GGUF file: its metadata and tokenizer lie before the tensors
_HEADER_BYTES = 100 << 20  # the most that safetensors allows
_BINARY_RUN = re.compile(rb"[\x20-\x7e\t\r\n]{12,65536}")
_BINARY_WIDE_RUN = re.compile(rb"(?:[\x20-\x7e]\0){12,65536}")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{24,}={0,2}")
_LONG_INTEGER = 10**7


@dataclass
class FileFindings:
    """What was found in one file: how often each kind, and where each kind was first seen."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, location: str) -> None:
        """Count one finding."""
        self.counts[kind] += 1
        self.places.setdefault(kind, location)

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
    plain = name.replace("/", " / ")
    for finding in scan_text(plain, kinds_set) or scan_text(plain.rpartition(".")[0], kinds_set):
        findings.add(finding.kind, "the file's name")
    scanner = _Scanner(kinds_set, findings)
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

    def binary(self, file: IO[bytes], location: str, depth: int) -> None:
        """Scan a file of any kind; `location` says where inside the outer file it is."""
        if depth > _NESTING:
            self._findings.add(UNREADABLE, location or "nested too deeply")
            return
        head = file.read(8192)
        file.seek(0)
        if head[:4] == b"PAR1":
            self._guarded(self._parquet, file, location, depth)
        elif head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff":
            self._guarded(self._arrow, file, location, depth)
        elif head[:4] == b"PK\x03\x04":
            self._guarded(self._zip, file, location, depth)
        elif head[257:262] == b"ustar":
            self._guarded(self._tar, file, location, depth)
        elif opener := _compression(head):
            self._guarded(lambda f, p, d: self._compressed(opener, f, p, d), file, location, depth)
        elif length := _safetensors_header(head):
            file.seek(8)
            self.text(
                file.read(length).decode("utf-8", "replace"), _join(location, "header"), depth
            )
        elif encoding := _encoding(head):
            self._lines(file, encoding, location, depth)
        else:
            self._printable(file, location)

    def _guarded(self, scan: Any, file: IO[bytes], location: str, depth: int) -> None:
        """`scan`, and where the file is damaged its printable runs instead."""
        try:
            scan(file, location, depth)
        except Exception:  # damaged files raise whatever their libraries like
            file.seek(0)
            self._printable(file, location)

    def text(self, text: str, location: str, depth: int) -> None:
        """Scan text that is in memory."""
        for finding in scan_text(text, self._kinds):
            self._findings.add(finding.kind, location)
        self._hidden(text, location, depth)

    def _hidden(self, text: str, location: str, depth: int) -> None:
        """What base64 hides."""
        if depth >= _NESTING:
            return
        for match in _BASE64.finditer(text):
            if (data := _decoded(match[0])) is not None:
                self.binary(io.BytesIO(data), _join(location, "base64"), depth + 1)

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

    def _printable(self, file: IO[bytes], location: str) -> None:
        """The printable runs of a binary file; of a model's weights, those of its header."""
        is_model = file.read(4) == b"GGUF"
        file.seek(0)
        remaining = _MODEL_HEADER_BYTES if is_model else -1
        while data := file.read(_BLOCK_CHARS):
            runs = [match[0].decode("ascii") for match in _BINARY_RUN.finditer(data)]
            runs += [match[0].decode("utf-16-le") for match in _BINARY_WIDE_RUN.finditer(data)]
            if runs:
                self.text("\n\n".join(runs), _join(location, "binary content"), _NESTING)
            remaining -= len(data)
            if is_model and remaining <= 0:
                return

    def _zip(self, file: IO[bytes], location: str, depth: int) -> None:
        import zipfile

        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    self._member(
                        archive.open(member), member.filename, member.file_size, location, depth
                    )

    def _tar(self, file: IO[bytes], location: str, depth: int) -> None:
        import tarfile

        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isfile() and (opened := archive.extractfile(member)):
                    self._member(opened, member.name, member.size, location, depth)

    def _member(self, file: IO[bytes], name: str, size: int, location: str, depth: int) -> None:
        inner = _join(
            location, f"member {len(name)} characters" if scan_text(name) else f"member {name}"
        )
        self.text(name.replace("/", " / "), _join(location, "a member's name"), _NESTING)
        if size > _UNPACKED_BYTES:
            self._findings.add(UNREADABLE, inner)
            return
        with file:
            self.binary(io.BytesIO(file.read(_UNPACKED_BYTES)), inner, depth + 1)

    def _compressed(self, opener: Any, file: IO[bytes], location: str, depth: int) -> None:
        import tempfile

        with opener(file) as unpacked, tempfile.SpooledTemporaryFile(max_size=64 << 20) as copy:
            total = 0
            while block := unpacked.read(1 << 20):
                total += len(block)
                if total > _UNPACKED_BYTES:
                    self._findings.add(UNREADABLE, _join(location, "compressed"))
                    break
                copy.write(block)
            copy.seek(0)
            self.binary(copy, _join(location, "compressed"), depth + 1)

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
        with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(data) as reader:
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

    def _schema(self, schema: Any, location: str) -> None:
        for key, value in (schema.metadata or {}).items():
            if key != b"ARROW:schema":
                text = f"{key.decode('utf-8', 'replace')}: {value.decode('utf-8', 'replace')}"
                self.text(text, _join(location, "metadata"), 0)
        self.text("\n".join(schema.names), _join(location, "column names"), _NESTING)
        for column in schema:
            for key, value in (column.metadata or {}).items():
                text = f"{key.decode('utf-8', 'replace')}: {value.decode('utf-8', 'replace')}"
                self.text(text, _join(location, "metadata"), _NESTING)

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
                        found = self._findings.counts.total()
                        self.text(value, where, depth)
                        if self._findings.counts.total() == found:
                            clean.add(value)
                    elif abs(value) > _LONG_INTEGER:
                        named = path.rpartition(".")[2].replace("_", " ")
                        self.text(f"{named}: {value}", where, _NESTING)


def _leaves(path: str, column: Any) -> Iterator[tuple[str, Iterator[Any]]]:
    """(path, values) of the text, binary and integer columns inside `column`, of any Arrow type."""
    import pyarrow as pa
    import pyarrow.types as types

    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(path, column.storage)
    elif types.is_dictionary(kind):
        yield from _leaves(path, column.dictionary)
    elif types.is_struct(kind):
        for number, inner in enumerate(column.flatten()):
            yield from _leaves(f"{path}.{kind.field(number).name}", inner)
    elif types.is_map(kind):
        yield from _leaves(f"{path}.key", column.keys)
        yield from _leaves(f"{path}.value", column.items)
    elif types.is_nested(kind) and not types.is_union(kind):
        yield from _leaves(path, column.flatten())
    elif _holds_text(kind) or types.is_integer(kind) or types.is_decimal(kind):
        yield path, (value for value in column.to_pylist() if value)
    elif types.is_union(kind) or types.is_run_end_encoded(kind):
        yield path, (_plain(value) for value in column.to_pylist() if value is not None)


def _holds_text(kind: Any) -> bool:
    import pyarrow.types as types

    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(getattr(types, f"is_{name}")(kind) for name in names) or bool(
        types.is_fixed_size_binary(kind)
    )


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | bytes | int) else json.dumps(value, default=str)


def _join(outer: str, inner: str) -> str:
    return f"{outer}, {inner}" if outer else inner


def _compression(head: bytes) -> Any:
    """What opens a file that begins so, where it is compressed."""
    import bz2
    import gzip
    import lzma

    if head[:2] == b"\x1f\x8b":
        return gzip.open
    if head[:3] == b"BZh":
        return bz2.open
    if head[:6] == b"\xfd7zXZ\0":
        return lzma.open
    if head[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader
    return None


def _safetensors_header(head: bytes) -> int:
    """The length of a safetensors header, 0 for any other file."""
    length = int.from_bytes(head[:8], "little")
    return length if head[8:9] == b"{" and 2 <= length <= _HEADER_BYTES else 0


_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def _encoding(head: bytes) -> str | None:
    """The encoding of a text file that begins so; None for a binary file."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        even, odd = head[0::2].count(0), head[1::2].count(0)
        if odd > 0.7 * len(head[1::2]) and even == 0:
            return "utf-16-le"
        if even > 0.7 * len(head[0::2]) and odd == 0:
            return "utf-16-be"
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        controls = sum(byte < 9 or 13 < byte < 32 for byte in head)
        return "latin-1" if controls < 0.01 * len(head) else None
    return "utf-8"


def _decoded(value: str) -> bytes | None:
    """What base64 text stands for, where that is text or a compressed file."""
    if len(set(value)) < 8:
        return None
    padded = value.rstrip("=").replace("-", "+").replace("_", "/")
    padded = padded[: len(padded) - (len(padded) % 4 == 1)]
    try:
        data = base64.b64decode(padded + "=" * (-len(padded) % 4))
    except (ValueError, binascii.Error):
        return None
    if _compression(data[:16]) or data[:4] in (b"PK\x03\x04", b"PAR1"):
        return data
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in data[:512])
    return data if printable > 0.95 * len(data[:512]) else None
