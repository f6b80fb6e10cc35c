"""Jobs: /api/jobs/{namespace}[/{id}[/logs|cancel|labels]]."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from hubkit.local_hub.api.http import Call, field, page, require_user, require_writer
from hubkit.local_hub.apps import logs
from hubkit.local_hub.apps.jobs import DEFAULT_TIMEOUT_S, LOG, MEMORY_GIB, OVER
from hubkit.local_hub.errors import Refusal
from hubkit.untrusted import JsonObject, object_in, text_in

if TYPE_CHECKING:
    from hubkit.local_hub.hub import Hub


async def route(call: Call) -> Response:
    """/api/jobs/…; the log is a stream, the rest is answered in a thread."""
    if len(call.segments) == 5 and call.segments[4] == "logs" and call.method == "GET":
        row = await run_in_threadpool(_readable, call)
        is_over = partial(_is_over, call.hub, row)
        return StreamingResponse(
            logs.events(call.hub.jobs.folder(row["id"]) / LOG, is_over), media_type=logs.EVENTS
        )
    if call.method not in ("GET", "HEAD"):
        await call.read_body()
    return await run_in_threadpool(_answer, call)


def _is_over(hub: Hub, row: sqlite3.Row) -> bool:
    return hub.jobs.find(row["namespace"], row["id"])["stage"] in OVER and not hub.jobs.under_way(
        row["id"]
    )


def _answer(call: Call) -> Response:
    parts, method = call.segments[2:], "GET" if call.method == "HEAD" else call.method
    if parts == ["hardware"] and method == "GET":
        return JSONResponse([_flavor(name, gib) for name, gib in MEMORY_GIB.items()])
    if len(parts) == 1:
        return _listed(call, parts[0]) if method == "GET" else _create(call, parts[0])
    if len(parts) == 2 and method == "GET":
        return JSONResponse(_described(_readable(call)))
    if len(parts) == 3 and (parts[2], method) in (("cancel", "POST"), ("labels", "PUT")):
        require_writer(call, parts[0])
        row = call.hub.jobs.find(parts[0], parts[1])
        if parts[2] == "cancel":
            call.hub.jobs.cancel(row)
        else:
            spec = {**json.loads(row["spec"]), "labels": _strings(call.json(), "labels")}
            call.hub.settings.write(
                "UPDATE jobs SET spec = ? WHERE id = ?", json.dumps(spec), row["id"]
            )
        return JSONResponse(_described(call.hub.jobs.find(parts[0], parts[1])))
    raise Refusal(404, "Not found: this Hub has nothing at this address.")


def _readable(call: Call) -> sqlite3.Row:
    namespace = call.segments[2]
    if not require_user(call).is_in(namespace):
        raise Refusal(403, f"You may not see the jobs of {namespace[:100]!r}.")
    return call.hub.jobs.find(namespace, call.segments[3])


def _listed(call: Call, namespace: str) -> Response:
    if not require_user(call).is_in(namespace):
        raise Refusal(403, f"You may not see the jobs of {namespace[:100]!r}.")
    sql = "SELECT * FROM jobs WHERE namespace = ? ORDER BY created_at DESC, id"
    stages = call.request.query_params.getlist("stage")
    labels = [text.partition("=") for text in call.request.query_params.getlist("label")]
    rows = [_described(row) for row in call.hub.settings.rows(sql, namespace)]
    rows = [
        row for row in rows if not stages or text_in(object_in(row, "status"), "stage") in stages
    ]
    return page(
        call,
        [
            r
            for r in rows
            if all(object_in(r, "labels").get(key) == value for key, _, value in labels)
        ],
        100,
    )


def _create(call: Call, namespace: str) -> Response:
    if call.method != "POST":
        raise Refusal(405, f"This Hub does not offer {call.method} for jobs.")
    identity = require_writer(call, namespace)
    if not call.hub.jobs.enabled:
        raise Refusal(
            403,
            "Jobs are off on this Hub: a job may do whatever you may on this machine. "
            "Its owner can allow them with `hubkit hub start --jobs`.",
        )
    body = call.json()
    command = body.get("command")
    arguments = body.get("arguments") or []
    if not isinstance(command, list) or not command or not isinstance(arguments, list):
        raise Refusal(400, "'command' must be a list of strings, with at least one.")
    if not all(isinstance(part, str) and "\0" not in part for part in (*command, *arguments)):
        raise Refusal(400, "'command' and 'arguments' must be lists of strings.")
    for name in ("volumes", "ssh", "network", "expose"):
        if body.get(name):
            raise Refusal(400, f"This Hub's jobs have no {name!r}.")
    hidden = _strings(body, "secrets")
    spec = {
        "command": command,
        "arguments": arguments,
        "environment": _strings(body, "environment"),
        "secrets": sorted(hidden),
        "labels": _strings(body, "labels"),
        "flavor": field(body, "flavor", str, "cpu-basic"),
        "dockerImage": body.get("dockerImage"),
        "spaceId": body.get("spaceId"),
        "timeoutSeconds": max(1, field(body, "timeoutSeconds", int, DEFAULT_TIMEOUT_S)),
        "attempts": min(10, max(1, field(body, "attempts", int, 1))),
    }
    return JSONResponse(
        _described(call.hub.jobs.start(namespace, spec, hidden, identity.user, call.base_url))
    )


def _strings(body: JsonObject, name: str) -> dict[str, str]:
    values = field(body, name, dict, {})
    texts = {str(key): str(value) for key, value in values.items()}
    if any("\0" in key + value or "=" in key or not key for key, value in texts.items()):
        raise Refusal(400, f"{name!r} must map names to texts.")
    return texts


def _described(row: sqlite3.Row) -> JsonObject:
    spec = json.loads(row["spec"])
    owner = {"id": row["namespace"], "name": row["namespace"], "type": "user"}
    ended = _seconds(row["finished_at"]) or time.time()
    began = _seconds(row["started_at"])
    created = _seconds(row["created_at"]) or ended
    return {
        "id": row["id"],
        "createdAt": row["created_at"],
        "startedAt": row["started_at"],
        "finishedAt": row["finished_at"],
        **{
            name: spec[name] for name in ("command", "arguments", "environment", "flavor", "labels")
        },
        "dockerImage": spec["dockerImage"],
        "spaceId": spec["spaceId"],
        "secrets": dict.fromkeys(spec["secrets"], ""),
        "timeout": spec["timeoutSeconds"],
        "retry": spec["attempts"] - 1,
        "status": {"stage": row["stage"], "message": row["message"]},
        "durations": {
            "schedulingSecs": int(began - created) if began else None,
            "runningSecs": int(ended - began) if began else None,
            "totalSecs": int(ended - created),
        },
        "owner": owner,
        "initiator": {"type": "user", "id": row["created_by"], "name": row["created_by"]},
    }


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def _flavor(name: str, gib: int) -> JsonObject:
    cost: JsonObject = {"unitCostMicroUSD": 0, "unitCostUSD": 0.0, "unitLabel": "minute"}
    cores = f"{os.cpu_count()} vCPU"
    return {
        "name": name,
        "prettyName": f"{name} (this machine)",
        "cpu": cores,
        "ram": f"{gib} GB",
        **cost,
    }
