"""Tables as text, CSV and TSV: each row a mapping of its columns, which the first line names.

Cells may be quoted and hold line ends. A row that is broken, or has more or fewer cells than the
header, is a gap of its own; after broken quotes, reading resumes at the next line that is a whole
row."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from hubkit.data.readers.containers import likely_encoding, lines_in
from hubkit.data.readers.items import Broken, Item, Row

MAX_ROW_BYTES = 1 << 24
_MAX_RETRIED = 1 << 26  # bytes that are read a second time after a fault
_MAX_HEADER_LINES = 100
_DELIMITERS = ",;\t|"
_DELIMITER_LINE = re.compile(rb"sep=(.)\s*\Z")


def table_rows(
    stream: Iterator[bytes], *, tabs: bool, cut: Callable[[], bool] = lambda: False
) -> Iterator[Item]:
    """Give the rows of a stream of UTF-8, and its gaps.

    Args:
        stream: Blocks of the text, which may begin with a byte order mark.
        tabs: Whether the columns are parted by tabs, where the header leaves that open.
        cut: Says, at the end of the stream, whether that is not the end of the file."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    lines = _Lines(lines_in(_line_feeds(stream), MAX_ROW_BYTES))
    try:
        delimiter, names = _header(lines, "\t" if tabs else ",")
    except _TooLong:
        yield Broken("row_too_long", "line 1", lines.size)
        return
    if names:
        yield from _Table(lines, delimiter, names, cut).rows()


def _line_feeds(stream: Iterator[bytes]) -> Iterator[bytes]:
    """`stream` without its byte order mark, carriage returns alone made line feeds."""
    first = b""
    for block in stream:
        first += block
        if len(first) >= 1 << 16 or b"\n" in first:
            break
    first = first.removeprefix(b"\xef\xbb\xbf")
    whole = chain([first], stream)
    if b"\n" in first or b"\r" not in first:
        return whole
    return (block.replace(b"\r", b"\n") for block in whole)


class _TooLong(Exception):
    pass


class _Lines:
    """Lines for the csv module. Those `taken` since the last row's end can be given back."""

    def __init__(self, lines: Iterator[bytes | None]) -> None:
        self._lines, self._again = lines, deque[bytes]()
        self.taken: list[bytes] = []
        self.number = self.size = 0
        self.decoded = True

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.size > MAX_ROW_BYTES:
            raise _TooLong
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        if line is None:
            self.size += MAX_ROW_BYTES
            raise _TooLong
        self.taken.append(line)
        self.size += len(line)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.decoded = False
            return line.decode("utf-8", "replace")

    def begin(self) -> None:
        """Begin a row."""
        self.taken, self.size, self.decoded = [], 0, True

    def give_back(self) -> int:
        """Hand out again all that was taken but the first line; give the number of its bytes."""
        lines = self.taken[1:]
        self._again.extendleft(reversed(lines))
        self.number -= len(lines)
        return sum(map(len, lines))


def _header(lines: _Lines, usual: str) -> tuple[str, list[str]]:
    """What parts the columns, and their names; none where the file has no line. Raises
    `_TooLong`.
    """
    text, first, delimiter = "", "", None
    lines.begin()
    for line in lines:
        match = None if text else _DELIMITER_LINE.match(line.encode())
        if match or not (text or line.strip("\r\n")):
            delimiter = match[1].decode() if match else delimiter
            lines.begin()
            continue
        text, first = text + line, first or line
        if text.count('"') % 2 == 0 or len(lines.taken) >= _MAX_HEADER_LINES:
            break
    if text.count('"') % 2:  # nothing closes the quote
        lines.give_back()
        text = first
    candidates = [delimiter] if delimiter else sorted(_DELIMITERS, key=lambda d: d != usual)
    cells = {d: _cells(text, d) for d in candidates}
    best = max(candidates, key=lambda d: len(cells[d]))
    names: list[str] = []
    for cell in cells[best]:
        name, number = cell.strip(), 2
        while name in names:
            name, number = f"{cell.strip()} ({number})", number + 1
        names.append(name)
    return best, names


def _cells(text: str, delimiter: str) -> list[str]:
    return next(csv.reader(text.splitlines(keepends=True), delimiter=delimiter), [])


class _Table:
    """The rows below a header."""

    def __init__(
        self, lines: _Lines, delimiter: str, names: list[str], cut: Callable[[], bool]
    ) -> None:
        self._lines, self._names, self._cut = lines, names, cut
        self._delimiter = delimiter
        self._reader = csv.reader(lines, delimiter=delimiter, strict=True)
        self._gap: Broken | None = None
        self._budget = _MAX_RETRIED
        self._multiline = False

    def rows(self) -> Iterator[Item]:
        """Give every row and every gap."""
        while True:
            self._lines.begin()
            position = f"line {self._lines.number + 1}"
            cells: list[str] | None
            try:
                cells = next(self._reader)
            except StopIteration:
                break
            except csv.Error as error:
                cells = self._without_quotes()
                if cells is None:
                    cut = "unexpected end" in str(error)
                    self._lose(position, "cut_off" if cut else "broken_csv")
                    continue
            except _TooLong:
                self._lose(position, "row_too_long")
                continue
            if not cells:
                continue
            if self._gap:
                if not self._surely_a_row(cells):
                    self._lose(position, "broken_csv")
                    continue
                reason = "broken_csv" if self._gap.reason == "cut_off" else self._gap.reason
                yield Broken(reason, self._gap.position, self._gap.lost_bytes)
                self._gap, self._budget = None, _MAX_RETRIED
            self._multiline = self._multiline or len(self._lines.taken) > 1
            yield self._item(cells, position)
        if self._gap:
            yield self._gap

    def _item(self, cells: list[str], position: str) -> Item:
        lines = self._lines
        if not lines.taken[-1].endswith(b"\n") and self._cut():
            return Broken("cut_off", position, lines.size)
        if not lines.decoded:
            likely = likely_encoding(b"".join(lines.taken))
            return Broken("not_utf8", position, lines.size, encoding=likely)
        if len(cells) != len(self._names):
            return Broken("row_of_other_width", position, lines.size)
        value: dict[str, Any] = dict(zip(self._names, (c or None for c in cells), strict=True))
        return Row(value, position)

    def _surely_a_row(self, cells: list[str]) -> bool:
        """Whether what follows a fault is a row, and not the inside of a cell: quotes are closed,
        and there are some, where cells of this table hold line ends.
        """
        text = b"".join(self._lines.taken)
        if len(cells) != len(self._names) or text.count(b'"') % 2:
            return False
        quoted = text[:1] == b'"' or f'{self._delimiter}"'.encode() in text
        return quoted or not self._multiline

    def _without_quotes(self) -> list[str] | None:
        """The cells of a line parted by tabs in which quotes are only text, if it is one."""
        line = self._lines.taken[0]
        if self._delimiter != "\t" or self._gap or line.count(b'"') % 2:
            return None
        cells = line.decode("utf-8", "replace").rstrip("\r\n").split("\t")
        if len(cells) != len(self._names):
            return None
        self._lines.give_back()
        self._lines.taken = self._lines.taken[:1]
        return cells

    def _lose(self, position: str, reason: str) -> None:
        """Note that the row at `position` is lost, or its first line where there is time to look
        for rows in the others.
        """
        lost = self._lines.size
        if self._budget > 0:
            returned_bytes = self._lines.give_back()
            self._budget -= max(returned_bytes, 512)
            lost -= returned_bytes
        if self._gap:
            lost, position, reason = (
                lost + self._gap.lost_bytes,
                self._gap.position,
                self._gap.reason,
            )
        self._gap = Broken(reason, position, lost)
