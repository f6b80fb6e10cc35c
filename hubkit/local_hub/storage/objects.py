"""Large files, each stored once under its sha256.

A file enters through `Incoming`: it is hashed while it is written, and only bytes that match what
was promised are renamed into place (fsync of the file, rename, fsync of the folder). A crash leaves
a temporary file, which the sweep at the next start removes; never a partial object."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hubkit.files import sync_folder
from hubkit.local_hub.errors import Refusal

SHA256 = re.compile(r"[0-9a-f]{64}")
DAMAGED_SUFFIX = ".damaged"
_BLOCK_BYTES = 1 << 20


def make_durable_folder(path: Path) -> None:
    """`mkdir -p`, each new name made durable."""
    if not path.is_dir():
        make_durable_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


SEAL_BYTES = 32


def sealed(data: bytes) -> bytes:
    """`data`, followed by its sha256."""
    return data + hashlib.sha256(data).digest()


def sealed_size(path: Path) -> int:
    """How many bytes a file holds before their sha256. Raises `ValueError` where they are not those
    that were written, `OSError` where there is no such file.
    """
    digest, size = hashlib.sha256(), path.stat().st_size - SEAL_BYTES
    with path.open("rb") as file:
        remaining = size
        while remaining > 0 and (block := file.read(min(remaining, _BLOCK_BYTES))):
            digest.update(block)
            remaining -= len(block)
        if remaining or file.read() != digest.digest():
            raise ValueError(f"{path.name} does not hold what was written")
    return size


class Incoming:
    """A large file on its way in. Use as a context manager: what is not `keep`t is removed."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.path = objects.temporary / f"in-{secrets.token_hex(8)}"
        self._file = self.path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        self._hash.update(view)
        self.size += len(view)
        while view:
            view = view[self._file.write(view) :]

    def keep_sealed(self, target: Path) -> None:
        """Move the bytes to `target`, with their sha256 behind them (see `sealed_size`)."""
        view = memoryview(self._hash.digest())
        while view:
            view = view[self._file.write(view) :]
        self._file.close()
        self.path.replace(target)

    def keep(self, oid: str | None = None, size: int | None = None) -> str:
        """Move the bytes into place; their sha256. Raises `Refusal` 400 where they are not what was
        promised.
        """
        digest = self._hash.hexdigest()
        if size is not None and size != self.size:
            raise Refusal(400, f"Expected {size} bytes and received {self.size}.")
        if oid is not None and oid != digest:
            raise Refusal(400, f"The sha256 of the received bytes is {digest}, not {oid}.")
        os.fsync(self._file.fileno())
        self._file.close()
        target = self._objects.path(digest)
        make_durable_folder(target.parent)
        self.path.chmod(0o444)
        self.path.replace(target)
        sync_folder(target.parent)
        self._objects.note_intact(digest)
        return digest

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class Objects:
    """The folder of large files."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder = folder
        self.temporary = temporary
        self._intact: dict[str, int] = {}

    def is_known_intact(self, oid: str) -> bool:
        """Whether this file was found to match its hash since it was last written."""
        try:
            return self._intact.get(oid) == self.path(oid).stat().st_ctime_ns
        except FileNotFoundError:
            return False

    def note_intact(self, oid: str) -> None:
        """Remember that this file was just found to match its hash."""
        self._intact[oid] = self.path(oid).stat().st_ctime_ns

    def is_intact(self, oid: str) -> bool:
        """Whether this file is present and has its hash: read once, then known."""
        if self.is_known_intact(oid):
            return True
        try:
            with self.path(oid).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return False
        if digest != oid:
            self.set_aside(oid)
            return False
        self.note_intact(oid)
        return True

    def set_aside(self, oid: str) -> None:
        """Keep a damaged file under another name, so that it can be uploaded again."""
        path = self.path(oid)
        with suppress(FileNotFoundError):
            path.rename(path.with_name(oid + DAMAGED_SUFFIX))

    def path(self, oid: str) -> Path:
        """Where the file of this sha256 is, or would be. Raises `Refusal` 400 for anything that is
        not a sha256.
        """
        if not SHA256.fullmatch(oid):
            raise Refusal(400, f"Not a sha256: {oid[:80]!r}.")
        return self.folder / oid[:2] / oid[2:4] / oid

    def size(self, oid: str) -> int | None:
        """Its size in bytes, or None where there is no such file."""
        try:
            return self.path(oid).stat().st_size
        except FileNotFoundError:
            return None

    def touch(self, oid: str) -> None:
        """Mark this file as about to be used, so that garbage collection keeps it for now."""
        os.utime(self.path(oid))

    def take(self, path: Path, oid: str) -> None:
        """Move a file that is on this disk, was synced, and has this hash, into place."""
        target = self.path(oid)
        make_durable_folder(target.parent)
        path.chmod(0o444)
        path.replace(target)
        sync_folder(target.parent)
        self.note_intact(oid)

    def incoming(self) -> Incoming:
        """Start taking a new file."""
        return Incoming(self)

    def __iter__(self) -> Iterator[str]:
        for path in sorted(self.folder.glob("??/??/*")):
            if SHA256.fullmatch(path.name):
                yield path.name

    def remove(self, oid: str) -> None:
        """Remove a file."""
        self.path(oid).unlink(missing_ok=True)
