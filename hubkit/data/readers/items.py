"""What reading a file gives, piece by piece: rows, the gaps between them, and what is not read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_ID = re.compile(rb'"(?:id|conversation_id|conversation_hash)"\s*:\s*"([^"\\]{1,100})"')


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row and its position ("line 17" or "row 17", counted from 1).

    `rows` of the file went into it; `label` is its key in an object of rows by name. `turns` are
    those of the conversation `label`, which had a row each; `value` is what these had in common.
    """

    value: Any
    position: str
    rows: int = 1
    label: str | None = None
    turns: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """What could not be read: why, where, how many bytes of the (unpacked) file it took, and which
    row it was. `encoding` is the likely one of text that is not UTF-8; `keys` are those of a row
    that lacks one.
    """

    reason: str
    position: str
    lost_bytes: int
    row_id: str | None = None
    encoding: str | None = None
    keys: str | None = None
    rows: int = 1


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file, an archive's member or a value that is no row and was not read, and why."""

    name: str
    reason: str


Item = Row | Broken | PassedOver


def id_in(text: bytes) -> str | None:
    """Find the first id in the bytes of a broken row."""
    match = _ID.search(text)
    return match[1].decode("utf-8", "replace") if match else None
