"""Option groups: a dataclass of options as one parameter of a command.

A field is an option as a parameter would be: ``Annotated[type, typer.Option(...)]`` and a default.
Each command says which groups it has; options that belong together are written, and checked, once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from hubkit.cli import console

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A shipped recipe (parrot, realm, userlm) or a YAML file."
    ),
]
Profiles = Annotated[
    list[str], typer.Option("--profile", "-p", help="Lay a profile over the recipe, e.g. laptop.")
]
Overrides = Annotated[
    list[str], typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one value of it.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout, and no bars.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what is done and what would run; touch nothing.")
]


@dataclass(frozen=True)
class RecipeOptions:
    """Which recipe, and what is laid over it."""

    recipe: RecipeName
    profile: Profiles = field(default_factory=list)
    overrides: Overrides = field(default_factory=list)

    def load(self, *overrides: str) -> Any:
        """The recipe, with further `overrides`. Raises `RecipeError`."""
        from hubkit.recipe import load

        return load(self.recipe, profiles=self.profile, overrides=[*self.overrides, *overrides])


@dataclass(frozen=True)
class OutputOptions:
    """Whether anything is done, and how the result is printed."""

    dry_run: DryRun = False
    json: Json = False

    def print(self, data: Any) -> bool:
        """Print `data` as JSON where that was asked for; whether it was."""
        if self.json:
            console.data(data)
        return self.json


def usd_per_million(option: str, prices: str, form: str = "IN,OUT") -> tuple[float, float]:
    """Read two `prices`, in and out. Raises `RecipeError`, which says `option` and its `form`."""
    from hubkit.errors import RecipeError

    try:
        price_in, price_out = map(float, prices.split(","))
    except ValueError:
        price_in = price_out = -1.0
    if not 0 <= price_in < 1e9 or not 0 <= price_out < 1e9:
        raise RecipeError(f"{option} must be {form} in US dollars per million tokens")
    return price_in, price_out


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the fields of its dataclass parameters as parameters of its own; those without
    a default come first, as arguments do.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _parameters(groups[name])
        else:
            parameters.append(
                parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            )

    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)

    @wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            group_values = {item.name: values.pop(item.name) for item in fields(group)}
            values[name] = group(**group_values)
        command(**values)

    signature = inspect.Signature(parameters)
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(item),
            annotation=hints[item.name],
        )
        for item in fields(group)
    ]


def _default(item: Field[Any]) -> Any:
    if item.default is not MISSING:
        return item.default
    if item.default_factory is not MISSING:
        return item.default_factory()
    return inspect.Parameter.empty
