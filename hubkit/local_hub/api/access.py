"""Gated repositories: who asked, who was let in; and "may I?" questions."""

from __future__ import annotations

import sqlite3

from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.http import Call, field, page, require_gate, require_user
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.accounts import now
from hubkit.local_hub.storage.repos import Repo
from hubkit.untrusted import JsonObject

STATUSES = ("pending", "accepted", "rejected")


def auth_check(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/auth-check[/write]."""
    require_gate(call, repo)
    if tail == ["write"]:
        call.require_write(repo)
    return JSONResponse({})


def ask(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST /{prefix}{id}/ask-access: one's own request."""
    identity = require_user(call)
    if not repo.gated:
        raise Refusal(400, "This repository is not gated.")
    status = "accepted" if repo.gated == "auto" else "pending"
    sql = "INSERT OR IGNORE INTO access VALUES (?, ?, ?, ?, NULL, NULL)"
    call.hub.settings.write(sql, identity.user, repo.pk, status, now())
    return JSONResponse({"status": status})


def requests(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/user-access-request/{status}; POST …/handle and …/grant."""
    call.require_write(repo)
    action = tail[0] if len(tail) == 1 else ""
    if call.method == "GET" and action in STATUSES:
        rows = call.hub.settings.rows(
            "SELECT * FROM access WHERE repo=? AND status=?", repo.pk, action
        )
        return page(call, [_described(call, row) for row in rows], 100)
    if call.method == "POST" and action == "grant":
        return _grant(call, repo)
    if call.method == "POST" and action == "handle":
        return _handle(call, repo)
    raise Refusal(404, "Not offered for access requests.")


def _described(call: Call, row: sqlite3.Row) -> JsonObject:
    account = call.hub.settings.row("SELECT * FROM accounts WHERE name = ?", row["user"])
    user = {
        "user": row["user"],
        "fullname": account["fullname"] if account else row["user"],
        "avatarUrl": "",
    }
    if row["granted_by"] is None and account:
        user["email"] = account["email"]
    return {
        "user": user,
        "requestId": row["user"],
        "status": row["status"],
        "timestamp": row["asked_at"],
    }


def _user(call: Call, body: JsonObject) -> str:
    name = field(body, "user", str, "") or field(body, "requestId", str)
    row = call.hub.settings.row("SELECT name FROM accounts WHERE name = ? AND kind = 'user'", name)
    if row is None:
        raise Refusal(404, f"There is no user {name[:100]!r}.")
    return str(row["name"])


def _grant(call: Call, repo: Repo) -> Response:
    if not repo.gated:
        raise Refusal(400, "This repository is not gated.")
    try:
        call.hub.settings.write(
            "INSERT INTO access VALUES (?, ?, 'accepted', ?, NULL, ?)",
            *(_user(call, call.json()), repo.pk, now(), require_user(call).user),
        )
    except sqlite3.IntegrityError:
        raise Refusal(400, "There is already a request of this user.") from None
    return JSONResponse({})


def _handle(call: Call, repo: Repo) -> Response:
    body = call.json()
    status, user = field(body, "status", str), _user(call, body)
    if status not in STATUSES:
        raise Refusal(400, f"'status' must be one of {', '.join(STATUSES)}.")
    sql = "UPDATE access SET status = ? WHERE user = ? AND repo = ? AND status <> ?"
    if not call.hub.settings.write(sql, status, user, repo.pk, status):
        raise Refusal(404, f"There is no request of {user} that is not {status} yet.")
    return JSONResponse({})
