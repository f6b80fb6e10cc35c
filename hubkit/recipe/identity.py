"""What identifies a result: the keys of a recipe that decide what is made.

Each key says by its annotation what it decides: `Content` (what is made), `Execution` (only how
fast, where, or at which price) or `Display` (only what is shown or planned). Stage keys, run
digests and training fingerprints are all `digest` over `content_of`, so a change of pace, place or
price makes nothing again. `content_of` works on plain data, so what an older version recorded is
compared with what a recipe says now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hubkit.untrusted import JsonObject

T = TypeVar("T")


class Decides(Enum):
    """What a key of a recipe decides."""

    CONTENT = "content"
    EXECUTION = "execution"
    DISPLAY = "display"


Content = Annotated[T, Decides.CONTENT]
"""Decides what is made. Of a block: each of its keys says so for itself."""
Execution = Annotated[T, Decides.EXECUTION]
"""Decides only how fast, where, or at which price it is made."""
Display = Annotated[T, Decides.DISPLAY]
"""Is only shown, or planned with."""


@dataclass(frozen=True, slots=True)
class ReadBy:
    """Marks a key that only `stage` reads, in a block that several stages share."""

    stage: str


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Marks a free mapping of which only a part decides what is made: `keep` takes the block's
    values and the mapping, and gives that part."""

    keep: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]


def decides(field: FieldInfo) -> Decides | None:
    """What a key decides, by its annotation; None when it does not say."""
    return next((mark for mark in field.metadata if isinstance(mark, Decides)), None)


def readers(field: FieldInfo) -> set[str]:
    """The stages that alone read a key; empty: every stage that reads its block."""
    return {mark.stage for mark in field.metadata if isinstance(mark, ReadBy)}


def content_of(
    block: type[BaseModel], values: Mapping[str, Any], *, without: Collection[str] = ()
) -> JsonObject:
    """What decides the result in `values`, the JSON form of a `block`.

    A missing key counts as its default, an unset one as absent: keys that later versions add, unset
    by default, change no digest.

    Args:
        block: The class of the block.
        values: Its dump, or what a record holds of one.
        without: Keys of the block that do not matter here.
    """
    content = {}
    for name, field in block.model_fields.items():
        if decides(field) is not Decides.CONTENT or name in without:
            continue
        value = _narrowed(field, values, values[name] if name in values else _default(field))
        nested = _content(field.annotation, value)
        if nested is not None:
            content[name] = nested
    return content


def digest(facts: Any) -> str:
    """sha256 (hex) over `facts` as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _narrowed(field: FieldInfo, values: Mapping[str, Any], value: Any) -> Any:
    for mark in field.metadata:
        if isinstance(mark, Narrowed) and isinstance(value, Mapping):
            value = dict(mark.keep(values, value))
    return value


def _content(annotation: Any, value: Any) -> Any:
    """`value`, with each block in it reduced to its content; None where nothing is left of it."""
    from hubkit.recipe.block import block_of

    inner = block_of(annotation)
    if inner is None or value is None:
        return value
    if isinstance(value, list):
        return [content_of(inner, item) for item in value]
    if not _directly(annotation, inner):
        return {name: content_of(inner, item) for name, item in value.items()}
    return content_of(inner, value) or None


def _directly(annotation: Any, inner: type[BaseModel]) -> bool:
    """Whether a key of type `annotation` holds one `inner`, not a mapping of them."""
    if getattr(annotation, "__origin__", None) in (dict, list):
        return False
    parts = getattr(annotation, "__args__", ())
    return annotation is inner or any(_directly(part, inner) for part in parts)


def _default(field: FieldInfo) -> Any:
    from pydantic_core import PydanticUndefined, to_jsonable_python

    value = field.get_default(call_default_factory=True)
    return None if value is PydanticUndefined else to_jsonable_python(value)
