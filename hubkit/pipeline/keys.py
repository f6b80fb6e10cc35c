"""The keys that a stage sends to the addresses in its recipe: the recipe names variables of the
environment, never values."""

from __future__ import annotations

from collections.abc import Mapping

from hubkit.errors import RecipeError
from hubkit.recipe import Recipe
from hubkit.serving import ServedModel
from hubkit.serving.client import key_in


def require_keys(recipe: Recipe, stage: str) -> None:
    """Raise `RecipeError` where a variable that a seat of `stage` names is not set, or its value
    cannot be sent."""
    for at, seat in recipe.seats_of(stage).items():
        if seat.is_elsewhere:
            ServedModel.of(seat, named_by=at)


def keys_of(recipe: Recipe, stage: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the seats of `stage` name, with their values.

    Args:
        recipe: The recipe.
        stage: The stage.
        environment: What the process that will read them has in its environment by itself.

    Raises:
        RecipeError: One is not set, or has another value there.
    """
    keys = {}
    for at, seat in recipe.seats_of(stage).items():
        for name, variable in seat.variables.items():
            value = key_in(variable, said_by=f"{at}.{name}") or ""
            if environment.get(variable, value) != value:
                raise RecipeError(
                    f"{at}.{name} names {variable}, which has a value of its own in a job of this "
                    "Hub; export the key under another name, and name that"
                )
            keys[variable] = value
    return keys
