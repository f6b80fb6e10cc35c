"""Lists of repositories and collections."""

from __future__ import annotations

import sqlite3

from starlette.responses import Response

from hubkit.local_hub.api import info
from hubkit.local_hub.api.http import Call
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.pages.render import page
from hubkit.local_hub.storage.repos import PREFIX, Repo, can_read, lookup
from hubkit.untrusted import JsonObject, text_in

SHOWN_KINDS = ("models", "datasets", "spaces")
MAX_SHOWN = 300


def _repos(call: Call, kind: str, namespace: str | None = None) -> list[JsonObject]:
    rows = call.hub.settings.rows("SELECT * FROM repos WHERE type = ? ORDER BY pk DESC", kind)
    search = (call.query("search") or "").lower()
    repos = [
        repo
        for repo in map(Repo.of, rows)
        if can_read(call.identity, repo) and search in repo.id.lower()
    ]
    if namespace is not None:
        repos = [repo for repo in repos if repo.namespace.lower() == namespace.lower()]
    briefs = [_brief(call, repo) for repo in repos[:MAX_SHOWN]]
    return sorted(
        (brief for brief in briefs if brief),
        key=lambda brief: text_in(brief, "modified"),
        reverse=True,
    )


def _brief(call: Call, repo: Repo) -> JsonObject:
    facts = info.brief(call, repo)
    if facts is None:
        return {}  # deleted this moment
    task = facts.get("pipeline_tag") or facts.get("sdk")
    brief: JsonObject = {
        "id": repo.id,
        "path": repo.web_path,
        "private": repo.private,
        "gated": repo.gated,
    }
    return {**brief, "task": task, "modified": facts["lastModified"]}


def home(call: Call) -> Response:
    """/: everything."""
    groups = [(kind, _repos(call, kind.removesuffix("s"))) for kind in SHOWN_KINDS]
    search = call.query("search")
    return page(
        call,
        "list.html",
        heading=f"Repositories named {search}" if search else "Repositories",
        groups=groups,
    )


def of_kind(call: Call, kind: str) -> Response:
    """/models, /datasets, /spaces."""
    groups = [(kind, _repos(call, kind.removesuffix("s")))]
    return page(call, "list.html", heading=f"All {kind}", groups=groups, active=kind)


def of_namespace(call: Call, name: str) -> Response:
    """/{namespace}."""
    account = call.hub.settings.row("SELECT name FROM accounts WHERE name = ?", name)
    if account is None:
        raise Refusal(404, f"There is no user or organisation {name[:100]!r}.")
    groups = [(kind, _repos(call, kind.removesuffix("s"), account["name"])) for kind in SHOWN_KINDS]
    return page(call, "list.html", heading=account["name"], groups=groups)


def _visible(call: Call, row: sqlite3.Row) -> bool:
    return not row["private"] or (
        call.identity is not None and call.identity.is_in(row["namespace"])
    )


def collections(call: Call) -> Response:
    """/collections."""
    rows = [
        row for row in call.hub.settings.rows("SELECT * FROM collections ORDER BY updated_at DESC")
    ]
    items = [
        {
            "href": f"/collections/{row['namespace']}/{row['slug']}-{row['id']}",
            "name": row["title"],
            "note": row["namespace"],
        }
        for row in rows
        if _visible(call, row)
    ]
    return page(
        call,
        "collection.html",
        heading="Collections",
        description=None,
        items=items,
        active="collections",
    )


def collection(call: Call) -> Response:
    """/collections/{namespace}/{slug-id}."""
    key = call.segments[2].rpartition("-")[2]
    row = call.hub.settings.row("SELECT * FROM collections WHERE id = ?", key)
    if row is None or not _visible(call, row):
        raise Refusal(404, "There is no such collection.")
    entries = call.hub.settings.rows(
        "SELECT * FROM collection_items WHERE collection = ? ORDER BY position", key
    )
    items = [item for entry in entries if (item := _item(call, entry))]
    return page(
        call, "collection.html", heading=row["title"], description=row["description"], items=items
    )


def _item(call: Call, row: sqlite3.Row) -> JsonObject | None:
    namespace, _, name = row["item"].partition("/")
    repo, _ = lookup(call.hub, row["type"], namespace, name, call.identity)
    if repo is None or not can_read(call.identity, repo):
        return None
    return {
        "href": f"/{PREFIX[repo.type]}{repo.id}",
        "name": repo.id,
        "note": row["note"] or row["type"],
    }
