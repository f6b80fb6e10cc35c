"""Uploads by the Xet protocol, which clients with `hf_xet` use for every large file without asking.

We are the write half of a Xet server and keep none of its storage: a client sends chunks (in
"xorbs") and recipes for files (in "shards"); each file is put together, hashed, and becomes an
ordinary large object. A xorb whose chunks all ended up in objects is replaced by a map of where
they are: clients remember what they once sent and refer to it in later uploads. Each user has a
space of their own under a made-up address. When what a client remembers is no longer here (garbage
collection, a restored folder), the user gets a new address, and clients remember nothing of that
one.

Downloads never go through Xet.
"""

from __future__ import annotations

import errno

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.http import Call
from hubkit.local_hub.api.lfs import drain
from hubkit.local_hub.errors import DISK_FULL, Refusal, is_disk_full
from hubkit.local_hub.storage.objects import SHA256
from hubkit.local_hub.storage.repos import Repo
from hubkit.local_hub.storage.xet_format import (
    MAX_SHARD_BYTES,
    MAX_XORB_BYTES,
    parse_shard,
    scan_xorb,
)

TOKEN_LIFETIME_S = 6 * 3600


# what clients call


def write_token(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/xet-write-token/{rev}: where to upload, and with which short-lived token."""
    assert call.identity is not None  # the route needs a token
    space = call.hub.xet.space(call.identity.user)
    signature = call.hub.sign("xet", str(repo.pk), space, lifetime_s=TOKEN_LIFETIME_S)
    url, token = f"{call.base_url}/xet/{space}", f"{repo.pk}.{signature}"
    expires = int(signature.partition(".")[0])
    headers = {
        "X-Xet-Cas-Url": url,
        "X-Xet-Access-Token": token,
        "X-Xet-Token-Expiration": str(expires),
    }
    return JSONResponse({"casUrl": url, "accessToken": token, "exp": expires}, headers=headers)


def _repo_of_token(call: Call, space: str) -> Repo:
    token = call.request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    key, _, signature = token.partition(".")
    call.hub.check_signature(signature, "xet", key, space)
    row = call.hub.settings.row("SELECT * FROM repos WHERE pk = ?", int(key))
    if row is None:
        raise Refusal(404, "Repository not found", "RepoNotFound")
    return Repo.of(row)


async def serve(call: Call) -> Response:
    """/xet/{space}/v1/…: the content-addressed store as the client sees it. Raises `Refusal`."""
    try:
        if call.hub.settings.read_only or call.hub.disk.is_short():
            raise OSError(errno.ENOSPC, DISK_FULL)
        return await _serve(call)
    except OSError as error:
        if not is_disk_full(error):
            raise
        # Not 507: Xet clients try again for minutes after any server error.
        raise Refusal(413, DISK_FULL) from error


async def _serve(call: Call) -> Response:
    space, path = call.segments[1], call.segments[2:]
    repo = _repo_of_token(call, space)
    folder = call.hub.xet.folder(space)
    if (
        call.method == "POST"
        and path[:2] == ["v1", "xorbs"]
        and len(path) == 4
        and SHA256.fullmatch(path[3])
    ):
        with call.hub.objects.incoming() as incoming:
            await drain(call.request.stream(), incoming.write, MAX_XORB_BYTES)
            with incoming.path.open("rb") as file:
                await run_in_threadpool(scan_xorb, file, incoming.size)
            incoming.keep_sealed(folder / f"{path[3]}.xorb")
        return JSONResponse({"was_inserted": True})
    if call.method == "POST" and path == ["v1", "shards"]:
        files = parse_shard(await call.read_body(MAX_SHARD_BYTES))
        await run_in_threadpool(call.hub.xet.accept, space, repo, files)
        return JSONResponse({"result": 1})
    # Everything else (global deduplication, newer versions of a call) is optional: the client goes
    # on without.
    raise Refusal(404, "Not offered by this Hub.")
