"""What every part of a recipe is: immutable, and strict about its keys.

What stands below a key says what it means; `hubkit reference` prints it all.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Block(BaseModel):
    """A part of a recipe. An unknown key or a wrong type is refused when it is read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        allow_inf_nan=False,  # no cap holds against a number that is none
    )


def block_of(annotation: Any) -> type[BaseModel] | None:
    """The block that a key of type `annotation` holds, alone, in a list or in a mapping; None for
    plain values.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if block := block_of(inner):
            return block
    return None
