"""Rows of one JSON array, or of objects one after another, streamed; behind a fault, on from the
next conversation.

A fault in the syntax leaves a parser lost. So bytes reach it cut before everything that looks like
the start of a row, and after a fault a new parser begins at the next such place that turns out to
hold a whole conversation. What lies between is one gap, and is said."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, pairwise
from typing import Any

from hubkit.data.readers.items import Broken, Item, Row, id_in
from hubkit.data.readers.layouts import holds_turns

_KEYS = (
    b"id|conversation_id|conversation_hash|prompt_id|uuid|message_tree_id|message_id|"
    b"messages|conversations|conversation|items|dialog|dialogue|data|prompt"
)
_FIRST_KEY = re.compile(rb'\s*\[?\s*\{\s*"([\w-]{1,40})"\s*:')
_HELD = 80  # bytes at a block's end in which the start of a row may be cut in two
_MOST_SINCE = 1 << 24  # bytes of an unfinished row that are kept, to look for whole rows inside it
_MOST_AGAIN = (
    1 << 26
)  # bytes fed a second time before a row comes of it; a part counts as 512 at least
_DEEPEST = 2000  # brackets open at once, those in texts included: a parser's memory grows with the square of them


def array_rows(first: bytes, stream: Iterator[bytes], prefix: str = "item") -> Iterator[Item]:
    """Rows of one JSON array (or, with an empty prefix, of objects one after another), and its
    gaps.

    A gap is ``broken_json`` with rows behind it or a fault in it, and ``cut_off`` where the file
    just ends."""
    parts, gap = _Parts(first, stream), _Gap()
    reader = _Reader(prefix, parts.starts)
    number, again = 0, _MOST_AGAIN
    while True:
        part = next(parts, None)
        if part is not None and gap.open and not reader.since and not parts.starts(part):
            gap.swallow(part)  # nothing can begin in the middle of something
            continue
        fault = reader.close() if part is None else reader.feed(part)
        values = reader.take(whole=gap.open)
        if values is None:
            fault, values = "broken_json", []  # a piece of a broken row that passes for a row
        for value in values:
            if gap.open:
                yield gap.told(number, "broken_json")
                gap, again = _Gap(), _MOST_AGAIN
            number += 1
            yield Row(value, f"row {number}")
        if fault is None and part is None:
            break
        if fault is not None:
            inside = reader.inside() if again > 0 else []
            gap.add(reader, fault, inside)
            again -= sum(max(len(more), 512) for more in inside)
            parts.again(inside)
            reader = _Reader(prefix, parts.starts)
            if part is None and not inside:
                break
    if gap.open:
        yield gap.told(number, gap.reason)


class _Gap:
    """What could not be read since the last whole row: why at first, how many bytes, whose row."""

    def __init__(self) -> None:
        self.open, self.reason, self.lost = False, "", 0
        self.row_id: str | None = None

    def add(self, reader: _Reader, fault: str, kept: list[bytes]) -> None:
        """Note that `reader` failed for `fault`; all that it was fed is lost but the parts `kept`
        for another try.
        """
        self.reason = self.reason if self.open else fault
        self.row_id = self.row_id or id_in(b"".join(reader.since[:1]))
        self.lost += reader.size - sum(map(len, kept))
        self.open = True

    def swallow(self, part: bytes) -> None:
        """Note that `part` is lost."""
        self.lost += len(part)

    def told(self, number: int, reason: str) -> Broken:
        """The gap as an item behind row `number`."""
        return Broken(reason, f"after row {number}", self.lost, self.row_id)


class _Parts:
    """Blocks, cut before everything that looks like the start of a row; what was handed out can be
    handed out again.
    """

    def __init__(self, first: bytes, stream: Iterator[bytes]) -> None:
        self._blocks, self._ready, self._rest = chain([first], stream), deque[bytes](), b""
        key = _FIRST_KEY.match(first)  # whatever this file's rows begin with
        self._start = re.compile(
            rb'\{\s{0,40}"(?:' + _KEYS + (b"|" + key[1] if key else b"") + rb')"\s{0,8}:'
        )

    def __iter__(self) -> _Parts:
        return self

    def __next__(self) -> bytes:
        while not self._ready:
            block = next(self._blocks, None)
            if block is None and not self._rest:
                raise StopIteration
            self._cut(self._rest + (block or b""), last=block is None)
        return self._ready.popleft()

    def _cut(self, data: bytes, *, last: bool) -> None:
        held = -1 if last else data.rfind(b"{", max(0, len(data) - _HELD))
        end = len(data) if held < 0 else held
        edges = [0, *(match.start() for match in self._start.finditer(data, 1, end)), end]
        self._ready.extend(data[start:stop] for start, stop in pairwise(edges) if stop > start)
        self._rest = data[end:]

    def starts(self, part: bytes) -> bool:
        """Whether a row may start where `part` does."""
        return self._start.match(part) is not None

    def again(self, parts: list[bytes]) -> None:
        """Hand out `parts` before anything else."""
        self._ready.extendleft(reversed(parts))


class _Reader:
    """One parser. `since` is what it was fed since its last whole row (at most 16 MB), `size` how
    many bytes.
    """

    def __init__(self, prefix: str, starts: Callable[[bytes], bool]) -> None:
        import ijson

        self.since: list[bytes] = []
        self.size = 0
        self._found: list[Any] = ijson.sendable_list()
        # Not use_float: it fails on big integers.
        self._parser = ijson.items_coro(self._found, prefix, multiple_values=not prefix)
        self._opened, self._starts = not prefix, starts
        self._kept = self._depth = 0

    def feed(self, part: bytes) -> str | None:
        """Read on; says what is wrong, if anything."""
        if not self._opened:
            self._opened = True
            if part.lstrip()[:1] != b"[":  # begun behind a fault, inside the array
                _told(partial(self._parser.send, b"["))
        self.size += len(part)
        self._depth += part.count(b"{") + part.count(b"[") - part.count(b"}") - part.count(b"]")
        if self._depth > _DEEPEST:
            return "nested_too_deeply"
        if self._kept < _MOST_SINCE:
            self.since.append(part)
            self._kept += len(part)
        fault = _told(partial(self._parser.send, part))
        if fault or self._found or self.size <= _MOST_SINCE:
            return fault
        return "row_too_long" if any(map(self._starts, self.inside())) else None

    def close(self) -> str | None:
        """The end of the file; says whether that is too early."""
        return _told(self._parser.close) and "cut_off"

    def take(self, *, whole: bool) -> list[Any] | None:
        """Rows that are complete now. With `whole`, None where the first of them is no
        conversation.
        """
        values = list(self._found)
        if values:
            if whole and not holds_turns(values[0]):
                return None
            del self._found[:]
            tail = self.since[-1:]
            rest = tail[0].rpartition(b"}")[2] if tail else b""
            self.since, self.size, self._kept = (
                ([rest], len(rest), len(rest)) if rest else ([], 0, 0)
            )
            self._depth = 0
        return values

    def inside(self) -> list[bytes]:
        """What was fed behind the first part: where whole rows may have been taken for the inside
        of a broken one.
        """
        return self.since[1:] if self._kept == self.size else []


def _told(step: Callable[[], Any]) -> str | None:
    import ijson

    try:
        step()
    except StopIteration:
        return None
    except (ijson.JSONError, ValueError, OverflowError):
        return "broken_json"
    return None
