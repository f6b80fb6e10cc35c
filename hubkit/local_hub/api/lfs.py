"""Large files by the LFS protocol: batch, upload in one piece or in parts, verify.

Addresses for uploads are signed (storage services do the same), since clients send no token there.
An object counts as "already here" for a caller only if it belongs to a repository that this caller
may read: knowing a hash is no permission to see the file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.http import Call, field, require_gate, require_user
from hubkit.local_hub.api.resolve import large_file_response
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.object_owners import is_held_for, link
from hubkit.local_hub.storage.objects import SHA256, Incoming
from hubkit.local_hub.storage.repos import PREFIX, Repo
from hubkit.untrusted import JsonObject, object_in

MAX_BATCH = 1000
MAX_HASHED_BYTES = 64 * 2**20
_BLOCK_BYTES = 4 * 2**20
_CONTENT_TYPE = "application/vnd.git-lfs+json"


def require_object(call: Call, repo: Repo, oid: str, path: str) -> int:
    """The size of an object that a commit names. Raises `Refusal` 404 where it is not here for this
    caller.
    """
    call.hub.xet.settle(oid)
    size = call.hub.objects.size(oid)
    if size is None or not is_held_for(call.hub, call.identity, oid):
        raise Refusal(
            404,
            f"Your push was rejected: the LFS object {oid} of {path!r} was not uploaded.",
            "LfsMissing",
        )
    call.hub.objects.touch(oid)
    return size


def batch(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST {repo}.git/info/lfs/objects/batch."""
    body = call.json()
    operation = field(body, "operation", str)
    objects = field(body, "objects", list)
    if operation not in ("upload", "download") or len(objects) > MAX_BATCH:
        raise Refusal(422, f"'operation' is upload or download, for at most {MAX_BATCH} objects.")
    if operation == "download":
        require_gate(call, repo)
    elif not require_user(call).may_write:
        raise Refusal(403, "Forbidden: this token only has the read role; a write token is needed.")
    transfers = field(body, "transfers", list, ["basic"])
    answers = [
        _batch_one(call, repo, operation, item, "multipart" in transfers)
        for item in _distinct(objects)
    ]
    chosen = "multipart" if any("chunk_size" in _upload_header(a) for a in answers) else "basic"
    return JSONResponse(
        {"transfer": chosen, "objects": answers, "hash_algo": "sha256"}, media_type=_CONTENT_TYPE
    )


def _distinct(objects: list[Any]) -> list[Any]:
    """Each object once: a client that is told twice to upload the same bytes reads one stream from
    two threads.
    """
    return list(
        {
            str(item.get("oid")) if isinstance(item, dict) else str(n): item
            for n, item in enumerate(objects)
        }.values()
    )


def _upload_header(answer: JsonObject) -> JsonObject:
    upload = object_in(object_in(answer, "actions"), "upload")
    header = object_in(upload, "header")
    return header


def _batch_one(call: Call, repo: Repo, operation: str, item: Any, multipart: bool) -> JsonObject:
    if not isinstance(item, dict):
        raise Refusal(400, "Each of 'objects' must be an object.")
    oid, size = field(item, "oid", str), field(item, "size", int)
    answer: JsonObject = {"oid": oid, "size": size}
    if not SHA256.fullmatch(oid) or size < 0:
        return {**answer, "error": {"code": 422, "message": "Not a sha256 and a size in bytes."}}
    stored_size = call.hub.objects.size(oid)
    usable = stored_size is not None and is_held_for(call.hub, call.identity, oid)
    if usable and operation == "upload" and not _is_trusted(call, oid, size):
        usable = False  # the same bytes again repair it
    if operation == "download":
        if not usable:
            return {**answer, "error": {"code": 404, "message": "Object does not exist."}}
        href = f"{call.base_url}/{PREFIX[repo.type]}{repo.id}.git/info/lfs/objects/{oid}"
        return {
            **answer,
            "actions": {
                "download": {"href": _signed(call, href, "get", repo, oid, stored_size or 0)}
            },
        }
    if usable:
        if stored_size != size:
            return {
                **answer,
                "error": {
                    "code": 422,
                    "message": f"This object has {stored_size} bytes, not {size}.",
                },
            }
        call.hub.objects.touch(oid)
        return answer
    base = f"{call.base_url}/{PREFIX[repo.type]}{repo.id}.git/info/lfs"
    verify = {"href": f"{base}/verify"}
    if multipart and size > call.hub.multipart_above_bytes:
        upload = _multipart_action(call, repo, base, oid, size)
    else:
        upload = {"href": _signed(call, f"{base}/objects/{oid}", "put", repo, oid, size)}
    return {**answer, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


def _is_trusted(call: Call, oid: str, size: int) -> bool:
    """Whether a stored file need not be uploaded again; unless it is huge, it is read to know."""
    if size > MAX_HASHED_BYTES and call.hub.objects.size(oid) == size:
        return True
    return call.hub.objects.is_intact(oid)


def _multipart_action(call: Call, repo: Repo, base: str, oid: str, size: int) -> JsonObject:
    part_bytes = call.hub.part_bytes
    count = -(-size // part_bytes)
    header = {"chunk_size": str(part_bytes)}
    for number in range(1, count + 1):
        part_size = min(part_bytes, size - (number - 1) * part_bytes)
        header[str(number)] = _signed(
            call, f"{base}/parts/{oid}/{number}", "part", repo, f"{oid}-{number}", part_size
        )
    return {
        "href": _signed(call, f"{base}/complete/{oid}", "done", repo, oid, size),
        "header": header,
    }


def _signed(call: Call, href: str, verb: str, repo: Repo, subject: str, size: int) -> str:
    signature = call.hub.sign(verb, str(repo.pk), subject, str(size))
    return f"{href}?{urlencode({'size': size, 'sig': signature})}"


def _check_signed(call: Call, verb: str, repo: Repo, subject: str) -> int:
    size = call.query("size") or ""
    call.hub.check_signature(call.query("sig") or "", verb, str(repo.pk), subject, size)
    return int(size)


async def upload(call: Call, repo: Repo, tail: list[str]) -> Response:
    """PUT …/objects/{oid}: a whole large file."""
    oid = tail[0]
    size = _check_signed(call, "put", repo, oid)
    with call.hub.objects.incoming() as incoming:
        await _receive(call, incoming, size)
        await run_in_threadpool(incoming.keep, oid, size)
    await run_in_threadpool(link, call.hub, repo, [oid])
    return Response(status_code=200)


async def upload_part(call: Call, repo: Repo, tail: list[str]) -> Response:
    """PUT …/parts/{oid}/{number}: one part; its ETag is asked back when the upload is completed."""
    oid, number = tail[0], tail[1]
    size = _check_signed(call, "part", repo, f"{oid}-{number}")
    path = call.hub.objects.temporary / f"mp-{oid}-{int(number)}"
    with call.hub.objects.incoming() as incoming:
        await _receive(call, incoming, size)
        if incoming.size != size:
            raise Refusal(400, f"Expected {size} bytes and received {incoming.size}.")
        incoming.path.replace(path)
    return Response(status_code=200, headers={"ETag": f'"{oid[:16]}-{number}-{size}"'})


def complete(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/complete/{oid}: put the parts together."""
    oid = tail[0]
    size = _check_signed(call, "done", repo, oid)
    body = call.json()
    if body.get("oid") != oid:
        raise Refusal(400, "The body names another object.")
    count = -(-size // call.hub.part_bytes)
    numbers = [
        part.get("partNumber") if isinstance(part, dict) else None
        for part in field(body, "parts", list)
    ]
    if numbers != list(range(1, count + 1)):
        raise Refusal(400, f"Expected the parts 1 to {count}, in order.")
    parts = [call.hub.objects.temporary / f"mp-{oid}-{number}" for number in numbers]
    if not all(part.is_file() for part in parts):
        raise Refusal(400, "A part was not uploaded.")
    with call.hub.objects.incoming() as incoming:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    incoming.write(block)
        incoming.keep(oid, size)
    for part in parts:
        part.unlink(missing_ok=True)
    link(call.hub, repo, [oid])
    return JSONResponse({})


def verify(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/verify: is the object here, of this size?"""
    body = call.json()
    oid, size = field(body, "oid", str), field(body, "size", int)
    if call.hub.objects.size(oid) != size or not is_held_for(call.hub, call.identity, oid):
        raise Refusal(404, "The object was not uploaded, or has another size.")
    return JSONResponse({})


def download(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/objects/{oid}: for git-lfs clients."""
    _check_signed(call, "get", repo, tail[0])
    return large_file_response(call, tail[0], {})


async def _receive(call: Call, incoming: Incoming, limit: int) -> None:
    """Body → file, hashed and written in a thread while the next bytes arrive. Raises `Refusal` 413
    beyond `limit`.
    """
    await drain(call.request.stream(), incoming.write, limit)


async def drain(stream: AsyncIterator[bytes], write: Callable[[bytes], None], limit: int) -> None:
    """Hand a stream to `write` (called in a thread) in large blocks. Raises `Refusal` 413 beyond
    `limit` bytes.
    """
    pending, waiting, total = [], 0, 0
    async for chunk in stream:
        pending.append(chunk)
        waiting += len(chunk)
        total += len(chunk)
        if total > limit:
            raise Refusal(413, f"More than the promised {limit} bytes.")
        if waiting >= _BLOCK_BYTES:
            block, pending, waiting = b"".join(pending), [], 0
            await run_in_threadpool(write, block)
    if pending:
        await run_in_threadpool(write, b"".join(pending))
