"""The runtime, logs, secrets and variables of a Space. Its app itself runs in `apps`."""

from __future__ import annotations

import re

from starlette.responses import JSONResponse, Response, StreamingResponse

from hubkit.local_hub.api.http import Call, field
from hubkit.local_hub.apps import logs
from hubkit.local_hub.apps.space_manager import COMING, UP
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.hub import Hub
from hubkit.local_hub.storage.accounts import now
from hubkit.local_hub.storage.repos import Repo, update_extra
from hubkit.untrusted import JsonObject

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
DEFAULT_HARDWARE = "cpu-basic"
MAX_VALUE_BYTES = 64 * 2**10


def set_up(hub: Hub, repo: Repo, body: JsonObject) -> None:
    """Hardware, sleep time, secrets and variables that came with the creation of a Space."""
    changes = {
        "requested": body.get("hardware"),
        "sleep": body.get("sleepTimeSeconds"),
        "volumes": body.get("volumes"),
    }
    update_extra(hub, repo, {key: value for key, value in changes.items() if value is not None})
    for kind in ("secrets", "variables"):
        for item in field(body, kind, list, []):
            _put(hub, repo, kind, item if isinstance(item, dict) else {})


def runtime(hub: Hub, repo: Repo) -> JsonObject:
    """A Space's stage, and what was asked for it."""
    extra = repo.extra
    stage, message, port = hub.spaces.state(repo)
    is_up = stage in UP
    answer = {
        "stage": stage,
        "hardware": {
            "current": DEFAULT_HARDWARE if is_up else None,
            "requested": extra.get("requested", DEFAULT_HARDWARE),
        },
        "storage": extra.get("storage"),
        "gcTimeout": extra.get("sleep"),
        "devMode": False,
        "replicas": {"current": int(is_up), "requested": 1},
        "volumes": extra.get("volumes") or [],
    }
    if port:
        answer["domains"] = [{"domain": f"127.0.0.1:{port}", "stage": "READY"}]
    return answer | ({"errorMessage": message} if message else {})


def address(call: Call, repo: Repo) -> str | None:
    """Where a Space's app is, or will be when it wakes; None for one that was never started."""
    stage, _, port = call.hub.spaces.state(repo)
    where = call.request.url.hostname or "127.0.0.1"
    return (
        f"http://{f'[{where}]' if ':' in where else where}:{port}"
        if port and stage != "STOPPED"
        else None
    )


def get_runtime(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/runtime."""
    return JSONResponse(runtime(call.hub, repo))


async def get_logs(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/logs/{build|run}: a stream that ends when build or app do."""
    if tail not in (["build"], ["run"]):
        raise Refusal(404, "A Space has a build log and a run log: …/logs/build, …/logs/run.")
    awaited = (*UP, *COMING) if tail == ["run"] else ("BUILDING", "RUNNING_BUILDING")
    path = call.hub.spaces.log(repo, tail[0])
    events = logs.events(path, lambda: call.hub.spaces.state(repo)[0] not in awaited)
    return StreamingResponse(events, media_type=logs.EVENTS)


def _current(call: Call, repo: Repo) -> Response:
    return JSONResponse(runtime(call.hub, update_extra(call.hub, repo, {})))


def set_hardware(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/hardware {flavor, sleepTimeSeconds}."""
    body = call.json()
    changes: JsonObject = {"requested": field(body, "flavor", str)}
    if body.get("sleepTimeSeconds") is not None:
        changes["sleep"] = field(body, "sleepTimeSeconds", int)
    return JSONResponse(runtime(call.hub, update_extra(call.hub, repo, changes)))


def set_sleep_time(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/sleeptime {seconds}."""
    return JSONResponse(
        runtime(
            call.hub, update_extra(call.hub, repo, {"sleep": field(call.json(), "seconds", int)})
        )
    )


def pause(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/pause."""
    call.hub.spaces.suspend(repo, "PAUSED")
    return _current(call, repo)


def restart(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST …/restart."""
    call.hub.spaces.start(repo)
    return _current(call, repo)


def set_volumes(call: Call, repo: Repo, tail: list[str]) -> Response:
    """PUT …/volumes."""
    volumes = field(call.json(), "volumes", list)
    return JSONResponse(runtime(call.hub, update_extra(call.hub, repo, {"volumes": volumes})))


def remove_volumes(call: Call, repo: Repo, tail: list[str]) -> Response:
    """DELETE …/volumes."""
    return JSONResponse(runtime(call.hub, update_extra(call.hub, repo, {"volumes": []})))


def _put(hub: Hub, repo: Repo, kind: str, item: JsonObject) -> None:
    key, value = field(item, "key", str), field(item, "value", str)
    if not _KEY.fullmatch(key) or len(value.encode("utf-8", "replace")) > MAX_VALUE_BYTES:
        raise Refusal(400, "A key is letters, digits and '_'; a value at most 64 KiB.")
    hub.settings.write(
        "INSERT OR REPLACE INTO space_env VALUES (?, ?, ?, ?, ?, ?)",
        repo.pk,
        kind,
        key,
        value,
        field(item, "description", str, ""),
        now(),
    )


def _listed(hub: Hub, repo: Repo, kind: str) -> JsonObject:
    rows = hub.settings.rows(
        "SELECT * FROM space_env WHERE repo = ? AND kind = ? ORDER BY key", repo.pk, kind
    )
    listed: JsonObject = {}
    for row in rows:
        entry = {
            "key": row["key"],
            "description": row["description"] or None,
            "updatedAt": row["updated_at"],
        }
        listed[row["key"]] = entry if kind == "secrets" else {**entry, "value": row["value"]}
    return listed


def environment(call: Call, repo: Repo, kind: str) -> Response:
    """GET, POST and DELETE …/secrets and …/variables. A secret's value is never given back."""
    call.require_write(repo)
    if call.method == "POST":
        _put(call.hub, repo, kind, call.json())
    elif call.method == "DELETE":
        key = field(call.json(), "key", str)
        call.hub.settings.write(
            "DELETE FROM space_env WHERE repo=? AND kind=? AND key=?", repo.pk, kind, key
        )
    if call.method in ("POST", "DELETE"):
        call.hub.spaces.changed(repo)
    return JSONResponse(_listed(call.hub, repo, kind))


def secrets(call: Call, repo: Repo, tail: list[str]) -> Response:
    """…/secrets."""
    return environment(call, repo, "secrets")


def variables(call: Call, repo: Repo, tail: list[str]) -> Response:
    """…/variables."""
    return environment(call, repo, "variables")
