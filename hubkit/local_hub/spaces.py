"""What a Space has beside its files: runtime, secrets, variables. Nothing is run here."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.responses import JSONResponse, Response

from .accounts import now
from .repos import Repo
from .state import Hub
from .wire import Call, Refusal, field

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
DEFAULT_HARDWARE = "cpu-basic"
MAX_VALUE_BYTES = 64 * 2**10


def set_up(hub: Hub, repo: Repo, body: dict[str, Any]) -> None:
    """Hardware, sleep time, secrets and variables that came with the creation of a Space."""
    changes = {"requested": body.get("hardware"), "sleep": body.get("sleepTimeSeconds"), "volumes": body.get("volumes")}
    _update(hub, repo, {key: value for key, value in changes.items() if value is not None})
    for kind in ("secrets", "variables"):
        for item in body.get(kind) or []:
            _put(hub, repo, kind, item if isinstance(item, dict) else {})


def runtime(repo: Repo) -> dict[str, Any]:
    """GET …/runtime. A Space of an embedded Hub is stored, not run; `stage` keeps what was last asked for."""
    extra = repo.extra
    sleep = extra.get("sleep")
    return {
        "stage": extra.get("stage", "STOPPED"),
        "hardware": {"current": None, "requested": extra.get("requested", DEFAULT_HARDWARE)},
        "storage": extra.get("storage"),
        "gcTimeout": sleep,
        "devMode": False,
        "replicas": {"current": 0, "requested": 1},
        "volumes": extra.get("volumes") or [],
    }


def get_runtime(call: Call, repo: Repo, rest: list[str]) -> Response:
    """GET …/runtime."""
    return JSONResponse(runtime(repo))


def _update(hub: Hub, repo: Repo, changes: dict[str, Any]) -> Repo:
    with hub.settings.transaction() as connection:
        row = connection.execute("SELECT extra FROM repos WHERE pk = ?", (repo.pk,)).fetchone()
        extra = {**json.loads(row["extra"] if row else "{}"), **changes}
        connection.execute("UPDATE repos SET extra = ? WHERE pk = ?", (json.dumps(extra), repo.pk))
    fresh = hub.settings.row("SELECT * FROM repos WHERE pk = ?", repo.pk)
    if fresh is None:
        raise Refusal(404, "Repository not found", "RepoNotFound")
    return Repo.of(fresh)


def set_hardware(call: Call, repo: Repo, rest: list[str]) -> Response:
    """POST …/hardware {flavor, sleepTimeSeconds}."""
    body = call.json()
    changes: dict[str, Any] = {"requested": field(body, "flavor", str)}
    if body.get("sleepTimeSeconds") is not None:
        changes["sleep"] = field(body, "sleepTimeSeconds", int)
    return JSONResponse(runtime(_update(call.hub, repo, changes)))


def set_sleep_time(call: Call, repo: Repo, rest: list[str]) -> Response:
    """POST …/sleeptime {seconds}."""
    return JSONResponse(runtime(_update(call.hub, repo, {"sleep": field(call.json(), "seconds", int)})))


def pause(call: Call, repo: Repo, rest: list[str]) -> Response:
    """POST …/pause."""
    return JSONResponse(runtime(_update(call.hub, repo, {"stage": "PAUSED"})))


def restart(call: Call, repo: Repo, rest: list[str]) -> Response:
    """POST …/restart."""
    return JSONResponse(runtime(_update(call.hub, repo, {"stage": "STOPPED"})))


def set_volumes(call: Call, repo: Repo, rest: list[str]) -> Response:
    """PUT …/volumes."""
    return JSONResponse(runtime(_update(call.hub, repo, {"volumes": field(call.json(), "volumes", list)})))


def remove_volumes(call: Call, repo: Repo, rest: list[str]) -> Response:
    """DELETE …/volumes."""
    return JSONResponse(runtime(_update(call.hub, repo, {"volumes": []})))


def _put(hub: Hub, repo: Repo, kind: str, item: dict[str, Any]) -> None:
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


def _listed(hub: Hub, repo: Repo, kind: str) -> dict[str, Any]:
    rows = hub.settings.rows("SELECT * FROM space_env WHERE repo = ? AND kind = ? ORDER BY key", repo.pk, kind)
    listed = {}
    for row in rows:
        entry = {"key": row["key"], "description": row["description"] or None, "updatedAt": row["updated_at"]}
        listed[row["key"]] = entry if kind == "secrets" else {**entry, "value": row["value"]}
    return listed


def environment(call: Call, repo: Repo, kind: str) -> Response:
    """GET, POST and DELETE …/secrets and …/variables. A secret's value is never given back."""
    call.require_write(repo)
    if call.method == "POST":
        _put(call.hub, repo, kind, call.json())
    elif call.method == "DELETE":
        key = field(call.json(), "key", str)
        call.hub.settings.write("DELETE FROM space_env WHERE repo=? AND kind=? AND key=?", repo.pk, kind, key)
    return JSONResponse(_listed(call.hub, repo, kind))


def secrets(call: Call, repo: Repo, rest: list[str]) -> Response:
    """…/secrets."""
    return environment(call, repo, "secrets")


def variables(call: Call, repo: Repo, rest: list[str]) -> Response:
    """…/variables."""
    return environment(call, repo, "variables")
