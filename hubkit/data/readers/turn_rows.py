"""Rows of one turn each, put together by a column that says whose conversation a turn belongs to:
in the order of the rows, or of a column, however the conversations' rows are mixed.

Rows wait in a file of their own until the last one is read; memory holds some bytes for each
conversation, and one conversation."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from hubkit.data.parquet import disk_errors
from hubkit.data.readers.items import Broken, Item, Row
from hubkit.data.readers.layouts import IDS
from hubkit.data.readers.paths import Keys, resolve, without
from hubkit.data.readers.rules import ReadingRules, keys_of
from hubkit.data.readers.turns import SPOKEN_KEYS

_MAX_BYTES = 1 << 28  # of one conversation
_RECORD = struct.Struct("<qI")  # where the conversation's row before this one is, and the size


def join_turns(items: Iterable[Item], rules: ReadingRules) -> Iterator[Item]:
    """Replace all rows of one value of the column ``rules.conversation`` by one row with `turns`,
    conversations in the order of their first rows. A row without a value is a gap.
    """
    assert rules.conversation
    folder = Path(tempfile.gettempdir())
    with tempfile.TemporaryFile(prefix="hubkit-turns-") as file:
        store = _Store(file)
        for item in items:
            if not isinstance(item, Row):
                yield item
            elif not isinstance(item.value, dict):
                yield Broken("not_an_object", item.position, 0)
            elif (name := _name(resolve(item.value, rules.conversation)[1])) is None:
                yield Broken("no_conversation", item.position, 0, keys=keys_of(item.value))
            else:
                with disk_errors(folder):
                    is_stored = store.add(name, item)
                if not is_stored:
                    yield Broken("nested_too_deeply", item.position, 0)
        for rows in store.conversations():
            yield rows if isinstance(rows, Broken) else _joined(rows, rules)


def _name(value: Any) -> str | None:
    """The name that `value` gives a conversation, if it does."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = str(value).strip()
    return None if name in ("", "nan") else name


class _Store:
    """Rows in a file; each knows where the one before it of its conversation is."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._end = file, 0
        self._last: dict[bytes, tuple[int, int, int]] = {}  # where, number and bytes of the rows

    def add(self, name: str, row: Row) -> bool:
        """Append a row of the conversation `name`; whether it could be written."""
        try:
            data = json.dumps([name, row.position, row.value], default=str).encode()
        except (RecursionError, ValueError):
            return False
        key = blake2b(name.encode("utf-8", "replace"), digest_size=12).digest()
        before, number, size = self._last.get(key, (-1, 0, 0))
        self._file.write(_RECORD.pack(before, len(data)) + data)
        self._last[key] = (self._end, number + 1, size + len(data))
        self._end += _RECORD.size + len(data)
        return True

    def conversations(self) -> Iterator[list[Row] | Broken]:
        """Give the rows of each conversation, or a gap where they are more than fit."""
        for at, number, size in self._last.values():
            if size > _MAX_BYTES:
                (row,) = self._rows(at, 1)
                yield Broken("conversation_too_long", row.position, size, row.label, rows=number)
            else:
                yield self._rows(at, number)

    def _rows(self, at: int, number: int) -> list[Row]:
        rows: list[Row] = []
        while at >= 0 and len(rows) < number:
            self._file.seek(at)
            at, size = _RECORD.unpack(self._file.read(_RECORD.size))
            name, position, value = json.loads(self._file.read(size))
            rows.append(Row(value, position, label=name))
        return rows[::-1]


def _joined(rows: list[Row], rules: ReadingRules) -> Item:
    first = rows[0]
    if rules.order:
        ranked = [(_rank(resolve(row.value, rules.order)[1]), row) for row in rows]
        if any(rank is None for rank, _ in ranked):
            return Broken("turn_without_order", first.position, 0, first.label, rows=len(rows))
        rows = [row for _, row in sorted(ranked, key=lambda pair: pair[0] or (0, 0.0, ""))]
    turns = [_turn(row.value, rules) for row in rows]
    shared = _shared(turns, _own_keys(turns, rules))
    turns = [{k: v for k, v in turn.items() if k not in shared} for turn in turns]
    return Row(shared, first.position, len(rows), first.label, turns)


def _rank(value: Any) -> tuple[int, float, str] | None:
    """What sorts numbers, also as text, by size, and other text by its letters."""
    if value is None or isinstance(value, bool | list | dict) or not str(value).strip():
        return None
    try:
        return 0, float(value), ""
    except (ValueError, OverflowError):
        return 1, 0.0, str(value).strip()


def _turn(value: dict[str, Any], rules: ReadingRules) -> dict[str, Any]:
    turn = {key: inner for key, inner in value.items() if key not in IDS}
    for name in (rules.conversation, rules.order):
        turn = without(turn, _keys(turn, name))
    return turn


def _keys(turn: dict[str, Any], name: str | None) -> Keys:
    return resolve(turn, name)[0] if name else ()


def _own_keys(turns: list[dict[str, Any]], rules: ReadingRules) -> set[str]:
    """The keys of what a turn says, which stay in it though all turns say the same."""
    named = {_keys(turn, name)[:1] for turn in turns for name in (rules.role, rules.text)}
    return {*SPOKEN_KEYS, *(keys[0] for keys in named if keys)}


def _shared(turns: list[dict[str, Any]], own_keys: set[str]) -> dict[str, Any]:
    """The columns that have one value in all rows, or none."""
    shared: dict[str, Any] = {}
    for key in {key: None for turn in turns for key in turn if key not in own_keys}:
        values = [turn[key] for turn in turns if turn.get(key) not in (None, "")]
        if values and all(value == values[0] for value in values):
            shared[key] = values[0]
    return shared
