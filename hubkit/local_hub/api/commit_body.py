"""The body of a commit: one JSON object a line, read as it arrives.

Contents of regular files go to a spool (memory, then disk), so that a commit of any size needs
little memory."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from hubkit.local_hub.api import http
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.git import BLOB, NewObject, blob_sha
from hubkit.local_hub.storage.objects import SHA256
from hubkit.local_hub.storage.paths import checked_path
from hubkit.local_hub.storage.trees import Pointer, parse_pointer
from hubkit.untrusted import JsonObject, has_more_values, parse_json

MAX_REGULAR_BYTES = 10 * 2**20
"""A file larger than this must be uploaded as a large file; preupload says so."""

MAX_LINE_BYTES = MAX_REGULAR_BYTES * 4 // 3 + 64 * 2**10
MAX_OPERATIONS = 100_000
_SPOOL_IN_MEMORY_BYTES = 16 * 2**20


class Spool:
    """Files' bytes, kept until they are written into git."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by `close`
            max_size=_SPOOL_IN_MEMORY_BYTES, dir=str(folder)
        )

    def add(self, data: bytes) -> NewObject:
        """Keep `data`; its git object reads them back when it is written."""
        start = self._file.seek(0, 2)
        self._file.write(data)
        return NewObject(BLOB, blob_sha(data), lambda: self._read(start, len(data)))

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return bytes(self._file.read(size))

    def close(self) -> None:
        """Forget everything."""
        self._file.close()


@dataclass
class CommitRequest:
    """A commit as the client asked for it."""

    spool: Spool
    summary: str = ""
    description: str = ""
    parent: str | None = None
    blobs: dict[str, NewObject] = field(default_factory=dict)
    pointers: dict[str, Pointer] = field(default_factory=dict)
    deleted_files: list[str] = field(default_factory=list)
    deleted_folders: list[str] = field(default_factory=list)
    seen_header: bool = False

    @property
    def message(self) -> str:
        """The commit's message as git keeps it: summary, empty line, description."""
        return f"{self.summary}\n\n{self.description}" if self.description else self.summary

    def take(self, line: bytes) -> None:
        """Read one line. Raises `Refusal` 400 or 422 for anything that is not a line of a
        commit.
        """
        if has_more_values(line, http.MAX_VALUES):
            raise Refusal(413, f"A line of the commit holds more than {http.MAX_VALUES} values.")
        try:
            item = parse_json(line)
        except ValueError:
            raise Refusal(400, "A line of the commit is not valid JSON.") from None
        value = item.get("value") if isinstance(item, dict) else None
        if not isinstance(value, dict):
            raise Refusal(400, "Each line of a commit is an object with 'key' and 'value'.")
        handlers: dict[str, Callable[[JsonObject], None]] = {
            "header": self._header,
            "file": self._file,
            "lfsFile": self._large_file,
            "deletedFile": lambda v: self.deleted_files.append(_path(v)),
            "deletedFolder": lambda v: self.deleted_folders.append(_path(v, folder=True)),
        }
        handler = handlers.get(str(item.get("key")))
        if handler is None:
            raise Refusal(400, f"Unknown operation in commit: {str(item.get('key'))[:40]!r}.")
        handler(value)

    def count(self) -> int:
        """How many operations there are so far."""
        return (
            len(self.blobs)
            + len(self.pointers)
            + len(self.deleted_files)
            + len(self.deleted_folders)
        )

    def _header(self, value: JsonObject) -> None:
        self.seen_header = True
        self.summary = http.field(value, "summary", str)[:10_000]
        self.description = http.field(value, "description", str, "")[:65_536]
        if not self.summary.strip():
            raise Refusal(400, "A commit needs a message.")
        self.parent = http.field(value, "parentCommit", str, "") or None

    def _file(self, value: JsonObject) -> None:
        path = _path(value)
        content, encoding = (
            http.field(value, "content", str),
            http.field(value, "encoding", str, "utf-8"),
        )
        data = _decoded(content, encoding)
        if len(data) > MAX_REGULAR_BYTES:
            raise Refusal(
                413,
                f"{path} is larger than {MAX_REGULAR_BYTES} bytes: upload it as a large file.",
            )
        pointer = parse_pointer(data)
        if pointer:  # git cannot tell it from a large file, so it must be one
            self.pointers[path] = pointer
            self.blobs.pop(path, None)
        else:
            self.blobs[path] = self.spool.add(data)
            self.pointers.pop(path, None)

    def _large_file(self, value: JsonObject) -> None:
        path, oid = _path(value), http.field(value, "oid", str)
        if http.field(value, "algo", str, "sha256") != "sha256" or not SHA256.fullmatch(oid):
            raise Refusal(400, f"{path}: a large file is named by its sha256.")
        size = value.get("size")
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
            raise Refusal(400, f"{path}: 'size' must be a number of bytes.")
        self.pointers[path] = Pointer(oid, -1 if size is None else size)
        self.blobs.pop(path, None)


def _path(value: JsonObject, *, folder: bool = False) -> str:
    path = http.field(value, "path", str)
    return checked_path(path.rstrip("/") if folder else path)


def _decoded(content: str, encoding: str) -> bytes:
    if encoding == "base64":
        try:
            return base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise Refusal(400, "The content of a file is not valid base64.") from None
    if encoding == "utf-8":
        try:
            return content.encode()
        except UnicodeEncodeError:
            raise Refusal(400, "The content of a file is not valid UTF-8.") from None
    raise Refusal(400, f"Unknown encoding: {encoding[:40]!r}.")


async def read_commit(stream: AsyncIterator[bytes], folder: Path) -> CommitRequest:
    """Read a commit from a request's body. The caller closes `.spool`. Raises `Refusal` 400, 413 or
    422.
    """
    request = CommitRequest(Spool(folder))
    try:
        async for line in _lines(stream):
            request.take(line)
            if request.count() > MAX_OPERATIONS:
                raise Refusal(413, f"A commit may hold at most {MAX_OPERATIONS} operations.")
        if not request.seen_header:
            raise Refusal(400, "A commit starts with a header line.")
    except BaseException:
        request.spool.close()
        raise
    return request


async def _lines(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    pending: list[bytes] = []
    size = 0
    async for chunk in stream:
        *whole, tail = chunk.split(b"\n")
        for part in whole:
            line = b"".join([*pending, part])
            pending, size = [], 0
            if len(line) > MAX_LINE_BYTES:
                raise _line_too_long()
            if line.strip():
                yield line
        pending.append(tail)
        size += len(tail)
        if size > MAX_LINE_BYTES:
            raise _line_too_long()
    last = b"".join(pending)
    if last.strip():
        yield last


def _line_too_long() -> Refusal:
    return Refusal(
        413,
        f"A line of the commit is longer than {MAX_LINE_BYTES} bytes; upload large files as such.",
    )
