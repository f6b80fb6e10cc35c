"""Message trees stored one message a row, as OpenAssistant's are, put together: one row in, per
tree, one row out.

Rows of one tree stand together in such files. A message whose parent is not there, or that comes
twice, is a gap of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hubkit.data.readers.items import Broken, Item, Row


def assemble(items: Iterable[Item]) -> Iterator[Item]:
    """`items` with each run of messages of one tree replaced by the tree, nested under
    ``prompt``.
    """
    pending: list[Row] = []
    for item in items:
        tree = _tree_of(item)
        if pending and tree != _tree_of(pending[0]):
            yield from _nested(pending)
            pending = []
        if tree is None:
            yield item
        elif isinstance(item, Row):
            pending.append(item)
    if pending:
        yield from _nested(pending)


def branches(prompt: Mapping[str, Any]) -> int:
    """How many ways from the prompt to a last message a tree has."""
    count, todo = 0, [prompt]
    while todo:
        replies = todo.pop().get("replies")
        below = (
            [reply for reply in replies if isinstance(reply, Mapping)]
            if isinstance(replies, list)
            else []
        )
        count += not below
        todo.extend(below)
    return count


def _tree_of(item: Item) -> str | None:
    """The tree that a row is a message of, or None where it is something else."""
    value = item.value if isinstance(item, Row) else None
    if (
        not isinstance(value, Mapping)
        or not isinstance(value.get("message_id"), str)
        or "text" not in value
    ):
        return None
    tree = value.get("message_tree_id")
    return tree if isinstance(tree, str) else None


def _nested(rows: list[Row]) -> Iterator[Item]:
    nodes: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    for row in rows:
        name = row.value["message_id"]
        if name in nodes:
            yield Broken("duplicate_message", row.place, 0, name)
            continue
        nodes[name], places[name] = {**row.value, "replies": []}, row.place
    root = next((name for name, node in nodes.items() if node.get("parent_id") is None), None)
    for name, node in nodes.items():
        parent = node.get("parent_id")
        if name != root and isinstance(parent, str) and parent in nodes:
            nodes[parent]["replies"].append(node)
    reached = _reached(nodes[root]) if root else set()
    for name in nodes:
        if name not in reached:
            yield Broken("orphan_message", places[name], 0, name)
    if root:
        tree = {"message_tree_id": rows[0].value["message_tree_id"], "prompt": nodes[root]}
        yield Row(tree, places[root], rows=len(reached))


def _reached(root: dict[str, Any]) -> set[str]:
    names: set[str] = set()
    todo = [root]
    while todo:
        node = todo.pop()
        names.add(node["message_id"])
        todo.extend(node["replies"])
    return names
