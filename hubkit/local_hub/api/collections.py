"""Collections: lists of repositories with a title and notes."""

from __future__ import annotations

import re
import secrets
import sqlite3
from typing import Any

from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.http import Call, field, page, require_writer
from hubkit.local_hub.api.info import describe
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.accounts import now
from hubkit.local_hub.storage.repos import can_read, lookup
from hubkit.untrusted import JsonObject, list_in, text_in

THEMES = ("orange", "blue", "green", "purple", "pink", "indigo")
MAX_NOTE = 500
MAX_TITLE = 60


def route(call: Call) -> Response:
    """/api/collections[/{namespace}/{slug-id}[/items[/{item}]]]"""
    parts = call.segments[2:]
    handlers = {
        (0, "GET"): list_collections,
        (0, "POST"): create,
        (2, "GET"): get,
        (2, "PATCH"): update,
        (2, "DELETE"): delete,
        (3, "POST"): add_item,
        (4, "PATCH"): update_item,
        (4, "DELETE"): delete_item,
    }
    handler = handlers.get((len(parts), call.method))
    if handler is None or (len(parts) > 2 and parts[2] != "items"):
        raise Refusal(404, "Not found: this Hub has nothing at this address.")
    return handler(call)


def _collection_row(call: Call, *, write: bool = False) -> sqlite3.Row:
    namespace, slug = call.segments[2], call.segments[3]
    row = call.hub.settings.row("SELECT * FROM collections WHERE id = ?", slug.rpartition("-")[2])
    hidden = (
        row is not None
        and row["private"]
        and not (call.identity and call.identity.is_in(row["namespace"]))
    )
    if row is None or hidden or row["namespace"].lower() != namespace.lower():
        raise Refusal(404, "Collection not found")
    if write:
        require_writer(call, row["namespace"])
    return row


def _described(call: Call, row: sqlite3.Row) -> JsonObject:
    items = call.hub.settings.rows(
        "SELECT * FROM collection_items WHERE collection = ? ORDER BY position", row["id"]
    )
    items_json = [described for item in items if (described := _item(call, item)) is not None]
    return {
        "slug": f"{row['namespace']}/{row['slug']}-{row['id']}",
        "title": row["title"],
        "description": row["description"],
        "owner": {
            "name": row["namespace"],
            "type": "user",
            "fullname": row["namespace"],
            "avatarUrl": "",
        },
        "lastUpdated": row["updated_at"],
        "position": row["position"],
        "private": bool(row["private"]),
        "theme": row["theme"],
        "upvotes": 0,
        "gating": False,
        "items": items_json,
    }


def _item(call: Call, row: sqlite3.Row) -> JsonObject | None:
    answer = {"_id": row["id"], "id": row["item"], "type": row["type"], "position": row["position"]}
    if row["note"]:
        answer["note"] = {"text": row["note"], "html": None}
    namespace, _, name = row["item"].partition("/")
    repo, _ = lookup(call.hub, row["type"], namespace, name, call.identity)
    if repo is None:
        return {**answer, "author": namespace} if row["type"] in ("paper", "collection") else None
    if not can_read(call.identity, repo):
        return None
    facts = describe(call, repo)
    keys = (
        "author",
        "downloads",
        "gated",
        "lastModified",
        "likes",
        "pipeline_tag",
        "private",
        "sdk",
    )
    return {
        **answer,
        "id": repo.id,
        **{key: facts[key] for key in keys if key in facts},
        "repoType": row["type"],
    }


def list_collections(call: Call) -> Response:
    """GET /api/collections?owner&item&sort&limit."""
    owners = [owner.lower() for owner in call.request.query_params.getlist("owner")]
    rows = call.hub.settings.rows("SELECT * FROM collections ORDER BY updated_at DESC")
    descriptions = []
    for row in rows:
        visible = not row["private"] or (
            call.identity is not None and call.identity.is_in(row["namespace"])
        )
        if visible and (not owners or row["namespace"].lower() in owners) and _holds(call, row):
            described = _described(call, row)
            described.pop("position")
            descriptions.append({**described, "items": list_in(described, "items")[:4]})
    return page(call, descriptions, call.number("limit", 100, 100))


def _holds(call: Call, row: sqlite3.Row) -> bool:
    requested = call.request.query_params.getlist("item")
    if not requested:
        return True
    items = call.hub.settings.rows(
        "SELECT type, item FROM collection_items WHERE collection = ?", row["id"]
    )
    return bool({f"{item['type']}s/{item['item']}" for item in items} & set(requested))


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "collection"


def _title(body: JsonObject) -> str:
    title = field(body, "title", str).strip()
    if not title or len(title) > MAX_TITLE:
        raise Refusal(400, f"A title has between 1 and {MAX_TITLE} characters.")
    return title


def create(call: Call) -> Response:
    """POST /api/collections {title, namespace, description, private}."""
    body = call.json()
    title, namespace = _title(body), field(body, "namespace", str)
    identity = require_writer(call, namespace)
    if not call.hub.accounts.exists(namespace):
        call.hub.accounts.add_org(namespace, {identity.user: "admin"})
    settings = call.hub.settings
    existing = settings.row(
        "SELECT * FROM collections WHERE namespace = ? AND title = ?", namespace, title
    )
    if existing is not None:
        slug = f"{existing['namespace']}/{existing['slug']}-{existing['id']}"
        raise Refusal(409, "This collection already exists", extra={"slug": slug})
    key, text = secrets.token_hex(12), field(body, "description", str, "")
    count = len(settings.rows("SELECT 1 FROM collections WHERE namespace = ?", namespace))
    settings.write(
        "INSERT INTO collections VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *(
            key,
            namespace,
            _slug(title),
            title,
            text,
            bool(body.get("private")),
            THEMES[0],
            count,
            now(),
            identity.user,
        ),
    )
    row = settings.row("SELECT * FROM collections WHERE id = ?", key)
    assert row is not None  # just inserted
    return JSONResponse(_described(call, row))


def get(call: Call) -> Response:
    """GET one collection."""
    return JSONResponse(_described(call, _collection_row(call)))


def update(call: Call) -> Response:
    """PATCH {title, description, private, theme, position}."""
    row, body = _collection_row(call, write=True), call.json()
    changes: JsonObject = {"updated_at": now()}
    if "title" in body:
        changes["title"] = _title(body)
        changes["slug"] = _slug(text_in(changes, "title"))
    kinds: dict[str, type[Any]] = {
        "description": str,
        "private": bool,
        "theme": str,
        "position": int,
    }
    changes |= {key: field(body, key, kind) for key, kind in kinds.items() if key in body}
    if changes.get("theme", THEMES[0]) not in THEMES:
        raise Refusal(400, f"'theme' must be one of {', '.join(THEMES)}.")
    with call.hub.settings.transaction() as connection:
        for column, value in changes.items():
            connection.execute(
                f"UPDATE collections SET {column} = ? WHERE id = ?", (value, row["id"])
            )
    return JSONResponse({"success": True, "data": _described(call, _found_by(call, row["id"]))})


def _found_by(call: Call, key: str) -> sqlite3.Row:
    row = call.hub.settings.row("SELECT * FROM collections WHERE id = ?", key)
    if row is None:
        raise Refusal(404, "Collection not found")
    return row


def delete(call: Call) -> Response:
    """DELETE one collection."""
    call.hub.settings.write(
        "DELETE FROM collections WHERE id = ?", _collection_row(call, write=True)["id"]
    )
    return JSONResponse({})


def add_item(call: Call) -> Response:
    """POST …/items {item: {type, id}, note}."""
    row, body = _collection_row(call, write=True), call.json()
    item = field(body, "item", dict)
    kind, name = field(item, "type", str), field(item, "id", str)
    if kind not in ("model", "dataset", "space", "paper", "collection"):
        raise Refusal(400, "'type' must be model, dataset, space, paper or collection.")
    if kind in ("model", "dataset", "space"):
        namespace, _, short = name.partition("/")
        repo, _ = lookup(call.hub, kind, namespace, short, call.identity)
        if repo is None or not can_read(call.identity, repo):
            raise Refusal(404, f"There is no {kind} {name[:200]}.")
        name = repo.id
    count = len(
        call.hub.settings.rows("SELECT 1 FROM collection_items WHERE collection = ?", row["id"])
    )
    try:
        call.hub.settings.write(
            "INSERT INTO collection_items VALUES (?, ?, ?, ?, ?, ?)",
            *(secrets.token_hex(12), row["id"], kind, name, _note(body), count),
        )
    except sqlite3.IntegrityError:
        raise Refusal(409, "This item is already in the collection") from None
    _touch(call, row)
    return JSONResponse(_described(call, _found_by(call, row["id"])))


def _note(body: JsonObject) -> str | None:
    note = field(body, "note", str, "")
    if len(note) > MAX_NOTE:
        raise Refusal(400, f"A note has at most {MAX_NOTE} characters.")
    return note or None


def _touch(call: Call, row: sqlite3.Row) -> None:
    call.hub.settings.write("UPDATE collections SET updated_at = ? WHERE id = ?", now(), row["id"])


def _found_item(call: Call, row: sqlite3.Row) -> sqlite3.Row:
    sql = "SELECT * FROM collection_items WHERE collection = ? AND id = ?"
    item = call.hub.settings.row(sql, row["id"], call.segments[5])
    if item is None:
        raise Refusal(404, "Item not found in this collection")
    return item


def update_item(call: Call) -> Response:
    """PATCH …/items/{item} {note, position}."""
    row, body = _collection_row(call, write=True), call.json()
    item = _found_item(call, row)
    if "note" in body:
        call.hub.settings.write(
            "UPDATE collection_items SET note = ? WHERE id = ?", _note(body), item["id"]
        )
    if "position" in body:
        _reorder(call, row, item["id"], field(body, "position", int))
    _touch(call, row)
    return JSONResponse({"success": True})


def _reorder(call: Call, row: sqlite3.Row, item_id: str, position: int) -> None:
    items = call.hub.settings.rows(
        "SELECT id FROM collection_items WHERE collection = ? ORDER BY position", row["id"]
    )
    order = [item["id"] for item in items if item["id"] != item_id]
    order.insert(max(0, position), item_id)
    with call.hub.settings.transaction() as connection:
        for index, key in enumerate(order):
            connection.execute(
                "UPDATE collection_items SET position = ? WHERE id = ?", (index, key)
            )


def delete_item(call: Call) -> Response:
    """DELETE …/items/{item}."""
    row = _collection_row(call, write=True)
    call.hub.settings.write(
        "DELETE FROM collection_items WHERE id = ?", _found_item(call, row)["id"]
    )
    _touch(call, row)
    return JSONResponse({"success": True})
