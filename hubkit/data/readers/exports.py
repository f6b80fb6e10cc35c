"""Exports of chat applications in which a conversation is a tree of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from hubkit.data.readers.rules import Draft, Unreadable
from hubkit.data.readers.turns import add_content, add_turn, to_json

NODE_NOTES = {
    "hidden_nodes_left_out": "messages that the application hid",
    "system_nodes_left_out": "the application's own system messages",
    "tool_nodes_left_out": "calls of tools and their results",
    "blank_nodes_left_out": "messages without text",
    "attachments_left_out": "texts of attached files",
}


_LATEST = 1e12  # seconds; a float cannot hold every whole number of a JSON text


def add_mapping(row: Mapping[str, Any], draft: Draft) -> None:
    """Append the messages of a ``mapping`` tree on the path that ends at ``current_node``."""
    nodes = {k: v for k, v in row["mapping"].items() if isinstance(v, dict)}
    parents = {v.get("parent") for v in nodes.values() if isinstance(v.get("parent"), str)}
    leaves = [key for key in nodes if key not in parents]
    draft.other_branches += max(len(leaves) - 1, 0)
    at = row.get("current_node")
    if not isinstance(at, str) or at not in nodes:
        at = max(leaves, key=lambda leaf: _time(nodes[leaf]), default=None)
    path: list[Mapping[str, Any]] = []
    visited: set[str] = set()
    while isinstance(at, str) and at in nodes and at not in visited:
        visited.add(at)
        if isinstance(message := nodes[at].get("message"), dict):
            path.append(message)
        at = nodes[at].get("parent")
    thoughts: list[str] = []
    for message in reversed(path):
        _add_node(message, draft, thoughts)


def _time(node: Mapping[str, Any]) -> float:
    message = node.get("message")
    time = message.get("create_time") if isinstance(message, dict) else None
    return float(time) if isinstance(time, int | float) and abs(time) < _LATEST else 0.0


def _add_node(message: Mapping[str, Any], draft: Draft, thoughts: list[str]) -> None:
    author = message.get("author")
    role = author.get("role") if isinstance(author, dict) else None
    content = message.get("content")
    content = content if isinstance(content, dict) else {}
    metadata = message.get("metadata")
    hidden = isinstance(metadata, dict) and metadata.get("is_visually_hidden_from_conversation")
    kind = content.get("content_type")
    if kind == "thoughts" and isinstance(content.get("thoughts"), list):
        thoughts += [str(t.get("content", "")) for t in content["thoughts"] if isinstance(t, dict)]
    elif hidden:
        draft.note("hidden_nodes_left_out")
    elif role == "system":
        draft.note("system_nodes_left_out")
    elif role == "tool" or message.get("recipient", "all") != "all" or kind == "code":
        draft.note("tool_nodes_left_out")
    else:
        parts = content.get("parts", content.get("text"))
        if not parts or parts == [""]:
            draft.note("blank_nodes_left_out")
            return
        if role not in ("user", "assistant"):
            raise Unreadable("unknown_role", str(role))
        add_content(role, parts, draft)
        if role == "assistant" and thoughts:
            draft.messages[-1]["thinking"] = "\n\n".join(thoughts)
            thoughts.clear()


def add_chat_messages(row: Mapping[str, Any], draft: Draft) -> None:
    """Append the turns of ``chat_messages``, each with its ``sender`` and ``text``."""
    for turn in row["chat_messages"]:
        if isinstance(turn, dict):
            if any(turn.get(key) for key in ("attachments", "files")):
                draft.note("attachments_left_out")
            repeated = _same_words(turn.get("text"), turn.get("content"))
            turn = {k: v for k, v in turn.items() if k not in _CHAT_METADATA}
            if repeated:
                del turn["content"]
        add_turn(turn, draft)


_CHAT_METADATA = ("attachments", "files", "uuid", "created_at", "updated_at", "parent_message_uuid")


def _same_words(text: Any, parts: Any) -> bool:
    """Whether content parts hold no other words than `text`."""
    if not isinstance(text, str) or not text.strip() or not isinstance(parts, list):
        return False
    return all(
        isinstance(part, dict) and part.get("type") == "text" and str(part.get("text")) in text
        for part in parts
    )


def add_contents(row: Mapping[str, Any], draft: Draft) -> Iterator[str]:
    """Append the turns of ``contents``, and what the system is told in front.

    Yields:
        The other columns that were read."""
    for key in ("systemInstruction", "system_instruction"):
        system = row.get(key)
        if isinstance(system, dict | str):
            content = system if isinstance(system, str) else _standard_parts(system.get("parts"))
            add_content("system", content, draft)
            yield key
    for turn in row["contents"]:
        add_turn({**turn, "parts": None, "content": _standard_parts(turn["parts"])}, draft)


def _standard_parts(parts: Any) -> Any:
    return [_standard_part(p) for p in (parts if isinstance(parts, list) else [parts])]


def _standard_part(part: Any) -> Any:
    """A part as Gemini's interfaces write it, as other content parts are written."""
    if not isinstance(part, dict):
        return part
    if part.get("thought") is True:
        return {"type": "thinking", "thinking": part.get("text")}
    for name in ("functionCall", "function_call"):
        if isinstance(call := part.get(name), dict):
            return {"type": "tool_use", "name": call.get("name"), "input": call.get("args", {})}
    for name in ("functionResponse", "function_response"):
        if isinstance(result := part.get(name), dict):
            return {"type": "tool_result", "content": to_json(result.get("response"))}
    return part


def add_best_path(prompt: Mapping[str, Any], draft: Draft) -> None:
    """Append the messages from a tree's prompt down, always the reply that people ranked first
    (unranked: the first one).
    """
    draft.other_branches += _leaves(prompt) - 1
    for node in _best_path(prompt):
        add_turn({k: v for k, v in node.items() if k not in _TREE_KEYS}, draft)


_TREE_KEYS = ("replies", "labels", "emojis", "detoxify", "message_tree_id", "user_id", "lang",
              "created_date", "tree_state")  # fmt: skip


def _best_path(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    at: Any = node
    while isinstance(at, dict):
        yield at
        at = min(_replies(at), key=_rank, default=None)


def _replies(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    replies = node.get("replies")
    return [r for r in replies if isinstance(r, dict)] if isinstance(replies, list) else []


def _rank(reply: Mapping[str, Any]) -> float | Decimal:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float | Decimal) else float("inf")


def _leaves(prompt: Mapping[str, Any]) -> int:
    """How many ways from the prompt to a last message a tree has."""
    count, pending = 0, [prompt]
    while pending:
        below = _replies(pending.pop())
        count += not below
        pending.extend(below)
    return count
