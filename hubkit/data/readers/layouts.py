"""One row of somebody's dataset → one conversation, whatever the layout; or a word for what it
lacks.

Known layouts: ShareGPT (``conversations`` of from/value, also the raw export's ``items`` and
``markdown``), OpenAI ``messages``, WildChat and LMSYS-Chat (``conversation`` of role/content),
UltraChat (``data``, a flat list of texts that take turns), OpenAssistant trees (``prompt`` with
nested ``replies``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from hashlib import blake2b
from typing import Any

from hubkit.conversation import Conversation, Message, Role


class Unreadable(Exception):
    """A row that is no conversation. `reason` is the word reports count by. Never leaves the corpus
    room.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


ROLES: dict[str, Role] = {
    **dict.fromkeys(("human", "user", "prompter", "person", "question", "instruction"), "user"),
    **dict.fromkeys(
        ("gpt", "assistant", "chatgpt", "gpt-3.5-turbo", "gpt-4", "gpt4", "bing", "bard", "claude", "gemini", "palm",
         "model", "bot", "ai", "chatbot", "answer", "response"),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer"), "system"),
}  # fmt: skip
_TURN_LISTS = ("messages", "conversations", "conversation", "items", "dialog", "dialogue")
_IDS = ("id", "conversation_id", "conversation_hash", "prompt_id", "uuid", "message_tree_id")
_ROLE_KEYS = ("from", "role", "author", "speaker")
_TEXT_KEYS = (
    "content",
    "markdown",
    "value",
    "text",
)  # before `value`: an export that has both holds HTML in `value`
_PART = re.compile(r"(.+)_(\d+)\Z")


def conversation_of(row: Any, source: str, place: str) -> Conversation:
    """The conversation that `row` holds. `place` ("file:17") names it where it has no id and where
    it is unreadable.

    Its meta holds ``group`` (rows of one original conversation share it, so that no split tears
    them apart), ``is_start`` (begins with the person's real first turn) and, for the parts that
    some ShareGPT exports are cut into, ``part`` (index of its first message in the original).
    Raises `Unreadable`."""
    if not isinstance(row, Mapping):
        raise Unreadable("not_an_object")
    messages = _messages_of(row)
    identity = id_of(row)
    name = identity or f"{place}-{_digest(messages)}"
    part = _PART.match(name) if identity and "conversations" in row else None
    meta: dict[str, Any] = {
        "group": part[1] if part else name,
        "is_start": (int(part[2]) == 0 if part else True) and _starts_with_human(messages),
    }
    if part:
        meta["part"] = int(part[2])
    return Conversation(name, messages, source, meta)


def id_of(row: Any) -> str | None:
    """The row's own id, if it has one worth the name."""
    if isinstance(row, Mapping):
        for key in _IDS:
            value = row.get(key)
            if (isinstance(value, str) and value.strip()) or (
                isinstance(value, int) and not isinstance(value, bool)
            ):
                return _text(str(value))
    return None


def holds_turns(row: Any) -> bool:
    """Whether `row` has the shape of a conversation, or of one message of a tree: what a piece of
    one has not.
    """
    if not isinstance(row, Mapping):
        return False
    lists = any(isinstance(row.get(key), list) for key in (*_TURN_LISTS, "data"))
    return lists or isinstance(row.get("prompt"), Mapping) or "message_tree_id" in row


def _messages_of(row: Mapping[str, Any]) -> list[Message]:
    for key in _TURN_LISTS:
        if isinstance(turns := row.get(key), list):
            return [_message(turn) for turn in turns]
    if isinstance(texts := row.get("data"), list):
        return [_turn_of_flat(index, text) for index, text in enumerate(texts)]
    if isinstance(prompt := row.get("prompt"), Mapping):
        return list(_best_path(prompt))
    raise Unreadable("no_turns_key")


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise Unreadable("turn_not_an_object")
    role = next((turn[key] for key in _ROLE_KEYS if isinstance(turn.get(key), str)), None)
    if role is None:
        raise Unreadable("turn_without_role")
    mapped = ROLES.get(role.strip().lower())
    if mapped is None:
        raise Unreadable("unknown_role")
    content = next((turn[key] for key in _TEXT_KEYS if turn.get(key) is not None), None)
    return {"role": mapped, "content": _content(content)}


def _content(content: Any) -> str:
    """Text, or the text of OpenAI's content parts. Other parts (images, sound, tool calls) cannot
    be kept.
    """
    if isinstance(content, str):
        return _text(content)
    if content is None:
        raise Unreadable("turn_without_text")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return _text("\n".join(texts))
    raise Unreadable("turn_not_text")


def _turn_of_flat(index: int, text: Any) -> Message:
    if not isinstance(text, str):
        raise Unreadable("turn_not_text")
    return {"role": "assistant" if index % 2 else "user", "content": _text(text)}


def _best_path(node: Mapping[str, Any]) -> Iterator[Message]:
    """From the tree's prompt down, always the reply that people ranked first (unranked: the first
    one).
    """
    at: Any = node
    while isinstance(at, Mapping):
        yield _message(at)
        replies = at.get("replies")
        ranked = (
            [reply for reply in replies if isinstance(reply, Mapping)]
            if isinstance(replies, list)
            else []
        )
        at = min(ranked, key=_rank, default=None)


def _rank(reply: Mapping[str, Any]) -> float | Decimal:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float | Decimal) else float("inf")


def _text(text: str) -> str:
    """`text` as UTF-8 can hold it: half a surrogate pair (JSON can spell one) becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _digest(messages: list[Message]) -> str:
    joined = "\x1e".join(message["content"] for message in messages)
    return blake2b(joined.encode(), digest_size=6).hexdigest()


def _starts_with_human(messages: list[Message]) -> bool:
    return next((m["role"] for m in messages if m["role"] != "system"), None) == "user"
