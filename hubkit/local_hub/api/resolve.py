"""Downloads: HEAD and GET of one file at a revision, with ranges and validators."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import os
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from hubkit.local_hub.api.http import Call, require_gate
from hubkit.local_hub.apps.upstream import Transfer
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.git import DEFAULT_BRANCH
from hubkit.local_hub.storage.objects import Objects
from hubkit.local_hub.storage.repos import Repo, commit_of, git

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_BLOCK_BYTES = 1 << 20
_SHOWN_AS_IS = {
    "image/png",
    "image/jpeg",
    "image/gif",
    "image/webp",
    "audio/wav",
    "audio/mpeg",
    "video/mp4",
}


@dataclass(frozen=True)
class RepoFile:
    """One file at one commit: its bytes (regular) or the object that holds them (large)."""

    commit: str
    path: str
    etag: str
    data: bytes | None
    pointer: trees.Pointer | None


def find_file(
    call: Call, repo: Repo, revision: str, path: str, *, content: bool = True
) -> RepoFile:
    """The file at a revision. Raises `Refusal` 404 RevisionNotFound or EntryNotFound (with the
    commit, so that clients can remember that it is absent)."""
    with git(call.hub, repo) as opened:
        commit = commit_of(opened, revision)
        entry = trees.find(opened, opened.commit(commit).tree, path)
        sha = opened.public_id(commit)
        if entry is None or not entry.is_file:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers={"X-Repo-Commit": sha})
        info = trees.blob_info(opened, entry.sha)
        if info.pointer:
            return RepoFile(sha, path, info.pointer.oid, None, info.pointer)
        return RepoFile(sha, path, entry.sha.decode(), opened.blob(entry.sha), None)


def resolve(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET or HEAD …/resolve/{rev}/{path}."""
    if len(tail) < 2:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    require_gate(call, repo)
    file = find_file(call, repo, tail[0] or DEFAULT_BRANCH, "/".join(tail[1:]))
    name = file.path.rpartition("/")[2]
    headers = {
        "X-Repo-Commit": file.commit,
        "ETag": f'"{file.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}",
        "Cache-Control": "no-cache",
        # A file in a repository must never run as a page of this server.
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if file.pointer:
        headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(file.pointer.size)}
        if repo.upstream and call.hub.objects.size(file.pointer.oid) is None:
            return _transfer_response(call, repo, file, headers, media_type(name))
        return large_file_response(call, file.pointer.oid, headers, media_type(name))
    assert file.data is not None
    return _bytes_response(call, file.data, headers, media_type(name))


def media_type(name: str) -> str:
    """A type under which a browser shows a file but never runs it."""
    guess = mimetypes.guess_type(name)[0] or "application/octet-stream"
    if guess in _SHOWN_AS_IS or guess == "application/json":
        return guess
    is_text = guess.startswith("text/") or name.endswith(
        (".jsonl", ".yaml", ".yml", ".toml", ".md", ".py")
    )
    return "text/plain; charset=utf-8" if is_text else "application/octet-stream"


def requested_range(call: Call, size: int, etag: str) -> tuple[int, int] | None:
    """First and one-past-last byte of a `Range` header, None for the whole. Raises `Refusal`
    416.
    """
    text = call.request.headers.get("range")
    if_range = call.request.headers.get("if-range")
    if not text or (if_range is not None and if_range != etag):
        return None
    match = _RANGE.fullmatch(text.replace(" ", ""))
    if match is None:
        if text.count(",") and text.startswith("bytes="):
            return None  # several ranges: we may answer with the whole
        raise _unsatisfiable(size)
    first, last = match.groups()
    if not first and not last:
        raise _unsatisfiable(size)
    start, end = (
        (max(0, size - int(last)), size)
        if not first
        else (int(first), min(int(last or size), size - 1) + 1)
    )
    if start >= end:
        raise _unsatisfiable(size)
    return start, end


def _unsatisfiable(size: int) -> Refusal:
    return Refusal(
        416,
        "The requested range is not in this file.",
        headers={"Content-Range": f"bytes */{size}"},
    )


def _not_modified(call: Call, headers: dict[str, str]) -> bool:
    header = call.request.headers.get("if-none-match")
    tags = {tag.strip().removeprefix("W/") for tag in (header or "").split(",")}
    return bool(header) and (header == "*" or headers.get("ETag", "-") in tags)


def _window(call: Call, size: int, headers: dict[str, str]) -> tuple[int, int, int]:
    """Status, start and end of what to send; sets Content-Length and Content-Range."""
    span = requested_range(call, size, headers.get("ETag", ""))
    start, end = span or (0, size)
    headers["Content-Length"] = str(end - start)
    if span is None:
        return 200, start, end
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return 206, start, end


def _bytes_response(call: Call, data: bytes, headers: dict[str, str], kind: str) -> Response:
    if _not_modified(call, headers):
        return Response(status_code=304, headers=headers)
    status, start, end = _window(call, len(data), headers)
    body = b"" if call.method == "HEAD" else data[start:end]
    return Response(body, status, headers, media_type=kind)


def large_file_response(
    call: Call, oid: str, headers: dict[str, str], kind: str = "application/octet-stream"
) -> Response:
    """Stream (a range of) a large object."""
    size = call.hub.objects.size(oid)
    if size is None:
        raise damaged_file(oid)
    if _not_modified(call, headers):
        return Response(status_code=304, headers=headers)
    status, start, end = _window(call, size, headers)
    if call.method == "HEAD":
        return Response(b"", status, headers, media_type=kind)
    path = call.hub.objects.path(oid)
    unchecked = not call.hub.objects.is_known_intact(oid)
    if unchecked and status == 206 and not call.hub.objects.is_intact(oid):
        raise damaged_file(oid)  # a part cannot be checked by itself
    whole = unchecked and status == 200
    blocks = _read_checked(call.hub.objects, oid, size) if whole else _read(path, start, end)
    return StreamingResponse(blocks, status, headers, media_type=kind)


def _transfer_response(
    call: Call, repo: Repo, file: RepoFile, headers: dict[str, str], kind: str
) -> Response:
    """A large file of a mirror that is not here yet: passed on as it comes from the upstream."""
    assert file.pointer is not None  # the caller's look
    if _not_modified(call, headers):
        return Response(status_code=304, headers=headers)
    status, start, end = _window(call, file.pointer.size, headers)
    if call.method == "HEAD":
        return Response(b"", status, headers, media_type=kind)
    transfer = call.hub.upstream.transfer(repo, file.commit, file.path, file.pointer)
    blocks = _follow(call.hub.objects, transfer, file.pointer.oid, start, end)
    return StreamingResponse(blocks, status, headers, media_type=kind)


async def _follow(
    objects: Objects, transfer: Transfer, oid: str, start: int, end: int
) -> AsyncIterator[bytes]:
    """The bytes of a transfer as they arrive; the last ones once the whole has its hash."""
    position, last = start, max(start, end - _BLOCK_BYTES)
    while position < last and not transfer.finished and not transfer.error:
        available = min(transfer.arrived, last)
        if available <= position:
            await asyncio.sleep(0.02)
            continue
        block = await run_in_threadpool(_part, transfer.path, position, available)
        position += len(block)
        yield block
        if not block:
            break
    while not transfer.finished and not transfer.error:  # noqa: ASYNC110 - a thread ends it
        await asyncio.sleep(0.02)
    if transfer.error:
        raise Refusal(502, transfer.error)
    async for block in _read(objects.path(oid), position, end):
        yield block


def _part(path: Path, start: int, end: int) -> bytes:
    """A piece of a file that may get its final name at any moment."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(min(end - start, _BLOCK_BYTES))
    except FileNotFoundError:
        return b""


def damaged_file(oid: str) -> Refusal:
    """Return the refusal for a large file that is missing or damaged on this disk."""
    return Refusal(
        410,
        f"The large file {oid} is missing or damaged on the disk of this Hub. `hubkit hub verify` "
        "says where it is used; uploading the same file again repairs it.",
    )


async def _read(path: Path, start: int, end: int) -> AsyncIterator[bytes]:
    handle = os.open(path, os.O_RDONLY)
    try:
        for position, length in _blocks(start, end):
            yield await run_in_threadpool(os.pread, handle, length, position)
    finally:
        os.close(handle)


async def _read_checked(objects: Objects, oid: str, size: int) -> AsyncIterator[bytes]:
    """The whole object, hashed on its first way out; of one that is damaged the end is held back,
    so that the client sees a broken transfer and not wrong bytes."""
    digest, pending = hashlib.sha256(), b""
    async for block in _read(objects.path(oid), 0, size):
        if pending:
            yield pending
        await run_in_threadpool(digest.update, block)
        pending = block
    if digest.hexdigest() != oid:
        objects.set_aside(oid)
        raise damaged_file(oid)
    objects.note_intact(oid)
    yield pending


def _blocks(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        length = min(_BLOCK_BYTES, end - start)
        yield start, length
        start += length
