"""Uploads by the Xet protocol: the chunks on disk, and how files are put together from them."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hubkit.files import write_whole
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.object_owners import link
from hubkit.local_hub.storage.objects import make_durable_folder, sealed, sealed_size
from hubkit.local_hub.storage.xet_format import Chunk, Segment, ShardFile, decode_chunk, scan_xorb

if TYPE_CHECKING:
    from hubkit.local_hub.storage.repos import Repo
    from hubkit.local_hub.storage.store import Store


SHARD_PATIENCE_S = 45
"""After this long a shard is acknowledged while its files are still put together; a commit waits
for them.
"""


_BLOCK_BYTES = 4 * 2**20


_KEY = "xet_space:"


_SPACE = re.compile(r"[A-Za-z0-9_.-]{1,120}")


ChunkPlace = tuple[str, int, int, str]
"""Where a chunk is now: object, offset, length; and the beginning of its sha256."""
_FORMAT, _SEALED = "xet_format", "sealed"


class XetStore:
    """The spaces on disk, and the assemblies under way."""

    def __init__(self, hub: Store) -> None:
        self._hub = hub
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="assemble")
        self._pending: dict[str, Future[None]] = {}

    def close(self) -> None:
        """Wait for assemblies under way."""
        self._workers.shutdown(wait=True)

    def space(self, user: str) -> str:
        """The name of a user's current space. It is made up, so that no client takes this Hub for a
        former one.
        """
        current = self._hub.settings.get(_KEY + user)
        return current or self.start_afresh(user)

    def start_afresh(self, user: str) -> str:
        """Give a user a new space, and forget what was sent to the old one; its name."""
        space = f"{secrets.token_hex(6)}-{user}"
        self._hub.settings.set(_KEY + user, space)
        for folder in (self._hub.root / "xet").glob(f"*-{user}"):
            if folder.name.partition("-")[2] == user:
                shutil.rmtree(folder, ignore_errors=True)
        return space

    def forget_everything(self) -> None:
        """Give every user a new space."""
        for row in self._hub.settings.rows("SELECT key FROM settings WHERE key LIKE ?", f"{_KEY}%"):
            self.start_afresh(row["key"].removeprefix(_KEY))

    def require_seals(self) -> None:
        """Forget what an earlier version of hubkit kept, without checksums."""
        if self._hub.settings.get(_FORMAT) != _SEALED:
            self.forget_everything()
            self._hub.settings.set(_FORMAT, _SEALED)

    def damaged(self) -> Iterator[Path]:
        """The files of uploads that do not hold what was written."""
        for path in sorted((self._hub.root / "xet").glob("*/*.*")):
            if path.suffix not in (".xorb", ".map"):
                continue  # one that is being written
            try:
                sealed_size(path)
            except FileNotFoundError:
                continue  # put together, or forgotten, meanwhile
            except (OSError, ValueError):
                yield path

    def folder(self, space: str) -> Path:
        """The folder of a space. Raises `Refusal` 404 for a former one."""
        if (
            not _SPACE.fullmatch(space)
            or self._hub.settings.get(_KEY + space.partition("-")[2]) != space
        ):
            raise Refusal(404, "This Xet address is no longer valid; upload again.")
        folder = self._hub.root / "xet" / space
        make_durable_folder(folder)
        return folder

    def accept(self, space: str, repo: Repo, files: list[ShardFile]) -> None:
        """Put the files of a shard together. Returns when done, or after `SHARD_PATIENCE_S` with
        the rest under way.
        """
        future = self._workers.submit(self._assemble_all, space, repo, files)
        for file in files:
            if file.sha256:
                self._pending[file.sha256] = future
        finished, _ = wait_for([future], timeout=SHARD_PATIENCE_S)
        if finished:
            self._forget(future)
            future.result()

    def settle(self, oid: str) -> None:
        """Wait until an object that is being put together is here. Raises what its assembly
        raised.
        """
        future = self._pending.get(oid)
        if future is not None:
            try:
                future.result()
            finally:
                self._forget(future)

    def _forget(self, future: Future[None]) -> None:
        for oid in [oid for oid, known in list(self._pending.items()) if known is future]:
            self._pending.pop(oid, None)

    def _assemble_all(self, space: str, repo: Repo, files: list[ShardFile]) -> None:
        try:
            with self._hub.using_objects(), _Xorbs(self._hub, self.folder(space)) as xorbs:
                oids = [self._assemble(xorbs, file) for file in files]
                link(self._hub, repo, oids)
                xorbs.replace_by_maps()
        except UnknownXorbError:
            # The client remembers an upload that we do not: under a new address it will send
            # everything again.
            self.start_afresh(space.partition("-")[2])
            raise

    def _assemble(self, xorbs: _Xorbs, file: ShardFile) -> str:
        with self._hub.objects.incoming() as incoming:
            places: list[tuple[str, int, int, int, str]] = []
            buffer = bytearray()
            for segment in file.segments:
                for index, data in xorbs.read(segment):
                    offset = incoming.size + len(buffer)
                    places.append((segment.xorb, index, offset, len(data), _digest(data)))
                    buffer += data
                    if len(buffer) >= _BLOCK_BYTES:
                        incoming.write(buffer)
                        buffer = bytearray()
            incoming.write(buffer)
            oid = incoming.keep(file.sha256, file.size)
        for xorb, index, offset, size, digest in places:
            xorbs.record_place(xorb, index, (oid, offset, size, digest))
        return oid


def _digest(chunk: bytes) -> str:
    return hashlib.sha256(chunk).hexdigest()[:16]


class UnknownXorbError(Refusal):
    """A shard refers to a xorb that was never sent here, is gone, or was damaged since."""

    def __init__(self, xorb: str) -> None:
        super().__init__(400, f"Xorb {xorb} is not here; upload again.")


class _Xorbs:
    """The xorbs that one shard needs, opened: uploaded ones, or maps of where their chunks went."""

    def __init__(self, hub: Store, folder: Path) -> None:
        self._hub = hub
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._chunks: dict[str, list[Chunk]] = {}
        self._maps: dict[str, list[ChunkPlace]] = {}
        self._places: dict[str, dict[int, ChunkPlace]] = {}

    def __enter__(self) -> _Xorbs:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def read(self, segment: Segment) -> Iterator[tuple[int, bytes]]:
        """The chunks of a segment: index and bytes. Raises `Refusal` 400."""
        self._open(segment.xorb)
        count = len(self._chunks.get(segment.xorb) or self._maps[segment.xorb])
        if segment.end > count:
            raise Refusal(
                400, f"Malformed upload: xorb {segment.xorb} has {count} chunks, not {segment.end}."
            )
        size = 0
        for index in range(segment.first, segment.end):
            data = self._chunk(segment.xorb, index)
            size += len(data)
            yield index, data
        if size != segment.size:
            raise Refusal(400, "Malformed upload: a segment does not have the promised length.")

    def _open(self, xorb: str) -> None:
        if xorb in self._chunks or xorb in self._maps:
            return
        raw, mapped = self._folder / f"{xorb}.xorb", self._folder / f"{xorb}.map"
        try:
            if raw.exists():
                self._files[xorb] = raw.open("rb")
                self._chunks[xorb] = scan_xorb(self._files[xorb], sealed_size(raw))
            else:
                content = json.loads(mapped.read_bytes()[: sealed_size(mapped)])
                names = content["objects"]
                self._maps[xorb] = [(names[at], *place) for at, *place in content["chunks"]]
        except (FileNotFoundError, ValueError, LookupError, TypeError, Refusal) as error:
            raise UnknownXorbError(xorb) from error  # absent, or damaged since it was stored

    def _chunk(self, xorb: str, index: int) -> bytes:
        if xorb in self._chunks:
            chunk, file = self._chunks[xorb][index], self._files[xorb]
            file.seek(chunk.offset)
            return decode_chunk(file.read(chunk.packed), chunk.scheme, chunk.size)
        oid, offset, size, digest = self._maps[xorb][index]
        if oid not in self._files:
            try:
                self._files[oid] = self._hub.objects.path(oid).open("rb")
            except FileNotFoundError:
                raise UnknownXorbError(xorb) from None
        self._files[oid].seek(offset)
        data = self._files[oid].read(size)
        if _digest(data) != digest:  # the large file was damaged
            raise UnknownXorbError(xorb)
        return data

    def record_place(self, xorb: str, index: int, position: ChunkPlace) -> None:
        """A chunk is now also at this place in an object."""
        self._places.setdefault(xorb, {})[index] = position

    def replace_by_maps(self) -> None:
        """Remove each uploaded xorb all of whose chunks are in objects now."""
        for xorb, places in self._places.items():
            chunks = self._chunks.get(xorb)
            if chunks is None or len(places) < len(chunks):
                continue
            names = sorted({place[0] for place in places.values()})
            rows = [[names.index(oid), *rest] for _, (oid, *rest) in sorted(places.items())]
            content = json.dumps({"objects": names, "chunks": rows}, separators=(",", ":"))
            write_whole(self._folder / f"{xorb}.map", sealed(content.encode()), durable=True)
            (self._folder / f"{xorb}.xorb").unlink(missing_ok=True)
