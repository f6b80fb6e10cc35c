"""Keys of endpoints, which are never in a recipe: only the names of environment variables are."""

from __future__ import annotations

import os
from collections.abc import Mapping

from hubkit.errors import RecipeError


def key_in(variable: str | None, *, said_by: str = "token_env") -> str | None:
    """Read a key from the environment.

    Args:
        variable: Its variable; None where the recipe names none.
        said_by: The recipe's key, or the option, that names the variable.

    Raises:
        RecipeError: The variable is not set, or its value cannot be sent in a header.
    """
    if variable is None:
        return None
    value = os.environ.get(variable, "").strip()
    if not value:
        raise RecipeError(f"{said_by} names {variable}, which is not set; export it, or name none")
    if not value.isprintable() or not value.isascii():
        raise RecipeError(
            f"the key in {variable} holds a line break or another character that no header may "
            "hold; export it again, alone"
        )
    return value


def headers_in(headers: Mapping[str, str], *, said_by: str = "headers") -> dict[str, str]:
    """`headers` with the values of environment variables in place of ``$NAME``.

    Raises:
        RecipeError: A variable is not set, or a value cannot be sent in a header.
    """
    filled = {}
    for name, value in headers.items():
        if value.startswith("$"):
            value = key_in(value[1:].strip("{}"), said_by=f"{said_by}.{name}") or ""
        if not (name + value).isprintable():
            raise RecipeError(f"{said_by}.{name} holds a line break; leave it out")
        filled[name] = value
    return filled
