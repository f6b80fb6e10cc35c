"""The journal of a run: each acknowledged turn, on disk before its dialogue continues.

One append-only file of lines, ``crc32 (8 hex digits) SPACE json NEWLINE``. Appends from many
dialogues are written and synced together by one thread, so that a sync costs each of them little.
What a torn write can leave (a last line without its end, a line whose sum is wrong) is recognised,
counted and left out; nothing before it is lost.

The file holds only what no shard holds yet. After each shard a new file is begun with the turns of
the dialogues that are still open, and put in place by a rename; the newest whole file alone counts.
So the journal stays small and resuming is quick however long the run."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import orjson

from hubkit.errors import DiskFullError, SourceError
from hubkit.files import sync_folder
from hubkit.untrusted import JsonObject

Record = JsonObject
_SYNC_INTERVAL_S = 1.0


def encode(record: Record) -> bytes:
    """One line of the journal."""
    payload = orjson.dumps(record)
    return b"%08x %b\n" % (zlib.crc32(payload), payload)


def decode(line: bytes) -> Record | None:
    """The record in a line without its newline; None when the line is not whole."""
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]) or line[8:9] != b" ":
            return None
        record = orjson.loads(line[9:])
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read(path: Path) -> Iterator[Record | None]:
    """The records of a journal file in order; None for each line that is torn or damaged."""
    try:
        with path.open("rb") as file:
            for line in file:
                yield decode(line[:-1]) if line.endswith(b"\n") else None
    except OSError as error:
        raise SourceError(
            f"the journal {path} cannot be read: {error.strerror}; correct that, or "
            "remove it to ask for its turns again"
        ) from None


def newest(folder: Path) -> Path | None:
    """The journal file in `folder` that counts, or None. Files of other names (a copy that a user
    made) do not.
    """
    files = sorted(
        path
        for path in folder.glob("journal-*.log")
        if path.stem.removeprefix("journal-").isdecimal()
    )
    return files[-1] if files else None


class Journal:
    """Appends to a fresh file in `folder`, begun with `records`; older files are removed once it is
    in place.

    `fsync`: ``turn`` (an append is acknowledged once it is synced) or ``interval`` (once it is
    written; synced once a second). Raises `DiskFullError`, or `SourceError` for another failure to
    write; after one, every append fails."""

    def __init__(self, folder: Path, records: Iterable[Record], *, fsync: str = "turn") -> None:
        self._folder, self._each = folder, fsync == "turn"
        self._buffer: list[bytes] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._failure: Exception | None = None
        self._unsynced = self._due = False
        self._fd = self._begin(records)
        self._timer: asyncio.TimerHandle | None = None
        self._being_written: list[asyncio.Future[None]] = []
        self._loop = asyncio.get_running_loop()
        self._batches: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, daemon=True, name="hubkit-journal")
        self._thread.start()

    def _begin(self, records: Iterable[Record]) -> int:
        """A new file that already holds `records`, durably, under the next number."""
        before = newest(self._folder)
        number = int(before.stem.split("-")[1]) + 1 if before else 0
        path = self._folder / f"journal-{number:08d}.log"
        part = path.with_suffix(".part")
        try:
            fd = os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o600)
            for record in records:
                _write(fd, encode(record))
            os.fsync(fd)
            part.rename(path)
            sync_folder(self._folder)
        except OSError as error:
            raise _as_ours(error, self._folder) from None
        for old in self._folder.glob("journal-*"):
            if old != path:
                old.unlink(missing_ok=True)
        return fd

    def note(self, record: Record) -> None:
        """Append without waiting; it is on disk no later than the next awaited append."""
        if self._failure is None:
            self._buffer.append(encode(record))

    async def append(self, record: Record) -> None:
        """Append, and return once the record is durable (in the sense of `fsync`)."""
        if self._failure is not None:
            raise self._failure
        self._buffer.append(encode(record))
        if not self._each:
            self._write_now()
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(future)
        if not self._busy and not self._due:
            self._due = True
            self._loop.call_soon(self._kick)  # after what else was answered at this moment
        await future

    def _write_now(self) -> None:
        """The `interval` policy: hand the bytes to the kernel at once (always here, so in order),
        sync later.
        """
        batch, self._buffer = b"".join(self._buffer), []
        try:
            _write(self._fd, batch)
        except OSError as error:
            self._failure = _as_ours(error, self._folder)
            raise self._failure from None
        if not self._unsynced:
            self._unsynced = True
            self._timer = self._loop.call_later(_SYNC_INTERVAL_S, self._sync_soon)

    def _sync_soon(self) -> None:
        if self._busy:
            self._timer = self._loop.call_later(_SYNC_INTERVAL_S, self._sync_soon)
        else:
            self._kick()

    def _kick(self) -> None:
        self._due = False
        if not self._busy and (self._buffer or self._unsynced):
            if not self._each and self._buffer:
                self._write_now()
            self._busy = True
            self._idle.clear()
            batch, self._buffer = b"".join(self._buffer), []
            self._being_written, self._waiting = self._waiting, []
            self._unsynced = False
            self._batches.put(batch)

    def _write_all(self) -> None:
        """The thread that writes and syncs, batch after batch, until it is given None."""
        while (batch := self._batches.get()) is not None:
            error: Exception | None = None
            try:
                _write(self._fd, batch)
                os.fdatasync(self._fd)
            except Exception as problem:  # whatever it is, the run must hear of it
                error = problem
            with suppress(RuntimeError):  # the loop is closed: nothing waits any more
                self._loop.call_soon_threadsafe(self._committed, error)

    def _committed(self, error: Exception | None) -> None:
        self._busy = False
        self._idle.set()
        waiting, self._being_written = self._being_written, []
        if error is not None:
            self._failure = (
                _as_ours(error, self._folder)
                if isinstance(error, OSError)
                else SourceError(str(error))
            )
            waiting += self._waiting
        for future in waiting:
            if not future.done():
                future.set_exception(self._failure) if self._failure else future.set_result(None)
        if self._failure is None:
            self._kick()

    async def rotate(self, records: Iterable[Record]) -> None:
        """Begin a new file with `records` (all that still matters); what was appended before is
        superseded.
        """
        while self._busy:
            await self._idle.wait()
        waiting, self._waiting = self._waiting, []
        self._buffer = []
        old, self._fd = self._fd, self._begin(records)
        os.close(old)
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def close(self) -> None:
        """Write and sync what is left."""
        if self._timer is not None:
            self._timer.cancel()
        while self._busy or (self._failure is None and (self._buffer or self._unsynced)):
            self._kick()
            await self._idle.wait()
            await asyncio.sleep(0)
        self._batches.put(None)
        self._thread.join()
        os.close(self._fd)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _as_ours(error: OSError, folder: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"no space left for the journal in {folder}; free some and run the same "
            "command: it resumes there"
        )
    return SourceError(f"the journal in {folder} cannot be written: {error.strerror or error}")
