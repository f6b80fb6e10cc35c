"""Users and organisations as others see them, and what they like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.http import Call, page, require_user
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.accounts import now
from hubkit.local_hub.storage.repos import Repo, can_read
from hubkit.untrusted import JsonObject


def route(call: Call) -> Response:
    """GET /api/users/{name}/likes|overview and /api/organizations/{name}/overview|members."""
    kind, parts = call.segments[1], call.segments[2:]
    answers: dict[str, dict[str, Callable[[Call, str], Response]]] = {
        "users": {"likes": _likes, "overview": _overview},
        "organizations": {"overview": _overview, "members": _members},
    }
    answer = (
        answers[kind].get(parts[1]) if len(parts) == 2 and call.method in ("GET", "HEAD") else None
    )
    if answer is None:
        raise Refusal(404, "Not found: this Hub has nothing at this address.")
    account = call.hub.settings.row("SELECT * FROM accounts WHERE name = ?", parts[0])
    if account is None or account["kind"] != kind.removesuffix("s").replace("organization", "org"):
        raise Refusal(404, f"There is no such account: {parts[0][:100]}.")
    return answer(call, account["name"])


def _likes(call: Call, name: str) -> Response:
    rows = call.hub.settings.rows("SELECT repo, created_at FROM likes WHERE user = ?", name)
    liked = []
    for row in rows:
        repo_row = call.hub.settings.row("SELECT * FROM repos WHERE pk = ?", row["repo"])
        if repo_row and can_read(call.identity, repo := Repo.of(repo_row)):
            liked.append(
                {"createdAt": row["created_at"], "repo": {"name": repo.id, "type": repo.type}}
            )
    return page(call, liked, 100)


def _overview(call: Call, name: str) -> Response:
    account = call.hub.settings.row("SELECT * FROM accounts WHERE name = ?", name)
    assert account is not None  # looked up by the caller
    rows = call.hub.settings.rows("SELECT * FROM repos WHERE namespace = ?", name)
    visible = [repo.type for repo in map(Repo.of, rows) if can_read(call.identity, repo)]
    answer: JsonObject = {
        "user": name,
        "name": name,
        "fullname": account["fullname"],
        "avatarUrl": "",
    }
    answer |= {"type": account["kind"], "isPro": False, "createdAt": account["created_at"]}
    answer |= {f"num{kind.title()}s": visible.count(kind) for kind in ("model", "dataset", "space")}
    orgs = call.hub.settings.rows("SELECT org FROM members WHERE user = ?", name)
    answer["orgs"] = [{"name": org["org"], "fullname": org["org"], "avatarUrl": ""} for org in orgs]
    return JSONResponse(answer)


def _members(call: Call, name: str) -> Response:
    rows = call.hub.settings.rows("SELECT user FROM members WHERE org = ? ORDER BY user", name)
    return page(
        call, [{"user": row["user"], "fullname": row["user"], "avatarUrl": ""} for row in rows], 100
    )


def like(call: Call, repo: Repo, tail: list[str]) -> Response:
    """POST and DELETE …/like."""
    identity = require_user(call)
    if call.method == "POST":
        call.hub.settings.write(
            "INSERT OR IGNORE INTO likes VALUES (?, ?, ?)", identity.user, repo.pk, now()
        )
    else:
        call.hub.settings.write(
            "DELETE FROM likes WHERE user = ? AND repo = ?", identity.user, repo.pk
        )
    return JSONResponse({})


def likers(call: Call, repo: Repo, tail: list[str]) -> Response:
    """GET …/likers."""
    rows = call.hub.settings.rows("SELECT user FROM likes WHERE repo = ? ORDER BY user", repo.pk)
    return page(
        call, [{"user": row["user"], "fullname": row["user"], "avatarUrl": ""} for row in rows], 100
    )


def whoami(call: Call) -> JsonObject:
    """GET /api/whoami-v2."""
    identity = require_user(call)
    account = call.hub.settings.row("SELECT * FROM accounts WHERE name = ?", identity.user)
    assert account is not None  # tokens are joined with accounts
    orgs = [_org_brief(call, org, role) for org, role in identity.orgs]
    token = {
        "displayName": identity.token_name,
        "role": identity.role,
        "createdAt": account["created_at"],
    }
    return {
        "type": "user",
        "id": hashlib.sha256(identity.user.encode()).hexdigest()[:24],
        "name": identity.user,
        "fullname": account["fullname"],
        "email": account["email"],
        "emailVerified": True,
        "canPay": False,
        "isPro": False,
        "avatarUrl": "",
        "periodEnd": None,
        "orgs": orgs,
        "auth": {"type": "access_token", "accessToken": token},
    }


def _org_brief(call: Call, name: str, role: str) -> JsonObject:
    account = call.hub.settings.row("SELECT fullname FROM accounts WHERE name = ?", name)
    return {
        "type": "org",
        "id": hashlib.sha256(name.encode()).hexdigest()[:24],
        "name": name,
        "fullname": account["fullname"] if account else name,
        "isEnterprise": False,
        "canPay": False,
        "avatarUrl": "",
        "roleInOrg": role,
    }
