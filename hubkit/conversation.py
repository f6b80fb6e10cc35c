"""What a conversation is, and the seat swap.

Takes and gives plain data: a *message* is ``{"role": "system" | "user" | "assistant", "content": str}`` and a
conversation is an id, its messages and where it came from. Everything that crosses a room's door has this shape.

The seat swap is the first idea of the whole toolkit. A conversation has two seats. The chat model
sits in the ``assistant`` seat of `messages`; the asker sits in the same seat of
`swap_roles(messages)`: the human's turns become ``assistant`` (what it writes), the chat model's
become ``user`` (what it reads). In training and on the wire alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from hubkit.errors import SchemaError

Role = Literal["system", "user", "assistant"]
Seat = Literal["user", "assistant"]


class Message(TypedDict):
    """One turn: who speaks, and what they say."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation between a human (``user``) and a chat model (``assistant``), as recorded:
    never swapped.

    `id` is unique within its dataset; `source` names where it came from; `meta` holds what a reader
    wants to keep."""

    id: str
    messages: list[Message]
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def human_turns(self) -> int:
        """Number of ``user`` messages."""
        return sum(m["role"] == "user" for m in self.messages)


_OTHER_SEAT: dict[str, Role] = {"user": "assistant", "assistant": "user", "system": "system"}


def swap_roles(messages: Iterable[Message]) -> list[Message]:
    """The same conversation from the other seat: ``user`` ↔ ``assistant``; ``system`` stays. Its
    own inverse.

    Raises `SchemaError` for any other role.
    """
    swapped: list[Message] = []
    for message in messages:
        role = _OTHER_SEAT.get(message["role"])
        if role is None:
            raise SchemaError(
                f"role {message['role']!r} is not one of system, user, assistant; map it before swapping seats",
                reason="unknown_role",
            )
        swapped.append({"role": role, "content": message["content"]})
    return swapped


def filled_in(system: str, name: str, value: str) -> str:
    """`system` with `value` in place of ``{name}``, or, without that place, as a paragraph behind
    it: the one way in which an asker is told its intent or persona, in training and in a rollout.

    >>> filled_in("You want: {intent}.", "intent", "bake bread"), filled_in("Ask.", "intent", "Bake
    bread.") ('You want: bake bread.', 'Ask.\n\nBake bread.')"""
    place = "{" + name + "}"
    if place in system:
        return system.replace(place, value)
    return f"{system}\n\n{value}".strip() if value else system


# White space, and what takes no space at all: zero-width characters, a byte order mark, a soft
# hyphen.
_UNSEEN = (
    "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u200c\u200d\u2060\ufeff\xad"
)


def blank(text: str) -> bool:
    """Whether nobody would see anything of `text`. Some exports hold a zero-width space for an
    answer that failed.
    """
    return not text.strip(_UNSEEN)


def fault(messages: Sequence[Message], *, first: Seat | None = "user") -> str | None:
    """The first reason why `messages` is not a well-formed conversation, or None when it is.

    Well-formed: at least one turn; text content that is not blank; at most one ``system`` message
    and only in front; then strictly alternating ``user`` / ``assistant``, starting with `first`
    (None: either may start, as in segments cut out of longer conversations). The reasons are the
    words that readers, trainers and cards count by: ``empty_conversation``, ``bad_message``,
    ``unknown_role``, ``empty_turn``, ``system_not_first``, ``wrong_start``,
    ``roles_not_alternating``."""
    expected: Role | None = first
    started = False
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return "bad_message"
        role = message.get("role")
        if role not in _OTHER_SEAT:
            return "unknown_role"
        if blank(message["content"]):
            return "empty_turn"
        if role == "system":
            if index:
                return "system_not_first"
            continue
        if expected is not None and role != expected:
            return "roles_not_alternating" if started else "wrong_start"
        expected, started = _OTHER_SEAT[role], True
    return None if started else "empty_conversation"
