"""Names of a source's columns and keys, which may be paths of keys: ``thread.posts``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hubkit.data.readers.json_text import opened
from hubkit.data.readers.rules import has_text

Keys = tuple[str, ...]


def resolve(value: Any, path: str) -> tuple[Keys, Any]:
    """Find what stands at `path` in `value`: a key of that name, dots and all, before a key inside
    another; numbers count elements; JSON text on the way is opened.

    Returns:
        The keys that lead there and what stands there; no keys and None where nothing does."""
    items = _items(value)
    if items.get(path) is not None:
        return (path,), items[path]
    at = path.find(".")
    while at >= 0:
        if path[:at] in items:
            keys, inner = resolve(items[path[:at]], path[at + 1 :])
            if keys:
                return (path[:at], *keys), inner
        at = path.find(".", at + 1)
    return (), None


def value_at(value: Mapping[str, Any], path: str) -> Any:
    """What stands at `path` in `value`; None where nothing does."""
    literal = value.get(path)
    return literal if literal is not None or "." not in path else resolve(value, path)[1]


def without(value: Any, keys: Keys) -> Any:
    """A copy of `value` in which nothing stands at `keys`."""
    if not keys or not isinstance(value, dict):
        return value
    copy = {key: inner for key, inner in value.items() if key != keys[0]}
    return copy if len(keys) == 1 else {**copy, keys[0]: without(value[keys[0]], keys[1:])}


def unread_in(value: Any, used: Collection[Keys], at: Keys) -> Iterator[str]:
    """Name what in `value`, which stands at `at`, holds text and is on none of the paths `used`."""
    if at in used:
        return
    if any(keys[: len(at)] == at for keys in used):
        for key, inner in _items(value).items():
            yield from unread_in(inner, used, (*at, str(key)))
    elif has_text(value):
        yield ".".join(at)


def _items(value: Any) -> Mapping[str, Any]:
    value = opened(value)
    if isinstance(value, list):
        return {str(index): inner for index, inner in enumerate(value)}
    return value if isinstance(value, dict) else {}
