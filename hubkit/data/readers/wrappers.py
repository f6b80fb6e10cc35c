"""Rows inside an object that is no row itself: by name, in lists, or column by column as pandas
writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from hubkit.data.readers.items import Item, PassedOver, Row
from hubkit.data.readers.layouts import TURN_LISTS, holds_turns, is_row
from hubkit.data.readers.paths import resolve
from hubkit.data.readers.rules import ReadingRules
from hubkit.data.readers.turns import ROLE_KEYS, TEXT_KEYS, is_turn

_MAX_LEVELS = 3
_NO_ROW = "a value in the object around the rows"
_NO_RULES = ReadingRules()
_TURN_KEYS = frozenset((*ROLE_KEYS, *TEXT_KEYS))
IsRow = Callable[[Any], bool]


def unwrap(items: Iterable[Item], rules: ReadingRules = _NO_RULES) -> Iterator[Item]:
    """Replace each object that is no row but holds rows by these; a value that is no row is
    passed over.
    """
    name, is_one = rules.turns or rules.conversation, row_test(rules)
    for item in items:
        if not isinstance(item, Row) or not isinstance(item.value, dict | list):
            named = isinstance(item, Row) and item.label is not None
            yield PassedOver(str(item.label), _NO_ROW) if named else item  # type: ignore[union-attr]
            continue
        whole = is_one(item.value) and (name is not None or not _holds_rows(item.value))
        if whole or not (rows := list(rows_in(item.value, is_one))):
            named = item.label is not None and not is_one(item.value)
            yield PassedOver(str(item.label), _NO_ROW) if named else item
            continue
        if name is not None and len(rows) == 1:
            rows = [(None, rows[0][1])]  # a key around one row does not tell it from others
        for number, (label, value) in enumerate(rows, 1):
            if isinstance(value, dict):
                yield replace(item, value=value, position=f"{item.position}, {number}", label=label)
            else:
                yield PassedOver(str(label), _NO_ROW)


def row_test(rules: ReadingRules) -> IsRow:
    """What tells whether a value is a row: one that has the column that `rules` name, if any."""
    name = rules.turns or rules.conversation
    if name is None:
        return is_row
    return lambda value: isinstance(value, dict) and bool(resolve(value, name)[0])


def _holds_rows(value: Any) -> bool:
    """Whether an object with the keys of a row holds rows under them."""
    if not isinstance(value, dict):
        return False
    for inner in value.values():
        if isinstance(inner, list):
            first = inner[0] if inner else None
            if isinstance(first, dict) and holds_turns(first) and not is_turn(first):
                return True
    return bool(_rows_by_column(value))


def rows_in(
    value: Any, is_one: IsRow = is_row, levels: int = _MAX_LEVELS
) -> Iterator[tuple[str | None, Any]]:
    """Find the rows in `value`, each with its key, and the other values; nothing where there
    are none.
    """
    if isinstance(value, list):
        if any(map(is_one, value)):
            yield from ((None, row) for row in value)
        return
    if not isinstance(value, dict) or not levels:
        return
    if rows := _rows_by_column(value, is_one):
        yield from rows
        return
    if any(map(is_one, value.values())):
        yield from ((str(key), row) for key, row in value.items())
        return
    inner = {key: list(rows_in(item, is_one, levels - 1)) for key, item in value.items()}
    if any(inner.values()):
        for key, rows in inner.items():
            yield from rows or [(str(key), None)]


def _rows_by_column(
    value: Mapping[str, Any], is_one: IsRow = is_row
) -> list[tuple[str | None, Any]]:
    """The rows of a table: ``{column: {index: value}}``, or ``columns`` and ``data``."""
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list):
        if not all(isinstance(row, list) and len(row) == len(names) for row in data):
            return []
        rows = [dict(zip(map(str, names), row, strict=True)) for row in data]
    else:
        columns = list(value.values())
        if len(columns) < 1 or not all(isinstance(c, dict) for c in columns):
            return []
        keys = list(columns[0])
        if not keys or any(list(column) != keys for column in columns):
            return []
        if not _TURN_KEYS.isdisjoint(keys):  # turns of one row, key by key
            return []
        rows = [{str(name): value[name][key] for name in value} for key in keys]
    return [(None, row) for row in rows] if any(_is_table_row(r, is_one) for r in rows) else []


def _is_table_row(row: Any, is_one: IsRow) -> bool:
    if is_one is not is_row:
        return is_one(row)
    cells = (row.get(key) for key in TURN_LISTS)
    return (holds_turns(row) or is_row(row)) and not any(isinstance(cell, dict) for cell in cells)
