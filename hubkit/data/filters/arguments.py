"""A recipe's arguments of a filter, held against what its factory says that it takes, before any
row is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_type_hints


def mistake(factory: Callable[..., Any], args: Mapping[str, Any]) -> str | None:
    """What is wrong with the first of `args` that has not the type that `factory` names; None where
    all have.

    A whole number passes for a number, a text for nothing but a text; numbers are finite, counts
    are not negative."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    hints = get_type_hints(factory)
    for name, value in args.items():
        try:
            TypeAdapter(
                hints[name], config=ConfigDict(strict=True, allow_inf_nan=False)
            ).validate_python(value)
        except ValidationError as error:
            return f"{name} is {value!r}, but {error.errors(include_url=False)[0]['msg'].lower()}"
        if type(value) is int and value < 0:
            return f"{name} is {value}, but it should not be below 0"
    return None
