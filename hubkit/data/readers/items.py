"""What reading a file gives, piece by piece: rows, and the gaps between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_ID = re.compile(rb'"(?:id|conversation_id|conversation_hash)"\s*:\s*"([^"\\]{1,100})"')


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row and where it stands ("line 17" or "row 17", counted from 1); `rows` of the file
    went into it.
    """

    value: Any
    place: str
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Broken:
    """What could not be read: why, where, how many bytes of the (unpacked) file went with it, and
    whose row it was.
    """

    reason: str
    place: str
    lost_bytes: int
    row_id: str | None = None


Item = Row | Broken


def id_in(text: bytes) -> str | None:
    """The first id that stands in the bytes of a broken row, if any."""
    found = _ID.search(text)
    return found[1].decode("utf-8", "replace") if found else None
