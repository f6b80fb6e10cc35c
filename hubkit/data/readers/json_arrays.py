"""Rows of one JSON array, of objects one after another, or of an object around them, streamed.

A fault in the syntax leaves a parser lost. So bytes reach it cut before everything that looks like
the start of a row, and after a fault a new parser begins at the next such place that turns out to
hold a whole conversation. What lies between is one gap, and is reported."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from typing import Any, Literal

from hubkit.data.readers.items import Broken, Item, Row, id_in
from hubkit.data.readers.json_text import parse_json, parse_standard
from hubkit.data.readers.layouts import TURN_LISTS, holds_turns, is_row

Frame = Literal["array", "objects", "wrapper"]
"""What is around the rows: an array, nothing, or an object whose values they are or hold."""

MAX_ROW_BYTES = 1 << 28
_KEYS = (
    b"id|conversation_id|conversation_hash|prompt_id|uuid|message_tree_id|message_id|"
    b"messages|conversations|conversation|items|dialog|dialogue|data|prompt"
)
_FIRST_KEY = re.compile(rb'\s*\[?\s*\{\s*"([\w-]{1,40})"\s*:')
_EDGE = 80  # bytes at a block's end in which the start of a row may be cut in two
_MAX_RETAINED = 1 << 24  # bytes of an unfinished row that are retained to look for rows inside it
# Bytes fed a second time before a row comes of them; a part counts as 512 at least.
_MAX_RETRIED = 1 << 26
_MAX_DEPTH = 2000
_STRING_END = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
# Everything between brackets: white space, numbers, literals and whole strings.
_PLAIN = rb"[\s,:0-9+\-.eEtrufalsnNIiy]*+"
_BETWEEN = re.compile(_PLAIN + rb'(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"' + _PLAIN + rb")*+", re.DOTALL)
_SEPARATORS = re.compile(rb"[\s,]*+")
_SCALAR = re.compile(rb'[^\s,\]}\[{":]++')
_SPACE = re.compile(rb"\s*+")
_QUOTE, _COMMA, _COLON = b'",:'
_OPENERS, _CLOSERS = b"{[", b"}]"


def array_rows(first: bytes, stream: Iterator[bytes], frame: Frame = "array") -> Iterator[Item]:
    """Give the rows of a stream of JSON, and its gaps.

    A gap is ``broken_json`` (``not_utf8``, …) with rows after it or a fault in it, and ``cut_off``
    where the file just ends."""
    parts, gap = _Parts(first, stream), _Gap()
    reader = _Reader(frame, parts.starts)
    number, budget = 0, _MAX_RETRIED
    while True:
        part = next(parts, None)
        if part is not None and gap.open and not reader.since and not parts.starts(part):
            gap.swallow(part)  # no row can begin in the middle of something
            continue
        fault = reader.close() if part is None else reader.feed(part)
        values = reader.take(whole=gap.open)
        if values is None:
            fault, values = "broken_json", []  # a piece of a broken row that passes for a row
        for label, value in values:
            if gap.open:
                yield gap.item(number, gap.mid_reason)
                gap, budget = _Gap(), _MAX_RETRIED
            number += 1
            yield Row(value, f"row {number}", label=label)
        if fault is None and part is None:
            break
        if fault is not None:
            inside = reader.inside() if budget > 0 else []
            gap.add(reader, fault, inside)
            budget -= sum(max(len(piece), 512) for piece in inside)
            parts.retry(inside)
            reader = _Reader(frame, parts.starts, resumed=True)
            if part is None and not inside:
                break
    if gap.open:
        yield gap.item(number, gap.reason)


def looks_wrapped(head: bytes, is_one: Callable[[Any], bool] = is_row) -> bool:
    """Whether the object at the start of a file holds rows, in its values or in lists; `is_one`
    tells what is a row.
    """
    scanner = _Scanner("wrapper")
    scanner.feed(head)
    return any(is_one(value) for value in scanner.first_object)


class _Gap:
    """What could not be read since the last whole row: why at first, how many bytes,
    and which row."""

    def __init__(self) -> None:
        self.open, self.reason, self.lost = False, "", 0
        self.row_id: str | None = None

    @property
    def mid_reason(self) -> str:
        """The reason where rows follow the gap, so that the file does not end in it."""
        return "broken_json" if self.reason == "cut_off" else self.reason

    def add(self, reader: _Reader, fault: str, retained: list[bytes]) -> None:
        """Note that `reader` failed for `fault`; all that it was fed is lost but the parts
        `retained` for another try.
        """
        if fault == "broken_json" and not _is_utf8(b"".join(reader.since)):
            fault = "not_utf8"
        self.reason = self.reason if self.open else fault
        self.row_id = self.row_id or id_in(b"".join(reader.since[:1]))
        self.lost += reader.size - sum(map(len, retained))
        self.open = True

    def swallow(self, part: bytes) -> None:
        """Note that `part` is lost."""
        self.lost += len(part)

    def item(self, number: int, reason: str) -> Broken:
        """Give the gap as an item after row `number`."""
        return Broken(reason, f"after row {number}", self.lost, self.row_id)


class _Parts:
    """Blocks, cut before everything that looks like the start of a row; parts can be handed out
    again.
    """

    def __init__(self, first: bytes, stream: Iterator[bytes]) -> None:
        self._blocks, self._ready, self._tail = chain([first], stream), deque[bytes](), b""
        key = _FIRST_KEY.match(first)  # whatever this file's rows begin with
        self._start = re.compile(
            rb'\{\s{0,40}"(?:' + _KEYS + (b"|" + key[1] if key else b"") + rb')"\s{0,8}:'
        )

    def __iter__(self) -> _Parts:
        return self

    def __next__(self) -> bytes:
        while not self._ready:
            block = next(self._blocks, None)
            if block is None and not self._tail:
                raise StopIteration
            self._cut(self._tail + (block or b""), last=block is None)
        return self._ready.popleft()

    def _cut(self, data: bytes, *, last: bool) -> None:
        edge = -1 if last else data.rfind(b"{", max(0, len(data) - _EDGE))
        end = len(data) if edge < 0 else edge
        edges = [0, *(match.start() for match in self._start.finditer(data, 1, end)), end]
        self._ready.extend(data[start:stop] for start, stop in pairwise(edges) if stop > start)
        self._tail = data[end:]

    def starts(self, part: bytes) -> bool:
        """Whether a row may start where `part` does."""
        return self._start.match(part) is not None

    def retry(self, parts: list[bytes]) -> None:
        """Hand out `parts` before anything else."""
        self._ready.extendleft(reversed(parts))


class _Scanner:
    """Cuts bytes into JSON values at the brackets, without looking at more than that needs.

    `values` are the complete ones, each with its key in a wrapper. `start` is the number of bytes
    of the last `feed` that lie before the value that is being read, or before its end."""

    def __init__(self, frame: Frame, *, resumed: bool = False) -> None:
        self.values: list[tuple[str | None, Any]] = []
        self.first_object: list[Any] = []
        self.start = 0
        self._wrapper, self._framed = frame == "wrapper", frame != "objects"
        self._inside_frame = resumed or not self._framed
        self._pieces: list[bytes] = []
        self._size = 0
        self._stack = bytearray()
        self._string = self._escape = self._ended = self._closed = False
        self._bare = False  # a string or a number outside all brackets is being read
        self._label: str | None = None
        self._list_label: str | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is under way: the end of the file may come."""
        pending = self._stack or self._string or self._bare
        return not pending and (self._ended or not self._framed)

    def take_whole(self, part: bytes) -> bool:
        """Take a part that is one whole row and what separates it from the next one, as nearly all
        are: a parser is faster than looking for brackets.
        """
        between = self._inside_frame and not self._ended and self._label is None
        if not between or self._stack or self._bare or part[0] != 0x7B or self._wrapper:
            return False
        text = part.rstrip(b" \t\r\n,")
        if text[-1] != 0x7D:
            return False
        value, reason = parse_standard(text)
        if reason:
            return False
        self.start = len(text)
        self.values.append((None, value))
        return True

    def feed(self, part: bytes) -> str | None:
        """Read on; give the fault, if there is one."""
        at, self.start = 0, 0
        begin = 0  # where the piece of the current value begins in `part`
        end = len(part)
        while at < end:
            if self._string:
                at = self._read_string(part, at)
                continue
            if self._stack:
                match = _BETWEEN.match(part, at)
                at = match.end() if match else at
                if at == end:
                    break
                byte = part[at]
                at += 1
                if byte == _QUOTE:
                    self._string = True
                elif byte in _OPENERS:
                    self._stack.append(byte)
                    if len(self._stack) > _MAX_DEPTH:
                        return "nested_too_deeply"
                elif byte in _CLOSERS:
                    if byte - self._stack.pop() != 2:
                        return "broken_json"
                    if not self._stack:
                        if fault := self._complete(part[begin:at]):
                            return fault
                        self.start = at
                else:
                    return "broken_json"
                continue
            if self._bare:
                at, fault = self._read_bare(part, at, begin)
                if fault:
                    return fault
                if not self._bare:
                    self.start = at
                continue
            separators = _SEPARATORS.match(part, at)
            gap = part[at : separators.end()] if separators else b""
            at += len(gap)
            if self._ended and b"," in gap:
                return "broken_json"
            if at == end:
                break
            begin = at
            at, fault = self._between_values(part, at)
            if fault:
                return fault
        if self._stack or self._string or self._bare:
            piece = part[begin:]
            self._pieces.append(piece)
            self._size += len(piece)
            if self._size > MAX_ROW_BYTES:
                return "row_too_long"
        return None

    def _read_string(self, part: bytes, at: int) -> int:
        if self._escape:
            self._escape = False
            return at + 1
        match = _STRING_END.match(part, at)
        at = match.end() if match else at
        if at < len(part):
            self._escape = part[at] != _QUOTE
            self._string = self._escape
            at += 1
        return at

    def _read_bare(self, part: bytes, at: int, begin: int) -> tuple[int, str | None]:
        """Read on in a number, or after a string: to the separator that shows what it is."""
        if match := _SCALAR.match(part, at):
            return match.end(), None
        space = _SPACE.match(part, at)
        after = space.end() if space else at
        if after == len(part):
            return after, None
        byte = part[after]
        if byte == _COLON and self._wrapper:
            text = b"".join(self._pieces) + part[begin:at]
            value, reason = parse_json(text)
            self._label = value if isinstance(value, str) else None
            self._reset()
            return after + 1, reason
        if byte != _COMMA and byte not in _CLOSERS:
            return after, "broken_json"
        return at, self._complete(part[begin:at])

    def _between_values(self, part: bytes, at: int) -> tuple[int, str | None]:
        byte = part[at]
        if byte in _OPENERS:
            opens_frame = byte == (0x7B if self._wrapper else 0x5B)
            if opens_frame and (self._ended or not self._inside_frame):
                self._inside_frame, self._ended = True, False
                return at + 1, None
            if self._wrapper and byte == 0x5B and self._label is not None:
                self._list_label, self._label = self._label, None
                return at + 1, None
            self._stack.append(byte)
            return at + 1, None
        if byte in _CLOSERS:
            if self._wrapper and byte == 0x5D:
                self._list_label = None
                return at + 1, None
            if byte != (0x7D if self._wrapper else 0x5D) or self._ended:
                return at, "broken_json"
            self._ended = self._closed = True
            return at + 1, None
        self._bare = True
        if byte == _QUOTE:
            self._string = True
            return at + 1, None
        return (at, None) if _SCALAR.match(part, at) else (at, "broken_json")

    def _complete(self, piece: bytes) -> str | None:
        value, reason = parse_json(b"".join((*self._pieces, piece)))
        label = self._label
        self._reset()
        if reason:
            return reason
        self._label = None
        # Pairs in a list of turns are turns, though elsewhere they are rows.
        if not self._closed and (holds_turns(value) or self._list_label not in TURN_LISTS):
            self.first_object.append(value)
        self.values.append((label, value))
        return None

    def _reset(self) -> None:
        self._pieces, self._size, self._bare = [], 0, False


class _Reader:
    """One scanner, and what it was fed since its last whole row (`since`, at most 16 MB; `size` is
    the number of bytes).
    """

    def __init__(
        self, frame: Frame, starts: Callable[[bytes], bool], *, resumed: bool = False
    ) -> None:
        self.since: list[bytes] = []
        self.size = self._retained = 0
        self._last = b""
        self._scanner = _Scanner(frame, resumed=resumed)
        self._starts = starts

    def feed(self, part: bytes) -> str | None:
        """Read on; give the fault, if there is one."""
        self.size += len(part)
        self._last = part
        if self._retained < _MAX_RETAINED:
            self.since.append(part)
            self._retained += len(part)
        fault = None if self._scanner.take_whole(part) else self._scanner.feed(part)
        if fault or self._scanner.values or self.size <= _MAX_RETAINED:
            return fault
        return "row_too_long" if any(map(self._starts, self.inside())) else None

    def close(self) -> str | None:
        """Give the fault where the file ends too early."""
        return None if self._scanner.idle else "cut_off"

    def take(self, *, whole: bool) -> list[tuple[str | None, Any]] | None:
        """Give the rows that are complete now, each with its label. With `whole`, None where the
        first of them is no conversation.
        """
        values = self._scanner.values
        if values:
            if whole and not holds_turns(values[0][1]):
                return None
            self._scanner.values = []
            tail = self._last[self._scanner.start :].lstrip(b" \t\r\n,")
            self.since = [tail] if tail else []
            self.size = self._retained = len(tail)
        return values

    def inside(self) -> list[bytes]:
        """Give what was fed after the first part: where whole rows may have been taken for the
        inside of a broken one.
        """
        return self.since[1:] if self._retained == self.size else []


def _is_utf8(data: bytes) -> bool:
    try:
        getincrementaldecoder("utf-8")().decode(data)  # the last character may be cut in two
    except UnicodeDecodeError:
        return False
    return True
