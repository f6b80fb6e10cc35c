"""Conversations stored one message a row, put together: one row in, per conversation, one row out.

Message trees, as OpenAssistant's are: rows of one tree are neighbours; a message whose parent is
not there, or that comes twice, is a gap of its own. Chat logs with ``is_user`` and ``mes`` a line,
as SillyTavern writes them: a file holds one chat after each header line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hubkit.data.readers.items import Broken, Item, Row

_LOG_HEADER = ("user_name", "character_name", "chat_metadata")


def assemble(items: Iterable[Item]) -> Iterator[Item]:
    """Replace each run of messages of one tree by the tree, nested under ``prompt``, and each run
    of a chat log's lines by a row with ``messages``.
    """
    pending: list[Row] = []
    group: str | None = None
    for item in items:
        item_group = _group_of(item, group)
        if pending and (item_group != group or _is_header(item)):
            yield from _put_together(pending, group)
            pending = []
        group = item_group
        if item_group is None:
            yield item
        elif isinstance(item, Row):
            pending.append(item)
    if pending:
        yield from _put_together(pending, group)


def _group_of(item: Item, current: str | None) -> str | None:
    """What the row is a piece of: a tree's id, or "" for a chat log; None where it is whole."""
    value = item.value if isinstance(item, Row) else None
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("mes"), str) and "is_user" in value:
        return ""
    if _is_header(item):
        return ""
    if not isinstance(value.get("message_id"), str) or "text" not in value:
        return None
    tree = value.get("message_tree_id")
    return f"tree {tree}" if isinstance(tree, str) else None


def _is_header(item: Item) -> bool:
    value = item.value if isinstance(item, Row) else None
    return isinstance(value, dict) and all(key in value for key in _LOG_HEADER[:2])


def _put_together(rows: list[Row], group: str | None) -> Iterator[Item]:
    return _nested(rows) if group else _log(rows)


def _log(rows: list[Row]) -> Iterator[Item]:
    lines = [row.value for row in rows if "mes" in row.value]
    turns = [line for line in lines if line.get("is_system") is not True]
    header = {k: v for row in rows if "mes" not in row.value for k, v in row.value.items()}
    value = {**header, "messages": turns}
    if len(turns) < len(lines):
        value["hidden lines"] = [line for line in lines if line.get("is_system") is True]
    yield Row(value, rows[0].position, rows=len(rows))


def _nested(rows: list[Row]) -> Iterator[Item]:
    nodes: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    for row in rows:
        name = row.value["message_id"]
        if name in nodes:
            yield Broken("duplicate_message", row.position, 0, name)
            continue
        nodes[name], places[name] = {**row.value, "replies": []}, row.position
    root = next((name for name, node in nodes.items() if node.get("parent_id") is None), None)
    for name, node in nodes.items():
        parent = node.get("parent_id")
        if name != root and isinstance(parent, str) and parent in nodes:
            nodes[parent]["replies"].append(node)
    connected = _connected(nodes[root]) if root else set()
    for name in nodes:
        if name not in connected:
            yield Broken("orphan_message", places[name], 0, name)
    if root:
        tree = {"message_tree_id": rows[0].value["message_tree_id"], "prompt": nodes[root]}
        yield Row(tree, places[root], rows=len(connected))


def _connected(root: dict[str, Any]) -> set[str]:
    names: set[str] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        names.add(node["message_id"])
        pending.extend(node["replies"])
    return names
