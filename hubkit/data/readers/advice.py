"""Which options would read a row that no known layout fits: found by trying them on the row."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from hubkit.data.readers.json_text import opened
from hubkit.data.readers.layouts import read_row
from hubkit.data.readers.rules import ReadingRules, Unreadable, keys_of
from hubkit.data.readers.turns import (
    PAIR_KEYS,
    ROLE_KEYS,
    ROLES,
    TEXT_KEYS,
    names_group,
    several_conversations,
)

REASONS = frozenset((
    "no_turns_key", "turns_not_a_list", "turn_without_role", "turn_without_text",
    "list_of_turns_of_several_conversations",
))  # fmt: skip
_MAX_VALUES = 2000  # that are looked at
_MAX_LEVELS = 6
_MAX_TURNS = 50
_SPEAKERS = (*ROLE_KEYS, "who", "by", "user", "actor", "party", "participant", "side", "kind",
             "type", "name")  # fmt: skip


class _Turns(NamedTuple):
    """A list of objects or of texts, and where it stands."""

    path: str
    turns: list[Any]


def options_for(row: Any, rules: ReadingRules) -> str | None:
    """Say which options read `row`, where some are found: what it holds, and what to try."""
    if rules.conversation is not None:
        return None
    rows = row.get("data") if isinstance(row, dict) else row
    if (
        isinstance(rows, list)
        and rows
        and isinstance(rows[0], dict)
        and several_conversations(rows)
    ):
        return _of_one_turn(rows[0], rows)
    if not isinstance(row, dict):
        return None
    tried = [_of_list(row, turn_list, rules) for turn_list in _lists(row)]
    candidates = sorted((rank, text) for rank, text in filter(None, tried))
    text = candidates[0][1] if candidates else _of_one_turn(row, [row])
    return f"nothing stands at {rules.turns}" if rules.turns and not text else text


def _lists(row: Mapping[str, Any]) -> Iterator[_Turns]:
    """Every list in `row` that may hold turns, with its path, outer ones first."""
    pending: list[tuple[str, Any, int]] = [(str(key), value, 1) for key, value in row.items()]
    for path, value, level in pending:
        value = opened(value)
        if isinstance(value, dict) and level < _MAX_LEVELS and len(pending) < _MAX_VALUES:
            pending += [(f"{path}.{key}", inner, level + 1) for key, inner in value.items()]
        elif isinstance(value, list) and value:
            head = value[:_MAX_TURNS]
            if all(isinstance(turn, dict) for turn in head) or (
                len(head) > 1 and all(isinstance(turn, str) and " " in turn for turn in head)
            ):
                yield _Turns(path, head)


def _of_list(
    row: Mapping[str, Any], turn_list: _Turns, rules: ReadingRules
) -> tuple[tuple[int, int], str] | None:
    """How well options for a list read it (less is better), and what to say of it."""
    path, turns = turn_list
    if isinstance(turns[0], str):
        options = replace(rules, turns=path)
        text = f"a list of texts stands at {path}: where they take turns, the person first, try "
        fits = _fault(row, options) is None
        return ((2, len(path)), text + _spelt(turns=path)) if fits else None
    keys = _paths_in(turns)
    pair = any(a in turns[0] and b in turns[0] for a, b in PAIR_KEYS)
    role = None if pair else _role(keys)
    text_key = None if pair else _text(keys, role)
    options = replace(rules, turns=path, role=role, text=text_key)
    fault = _fault(row, options)
    if fault not in (None, "unknown_role"):
        return None
    names = _spelt(turns=path, role=role, text=text_key)
    if fault and role:
        roles = list(dict.fromkeys(str(value).strip() for value in keys[role] if value))
        names += "".join(f" --role {shlex.quote(name)}=SEAT" for name in roles[:4])
        names += " with user or assistant for SEAT"
    sentence = f"a list of objects stands at {path}, with the keys {keys_of(turns[0])}"
    return (int(fault is not None), len(path)), f"{sentence}: try {names}"


def _fault(row: Mapping[str, Any], rules: ReadingRules) -> str | None:
    try:
        read_row(row, "", "", rules)
    except Unreadable as error:
        return error.reason
    return None


def _of_one_turn(row: Mapping[str, Any], rows: list[Any]) -> str | None:
    """What to say where each row is one turn."""
    keys = _paths_in([r for r in rows[:_MAX_TURNS] if isinstance(r, dict)])
    role = _role(keys)
    text = _text(keys, role)
    if role is None or text is None:
        return None
    groups = [key for key in _paths_of(row) if key not in (role, text) and names_group(key)]
    groups.sort(key=lambda key: not key.lower().endswith("id"))
    group = groups[0] if groups else "NAME"
    where = "" if groups else " with the column that says which rows are one conversation"
    return (
        "each row seems to be one turn: try "
        f"{_spelt(conversation=group, role=role, text=text)}{where}"
    )


def _spelt(**names: str | None) -> str:
    return " ".join(f"--column {kind}={shlex.quote(n)}" for kind, n in names.items() if n)


def _paths_of(turn: Mapping[str, Any], levels: int = 3) -> Iterator[str]:
    for key, value in turn.items():
        if isinstance(value, dict) and levels > 1:
            yield from (f"{key}.{inner}" for inner in _paths_of(value, levels - 1))
        else:
            yield str(key)


def _paths_in(turns: list[dict[str, Any]], levels: int = 3) -> dict[str, list[Any]]:
    """The values of `turns` that are text, by their paths."""
    values: dict[str, list[Any]] = {}
    for turn in turns:
        for key, value in turn.items():
            if isinstance(value, str):
                values.setdefault(str(key), []).append(value)
            elif isinstance(value, dict) and levels > 1:
                for inner, inner_values in _paths_in([value], levels - 1).items():
                    values.setdefault(f"{key}.{inner}", []).extend(inner_values)
    return values


def _last(path: str) -> str:
    return path.rpartition(".")[2].lower()


def _role(keys: Mapping[str, list[Any]]) -> str | None:
    """The path of what says who speaks: values that are known roles, else a name that is usual."""
    for key, values in keys.items():
        if all(str(value).strip().rstrip(":").lower() in ROLES for value in values):
            return key
    usual = [
        key
        for name in _SPEAKERS
        for key, values in keys.items()
        if _last(key) == name and all(len(value) <= 40 for value in values)
    ]
    return usual[0] if usual else None


def _text(keys: Mapping[str, list[Any]], role: str | None) -> str | None:
    """The path of what is said: a name that is usual, else the longest text."""
    texts = {key: sum(map(len, values)) for key, values in keys.items() if key != role}
    usual = [key for name in TEXT_KEYS for key in texts if _last(key) == name and texts[key]]
    return usual[0] if usual else max(texts, key=lambda key: texts[key], default=None)
