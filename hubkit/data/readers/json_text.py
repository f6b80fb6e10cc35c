"""One JSON grammar for every container: what Python and people write, not only what the standard
allows."""

from __future__ import annotations

import json
import re
from typing import Any

from hubkit.untrusted import has_more_values

MAX_VALUES = 2_000_000  # of one row: no conversation has so many
_MAX_DIGITS = 4000  # Python refuses to convert longer integers
_TRAILING_COMMA = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")|,(\s*+[}\]])', re.DOTALL)


def parse_json(text: bytes) -> tuple[Any, str | None]:
    """Parse one JSON value.

    NaN, Infinity, commas before a closing bracket and a comma after the value are read. An integer
    of more than 4,000 digits stays text.

    Returns:
        The value and None, or None and the reason why there is none: ``broken_json``, ``not_utf8``,
        ``nested_too_deeply``, ``too_many_values``."""
    if has_more_values(text, MAX_VALUES):
        return None, "too_many_values"
    value, reason = parse_standard(text)
    if reason is None:
        return value, None
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        return None, "not_utf8"
    value, reason = _parse_python(decoded)
    if reason == "broken_json" and b"," in text:
        stripped = text.strip().removesuffix(b",")
        repaired = _TRAILING_COMMA.sub(lambda m: m[1] or m[2], stripped)
        if repaired != text:
            return _parse_python(repaired.decode("utf-8"))
    return value, reason


def parse_standard(text: bytes) -> tuple[Any, str | None]:
    """Parse one value of standard JSON."""
    import orjson

    try:
        return orjson.loads(text), None
    except orjson.JSONDecodeError:
        return None, "broken_json"


def _parse_python(text: str) -> tuple[Any, str | None]:
    try:
        return json.loads(text, parse_int=_integer), None
    except RecursionError:
        return None, "nested_too_deeply"
    except ValueError:
        return None, "broken_json"


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits
