"""The key of an endpoint, which is never in a recipe: only the variable's name is."""

from __future__ import annotations

import os

from hubkit.errors import RecipeError


def key_in(variable: str | None, *, said_by: str = "token_env") -> str | None:
    """What the environment's `variable` holds, None where none is named. Raises `RecipeError` when
    it is not set; `said_by` is the recipe's key, or the option, that names it."""
    if variable is None:
        return None
    if token := os.environ.get(variable, "").strip():
        return token
    raise RecipeError(f"{said_by} names {variable}, which is not set; export it, or name none")
