"""What each measure is: title, formula, source; and what the papers published, as they published
it. Both are data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypedDict

from hubkit.plugins import Registry


@dataclass(frozen=True, slots=True)
class Definition:
    """A measure's row title (``{unit}`` is tokens or words), formula, source, and digits after the
    point.

    `best` says which values of a scorecard's measure are good: ``high``, ``low``, near ``people``
    or ``chance``; or none, where it says what ``n`` turns can show."""

    title: str
    formula: str
    source: str
    digits: int = 2
    best: str = ""


class PublishedMeasures(TypedDict):
    """Numbers of one dataset, as published."""

    dataset: str
    source: str
    values: dict[str, float]


class PublishedStep(TypedDict, total=False):
    """What a step of a published preparation left."""

    step: str
    conversations: int
    rows: int


class PublishedSteps(TypedDict, total=False):
    """The steps of a recipe's published preparation."""

    source: str
    caution: str
    rows: list[PublishedStep]


class Published(TypedDict):
    """What the papers published."""

    measures: list[PublishedMeasures]
    caution: str
    steps: dict[str, PublishedSteps]


@cache
def published() -> Published:
    """The papers' numbers: ``measures`` (dataset, source, values), ``caution``, ``steps`` by
    recipe.
    """
    values: Published = _data("published.yaml")
    return values


Metric = Callable[[Any], float | None]
"""A measure of one dialogue (`hubkit.metrics.sampling.Dialogue`); None where it cannot be taken.
The first line of its docstring is its title, the rest its formula."""
METRICS: Registry[Metric] = Registry("hubkit.metrics")
"""Measures of installed plug-ins, and those registered by a recipe's own modules."""


def definitions_with_plugins() -> dict[str, Definition]:
    """`definitions`, and those of plug-ins."""
    plugins = {}
    for name, metric in METRICS.items():
        title, _, formula = (metric.__doc__ or name).strip().partition("\n")
        source = f"plug-in {metric.__module__}"
        plugins[name] = Definition(title.rstrip("."), " ".join(formula.split()), source)
    return definitions() | plugins


@cache
def definitions() -> dict[str, Definition]:
    """Every measure by name, in the order that tables show them."""
    return {name: Definition(**entry) for name, entry in _data("definitions.yaml").items()}


@cache
def card_definitions() -> dict[str, Definition]:
    """Every measure of an asker's scorecard by name, in the order that tables show them."""
    return {name: Definition(**entry) for name, entry in _data("scorecard.yaml").items()}


def _data(name: str) -> Any:
    import yaml

    return yaml.safe_load((resources.files("hubkit.metrics") / name).read_text("utf-8"))


def step_table(report: Mapping[str, Any], recipe: str = "") -> tuple[list[str], list[list[str]]]:
    """Rows left after each step of a corpus ``report.json``; where `recipe` has one, the published
    step next to it.
    """
    published_rows = {
        row["step"]: row
        for row in published()["steps"].get(recipe, PublishedSteps()).get("rows", [])
    }
    columns = ["step", "conversations", "rows", "published conversations", "published rows"]
    read = report["rows_read"] - report.get("unreadable", 0) - report.get("joined", 0)
    rows = [_row("read", read, read, published_rows)]
    rows += [
        _row(step["name"], step["conversations_out"], step["rows_out"], published_rows)
        for step in report["steps"]
    ]
    return (columns, rows) if published_rows else (columns[:3], [row[:3] for row in rows])


def _row(
    name: str, conversations: int, rows: int, published_rows: Mapping[str, PublishedStep]
) -> list[str]:
    published_row = published_rows.get(name, PublishedStep())
    published_cells = [
        f"{published_row[key]:,}" if key in published_row else ""
        for key in ("conversations", "rows")
    ]
    return [name, f"{conversations:,}", f"{rows:,}", *published_cells]
