"""One JSON grammar for every container: what Python and people write, not only what the standard
allows."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from hubkit.untrusted import has_more_values

MAX_VALUES = 2_000_000  # of one row: no conversation has so many
_MAX_DIGITS = 4000  # Python refuses to convert longer integers
_MAX_LITERAL = 1 << 22  # characters
_LITERAL = re.compile(r"""\s*(?:\[\s*[\[{'"]|\{\s*['"])""")
_NUMPY_END = re.compile(r"\}\n\s*\{")
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


def opened(value: Any) -> Any:
    """`value`; or the list or the mapping that it spells, where it is JSON text of one."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    inner, reason = parse_json(value.encode("utf-8", "replace"))
    return value if reason else inner


def parse_python_literal(text: str) -> Any:
    """Parse lists and mappings as Python or NumPy writes them into a table's cell; None where
    `text` is nothing of that.
    """
    if len(text) > _MAX_LITERAL or not _LITERAL.match(text):
        return None
    if has_more_values(text.encode("utf-8", "replace"), MAX_VALUES):
        return None
    # NumPy puts no commas between elements, but line ends, which Python's strings escape.
    text = _NUMPY_END.sub("},\n{", text.strip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


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
