"""Create, delete, move and configure repositories."""

from __future__ import annotations

import sqlite3

from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.http import Call, field, require_user, require_writer
from hubkit.local_hub.api.spaces import set_up
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.paths import checked_name
from hubkit.local_hub.storage.repos import (
    PREFIX,
    SDKS,
    Repo,
    can_read,
    delete_repo,
    lookup,
    make,
    missing,
    private_by_default,
)
from hubkit.untrusted import JsonObject


def create(call: Call) -> Response:
    """POST /api/repos/create."""
    body = call.json()
    kind, namespace, name = _target(call, body)
    identity = require_writer(call, namespace)
    url = f"{call.base_url}/{PREFIX[kind]}{namespace}/{name}"
    existing, was_moved = lookup(call.hub, kind, namespace, name, identity)
    if existing and not was_moved:
        url = f"{call.base_url}{existing.web_path}"
        message = f"You already created this {kind} repo: {existing.id}"
        raise Refusal(409, message, extra={"url": url, "name": existing.id, "id": existing.id})
    private = _is_private(body, private_by_default(call.hub, namespace))
    sdk = field(body, "sdk", str, "") or None
    if kind == "space" and sdk not in SDKS:
        raise Refusal(400, f"A Space needs an sdk, one of {', '.join(SDKS)}.")
    repo = make(call.hub, kind, namespace, name, identity, private=private, sdk=sdk)
    if kind == "space":
        set_up(call.hub, repo, body)
    return JSONResponse({"url": url, "name": repo.id, "id": str(repo.pk)})


def delete(call: Call) -> Response:
    """DELETE /api/repos/delete."""
    kind, namespace, name = _target(call, call.json())
    identity = require_user(call)
    repo, _ = lookup(call.hub, kind, namespace, name, identity)
    if repo is None or not can_read(identity, repo):
        raise missing(identity)
    require_writer(call, repo.namespace)
    delete_repo(call.hub, repo)
    return JSONResponse({})


def move(call: Call) -> Response:
    """POST /api/repos/move: a new name; the old one keeps leading here."""
    body = call.json()
    kind = field(body, "type", str, "model")
    old, new = (field(body, key, str).split("/") for key in ("fromRepo", "toRepo"))
    if kind not in PREFIX or len(old) != 2 or len(new) != 2:
        raise Refusal(400, "Repositories are named namespace/name.")
    identity = require_user(call)
    repo, _ = lookup(call.hub, kind, old[0], old[1], identity)
    if repo is None or not can_read(identity, repo):
        raise missing(identity)
    require_writer(call, repo.namespace)
    if repo.upstream:
        raise Refusal(403, f"{repo.id} mirrors a repository of the upstream and keeps its name.")
    namespace, name = checked_name(new[0], "namespace"), checked_name(new[1])
    require_writer(call, namespace)
    if not call.hub.accounts.exists(namespace):
        call.hub.accounts.add_org(namespace, {identity.user: "admin"})
    try:
        with call.hub.settings.transaction() as connection:
            connection.execute(
                "DELETE FROM moved WHERE type=? AND namespace=? AND name=?", (kind, namespace, name)
            )
            connection.execute(
                "UPDATE repos SET namespace=?, name=? WHERE pk=?", (namespace, name, repo.pk)
            )
            connection.execute(
                "INSERT OR REPLACE INTO moved VALUES (?, ?, ?, ?)",
                (kind, repo.namespace, repo.name, repo.pk),
            )
    except sqlite3.IntegrityError:
        raise Refusal(
            409, f"A {kind} repository called {namespace}/{name} already exists"
        ) from None
    return JSONResponse({"url": f"{call.base_url}/{PREFIX[kind]}{namespace}/{name}"})


def update_settings(call: Call, repo: Repo, tail: list[str]) -> Response:
    """PUT …/settings: visibility and gating."""
    body = call.json()
    changes: JsonObject = {}
    if body.get("visibility") is not None or body.get("private") is not None:
        changes["private"] = _is_private(body)
    if "gated" in body:
        if body["gated"] not in ("auto", "manual", False):
            raise Refusal(400, "'gated' must be 'auto', 'manual' or false.")
        changes["gated"] = body["gated"] or ""
    for column, value in changes.items():
        call.hub.settings.write(f"UPDATE repos SET {column} = ? WHERE pk = ?", value, repo.pk)
    return JSONResponse(
        {
            "private": changes.get("private", repo.private),
            "gated": changes.get("gated", repo.gated) or False,
        }
    )


def _is_private(body: JsonObject, private: bool = False) -> bool:
    """`protected` Spaces are private here: their app would be public, but it does not run here."""
    if body.get("private") is not None:
        private = bool(body["private"])
    value = body.get("visibility") or ("private" if private else "public")
    if value not in ("public", "private", "protected"):
        raise Refusal(400, "'visibility' must be public, private or protected.")
    return bool(value != "public")


def _target(call: Call, body: JsonObject) -> tuple[str, str, str]:
    kind = field(body, "type", str, "model")
    if kind not in PREFIX:
        raise Refusal(400, f"Unknown type of repository: {kind[:40]!r}.")
    namespace = field(body, "organization", str, "") or require_user(call).user
    name = field(body, "name", str)
    if "/" in name:
        namespace, _, name = name.partition("/")
    return kind, checked_name(namespace, "namespace"), checked_name(name)
