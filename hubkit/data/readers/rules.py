"""What a recipe says about reading: which columns and roles mean what, and what is done with parts
that a seat may not want."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hubkit.conversation import FieldPolicy, Message

MergePolicy = Literal["merge", "drop"]


class Unreadable(Exception):
    """A row that is no conversation. `reason` is the word that reports count by, `detail` the role
    or the keys it is about. It never leaves the readers.
    """

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """How rows of one source are read.

    `turns`, `role`, `text` and `system` name the source's own columns and keys, or paths of keys;
    `conversation` and `order` those of rows that hold one turn each. `roles` maps its role names
    (lower case, without a colon) to ours."""

    turns: str | None = None
    role: str | None = None
    text: str | None = None
    system: str | None = None
    conversation: str | None = None
    order: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    repeated_turns: MergePolicy = "merge"
    second_system: MergePolicy = "merge"
    tools: FieldPolicy = "keep"
    thinking: FieldPolicy = "keep"

    @property
    def plain(self) -> bool:
        """Whether turns have no keys and roles of the source's own."""
        return not (self.roles or self.role or self.text)


@dataclass(slots=True)
class Draft:
    """A conversation while its row is read.

    `notes` are the words that reports count changes by. `used` are the row's keys whose values were
    read, `used_inside` the paths of those inside others, `unread_fields` the turns' keys whose
    values were not. `missing` are the positions of turns without any text, `textless` the keys of
    the first of them. `thoughts` are what was thought before the message at that position."""

    rules: ReadingRules
    messages: list[Message] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    used_inside: frozenset[tuple[str, ...]] = frozenset()
    unread_fields: Counter[str] = field(default_factory=Counter)
    missing: set[int] = field(default_factory=set)
    textless: str | None = None
    thoughts: dict[int, str] | None = None
    other_branches: int = 0

    def add(self, message: Message, *, missing: bool = False) -> None:
        """Append a turn; `missing` where the source has no text for it at all."""
        if missing:
            self.missing.add(len(self.messages))
        self.messages.append(message)

    def use(self, keys: tuple[str, ...]) -> None:
        """Note that what stands at `keys` of the row was read."""
        if len(keys) == 1:
            self.used.add(keys[0])
        elif keys:
            self.used_inside |= {keys}

    def note(self, *words: str) -> None:
        """Count each of `words` once for this conversation."""
        self.notes.extend(word for word in words if word not in self.notes)


def has_text(value: Any) -> bool:
    """Whether `value` holds text that a reader would miss: a string with letters or digits, or a
    list or mapping with one.
    """
    if isinstance(value, str):
        return any(map(str.isalnum, value))
    if isinstance(value, dict):
        return any(map(has_text, value.values()))
    return isinstance(value, list) and any(map(has_text, value))


TURN = "in a turn: "  # begins the detail of a turn's keys, so that they are told from a row's


def keys_of(row: Mapping[str, Any]) -> str:
    """The first keys of a row, in order, for reports."""
    names = sorted(clean_text(str(key)) for key in row)
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


def clean_text(text: str) -> str:
    """`text` as UTF-8 can hold it: half a surrogate pair (JSON can spell one) becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
