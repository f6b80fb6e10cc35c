"""JSON's escapes: what a text says once they are resolved, and which part of it each character was.

A text inside JSON inside JSON is resolved again and again, so that ``\\\\u0040`` is found too."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right

LEVELS = 6  # how deep texts inside texts are resolved
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}"
    r'|["\\/bfnrt])'
)
_CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class Resolved:
    """A text with its escapes resolved.

    Attributes:
        text: What it says.
    """

    def __init__(self, source: str) -> None:
        self._starts: list[int] = []  # of the escapes in the source
        self._ends: list[int] = []
        self._places: list[int] = []  # of the characters that they became
        parts: list[str] = []
        at = size = 0
        for match in _ESCAPE.finditer(source):
            start, end = match.span()
            parts += (source[at:start], _character(match[0]))
            size += start - at
            self._starts.append(start)
            self._ends.append(end)
            self._places.append(size)
            size += 1
            at = end
        self.text = "".join((*parts, source[at:])) if parts else source

    def __bool__(self) -> bool:
        return bool(self._starts)

    def in_source(self, start: int, end: int) -> tuple[int, int]:
        """The part of the source that ``text[start:end]`` was."""
        return self._start(start), self._end(end - 1)

    def whole(self, start: int, end: int) -> tuple[int, int]:
        """A part of the source without the escapes of which it has only a piece."""
        before = bisect_left(self._starts, start) - 1
        if before >= 0 and start < self._ends[before]:
            start = self._ends[before]
        before = bisect_left(self._starts, end) - 1
        if before >= 0 and end < self._ends[before]:
            end = self._starts[before]
        return start, end

    def _start(self, place: int) -> int:
        before = bisect_right(self._places, place) - 1
        if before < 0:
            return place
        if self._places[before] == place:
            return self._starts[before]
        return self._ends[before] + place - self._places[before] - 1

    def _end(self, place: int) -> int:
        before = bisect_right(self._places, place) - 1
        if before < 0:
            return place + 1
        return self._ends[before] + place - self._places[before]


def _character(escape: str) -> str:
    if escape[1] != "u":
        return _CONTROLS.get(escape[1], escape[1])
    if len(escape) > 6:
        high, low = int(escape[2:6], 16), int(escape[8:], 16)
        return chr(0x10000 + ((high & 0x3FF) << 10) + (low & 0x3FF))
    code = int(escape[2:], 16)
    return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)
