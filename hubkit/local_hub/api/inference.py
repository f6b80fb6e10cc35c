"""Inference Endpoints as their client asks for them: /v2/endpoint/…, /v2/provider/…, and the
endpoints themselves.

An endpoint's own address is /v2/serve/ID on this Hub, in front of its engine: it checks the token,
wakes what sleeps, and passes everything else on as it is."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response, StreamingResponse

from hubkit.local_hub.api.http import Call, field, require_user, require_writer
from hubkit.local_hub.apps.engines import engine_spec
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.accounts import now
from hubkit.local_hub.storage.repos import can_read, lookup
from hubkit.untrusted import JsonObject, object_in, text_in

if TYPE_CHECKING:
    import aiohttp

TYPES = ("public", "authenticated", "private")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_UP = ("running", "updating", "updateFailed")
_HOP = frozenset(
    """
    connection keep-alive te trailer transfer-encoding upgrade host content-length authorization
    cookie date server
    """.split()  # noqa: SIM905 - one word a word
)
_REQUEST_TIMEOUT_S = 3600

# What can be asked for: this machine, under the names that people use for the real ones. It costs
# nothing here.
_HARDWARE = (
    ("cpu", "intel-spr", "x1"),
    ("cpu", "intel-spr", "x2"),
    ("gpu", "nvidia-l4", "x1"),
    ("gpu", "nvidia-l40s", "x1"),
    ("gpu", "nvidia-a100", "x1"),
    ("gpu", "nvidia-h200", "x1"),
)


def route(call: Call) -> Response:
    """/v2/endpoint/{namespace}[/{name}[/pause|resume|scale-to-zero]]."""
    parts, method = call.segments[2:], "GET" if call.method == "HEAD" else call.method
    if len(parts) not in (1, 2, 3) or not all(parts):
        raise Refusal(404, "Not found: this Hub has nothing at this address.")
    namespace = parts[0]
    if method == "GET":
        if not require_user(call).is_in(namespace):
            raise Refusal(403, f"You may not see the endpoints of {namespace[:100]!r}.")
    else:
        require_writer(call, namespace)
    if len(parts) == 1:
        return _all(call, namespace) if method == "GET" else _create(call, namespace)
    row = call.hub.endpoints.find(namespace, parts[1])
    if len(parts) == 3:
        return _change(call, row, parts[2])
    if method == "GET":
        return JSONResponse(_described(call, row))
    if method == "PUT":
        return _update(call, row)
    if method == "DELETE":
        call.hub.endpoints.delete(row)
        return JSONResponse({})
    raise Refusal(405, f"This Hub does not offer {method} for an endpoint.")


def _all(call: Call, namespace: str) -> Response:
    return JSONResponse(
        {"items": [_described(call, row) for row in call.hub.endpoints.listed(namespace)]}
    )


def _create(call: Call, namespace: str) -> Response:
    body = call.json()
    name = field(body, "name", str)
    if not _NAME.fullmatch(name):
        raise Refusal(
            400,
            f"Invalid name {name[:100]!r}: use lower-case letters, digits and '-', 32 at most.",
        )
    spec = _checked(call, body)
    user = require_user(call).user
    return JSONResponse(
        _described(call, call.hub.endpoints.create(namespace, name, spec, user)), 202
    )


def _update(call: Call, row: sqlite3.Row) -> Response:
    spec = _checked(call, _laid_over(json.loads(row["spec"]), call.json()))
    call.hub.endpoints.update(row, spec)
    return _current(call, row)


def _change(call: Call, row: sqlite3.Row, action: str) -> Response:
    if call.method != "POST":
        raise Refusal(405, f"This Hub does not offer {call.method} …/{action[:40]}.")
    if action == "resume":
        call.hub.endpoints.resume(row)
    elif action in ("pause", "scale-to-zero"):
        call.hub.endpoints.suspend(row, "paused" if action == "pause" else "scaledToZero")
    else:
        raise Refusal(404, f"This Hub does not offer …/{action[:40]} for an endpoint.")
    return _current(call, row)


def _current(call: Call, row: sqlite3.Row) -> Response:
    return JSONResponse(_described(call, call.hub.endpoints.by_id(row["id"])))


def _laid_over(below: JsonObject, above: JsonObject) -> JsonObject:
    """An update replaces the image as a whole, and merges everything around it."""
    merged = dict(below)
    for key, value in above.items():
        both = (
            isinstance(below.get(key), dict)
            and isinstance(value, dict)
            and key not in ("image", "env", "secrets")
        )
        merged[key] = _laid_over(object_in(below, key), object_in(above, key)) if both else value
    return merged


def _checked(call: Call, body: JsonObject) -> JsonObject:
    """The settings as they are kept. Raises `Refusal` 400 where a part is missing or of the wrong
    kind.
    """
    model, compute = field(body, "model", dict), field(body, "compute", dict)
    provider, image = field(body, "provider", dict), field(model, "image", dict)
    for part, names in (
        (model, ("repository", "framework")),
        (compute, ("accelerator", "instanceSize")),
        (compute, ("instanceType",)),
        (provider, ("region", "vendor")),
    ):
        for name in names:
            field(part, name, str)
    if len(image) != 1 or not isinstance(next(iter(image.values())), dict):
        raise Refusal(
            400, '\'model.image\' must name one image: {"custom": {…}}, {"vLLM": {…}}, ….'
        )
    kind = str(body.get("type") or "authenticated")
    if kind not in TYPES:
        raise Refusal(400, f"'type' must be one of {', '.join(TYPES)}.")
    scaling = field(compute, "scaling", dict)
    if field(scaling, "maxReplica", int) < max(1, field(scaling, "minReplica", int, 0)):
        raise Refusal(400, "'maxReplica' must be at least 1 and at least 'minReplica'.")
    env = model.get("env") or {}
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise Refusal(400, "'model.env' must be an object of strings.")
    try:
        engine = engine_spec(model)
    except ValueError as error:
        raise Refusal(400, f"{error}.") from None
    for repo_id in engine.repos:
        _require_repo(call, repo_id)
    # A secret's value is not kept: the engine reads none.
    stored_model = {**model, "secrets": dict.fromkeys(model.get("secrets") or {}, "")}
    tags = [str(tag) for tag in field(body, "tags", list, [])]
    return {
        "model": stored_model,
        "compute": compute,
        "provider": provider,
        "type": kind,
        "tags": tags,
    }


def _require_repo(call: Call, repo_id: str) -> None:
    namespace, _, name = repo_id.partition("/")
    repo = lookup(call.hub, "model", namespace, name, call.identity)[0] if name else None
    if repo is None or not can_read(call.identity, repo):
        raise Refusal(400, f"Repository {repo_id[:200]} is not on this Hub, or not yours to read.")


def _described(call: Call, row: sqlite3.Row) -> JsonObject:
    spec = json.loads(row["spec"])
    image = next(iter(spec["model"]["image"].values()))
    up = row["state"] in _UP
    status: JsonObject = {
        "state": row["state"],
        "message": row["message"] or f"Endpoint is {row['state']}",
        "createdAt": row["created_at"],
        "createdBy": {"id": row["created_by"], "name": row["created_by"]},
        "updatedAt": row["updated_at"],
        "updatedBy": {"id": row["created_by"], "name": row["created_by"]},
        "private": None,
        "readyReplica": int(up),
        "targetReplica": int(row["state"] not in ("paused", "scaledToZero", "failed")),
    }
    if up or row["state"] == "scaledToZero":
        status["url"] = f"{call.base_url}/v2/serve/{row['id']}"
    model = {"task": "text-generation", "revision": None, **spec["model"]}
    return {
        "name": row["name"],
        "type": spec["type"],
        "accountId": None,
        "healthRoute": image.get("healthRoute") or image.get("health_route") or "/health",
        "provider": spec["provider"],
        "compute": {**spec["compute"], "id": _hardware_id(spec)},
        "model": model,
        "status": status,
        "tags": spec["tags"],
    }


def _hardware_id(spec: JsonObject) -> str:
    provider, compute = object_in(spec, "provider"), object_in(spec, "compute")
    return "-".join(
        [
            *(text_in(provider, key) for key in ("vendor", "region")),
            *(text_in(compute, key) for key in ("instanceType", "instanceSize")),
        ]
    )


def hardware(call: Call) -> Response:
    """GET /v2/provider/{namespace}: what endpoints can run on."""
    require_user(call)
    if call.method not in ("GET", "HEAD") or len(call.segments) != 3:
        raise Refusal(404, "Not found: this Hub has nothing at this address.")
    computes = [
        {
            "id": f"aws-us-east-1-{kind}-{size}",
            "accelerator": accelerator,
            "instanceType": kind,
            "instanceSize": size,
            "architecture": "this machine",
            "numAccelerators": int(accelerator == "gpu"),
            "numCpus": 1,
            "memoryGb": 2,
            "gpuMemoryGb": None,
            "pricePerHour": 0.0,
            "status": "available",
            "quota": {"maxAccelerators": 8, "usedAccelerators": 0},
        }
        for accelerator, kind, size in _HARDWARE
    ]
    regions = [{"name": "us-east-1", "label": "this machine", "computes": computes}]
    return JSONResponse({"vendors": [{"name": "aws", "regions": regions}], "asOf": now()})


async def serve(call: Call) -> Response:
    """Anything below /v2/serve/{id}: one request to that endpoint's engine, and its answer as it
    comes.
    """
    import aiohttp

    row = call.hub.endpoints.by_id("".join(call.segments[2:3]))
    spec = json.loads(row["spec"])
    if spec["type"] != "public" and not require_user(call).is_in(row["namespace"]):
        raise Refusal(403, "This token may not use this endpoint.")
    path = "/" + "/".join(call.segments[3:])
    image = next(iter(spec["model"]["image"].values()))
    if path == (image.get("healthRoute") or "/health"):
        path = "/health"
    async with AsyncExitStack() as stack:
        engine = stack.enter_context(call.hub.endpoints.borrowed(row["id"]))
        body = await call.read_body()
        timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S, sock_connect=5)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        )
        headers = {k: v for k, v in call.request.headers.items() if k.lower() not in _HOP}
        headers["Authorization"] = f"Bearer {engine.key}"
        try:
            answer = await stack.enter_async_context(
                session.request(
                    call.method,
                    engine.address + path,
                    params=call.request.query_params,
                    data=body or None,
                    headers=headers,
                    allow_redirects=False,
                )
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Refusal(
                503, f"The engine of this endpoint does not answer ({type(error).__name__})."
            ) from None
        passed = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
        return StreamingResponse(_passing(answer, stack.pop_all()), answer.status, passed)
    raise AssertionError("unreachable: the block returns or raises")


async def _passing(
    answer: aiohttp.ClientResponse, open_until_done: AsyncExitStack
) -> AsyncIterator[bytes]:
    """The engine's answer, piece by piece; the request counts as in flight until the last one."""
    async with open_until_done:
        async for piece in answer.content.iter_any():
            yield piece
