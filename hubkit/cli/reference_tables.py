"""Tables of the reference that are not commands or recipe keys: filters, measures, columns of the
datasets, environment variables, exit statuses.

Each is made from what the code itself reads, so that nothing can be missing from it."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml


def tables() -> Iterator[str]:
    """Give the lines of all tables, each under its heading."""
    yield from ("", "## Filters", "")
    yield "`corpus.filters` and `curate.filters` name them; `args` are the keyword arguments."
    yield from ("", *_table(("filter", "args", "what it does"), _filters()))
    yield from ("", "## Measures", "")
    yield "Of dialogues (`hubkit stats`, the dialogues' card); then of an asker's scorecard."
    dialogues, scorecards = _measures()
    for rows in (dialogues, scorecards):
        yield from ("", *_table(("measure", "formula", "source"), rows))
    yield from ("", "## Columns of the datasets")
    for title, rows in _columns():
        yield from ("", f"### {title}", "", *_table(("column", "type", "meaning"), rows))
    yield from ("", "## Environment variables", "")
    yield from _table(("variable", "meaning"), _variables())
    yield from ("", "## Exit statuses", "")
    yield from _table(("status", "when"), exit_statuses())


def _filters() -> Iterator[tuple[str, ...]]:
    from hubkit.data.filters import FILTERS

    for name, factory in sorted(FILTERS.items()):
        if not factory.__module__.startswith("hubkit."):
            continue  # a plug-in's, which this machine alone has
        parameters = inspect.signature(factory).parameters.values()
        arguments = [_argument(p) for p in parameters if p.name != "context"]
        yield f"`{name}`", ", ".join(arguments), _text(factory.__doc__)


def _argument(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if default is parameter.empty:
        return f"`{parameter.name}` (required)"
    if isinstance(default, list | tuple | set | frozenset):
        if len(default) > 3:
            return f"`{parameter.name}` (all {len(default)})"
        default = sorted(default)
    return f"`{parameter.name}={default!r}`"


def _measures() -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    from hubkit.metrics.definitions import card_definitions, definitions

    def rows(entries: Iterable[Any]) -> list[tuple[str, ...]]:
        return [
            tuple(
                _text(cell).replace("{unit}", "tokens") for cell in (e.title, e.formula, e.source)
            )
            for e in entries
        ]

    return rows(definitions().values()), rows(card_definitions().values())


def _columns() -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    for title, key, fields in schemas():
        meanings = meanings_of(key)
        yield (
            title,
            [(f"`{f.name}`", _type(str(f.type)), _text(meanings[f.name])) for f in fields],
        )


def meanings_of(dataset: str) -> dict[str, str]:
    """Read column → what it means, from the section `dataset` of ``columns.yaml``."""
    page = (resources.files("hubkit.cli") / "columns.yaml").read_text("utf-8")
    sections: dict[str, dict[str, str]] = yaml.safe_load(page)
    return sections[dataset]


def schemas() -> list[tuple[str, str, list[Any]]]:
    """Give title, section of ``columns.yaml`` and Arrow fields of each kind of dataset."""
    import pyarrow as pa

    from hubkit.data.parquet import conversation_schema
    from hubkit.preference import pair_schema
    from hubkit.reinforcement import rewarded_schema
    from hubkit.rollout.shards import schema

    text = pa.string()
    return [
        ("Conversations", "corpus", [*conversation_schema([("tools", text), ("intent", text)])]),
        ("Dialogues: `raw`, `train`", "dialogues", [*schema()]),
        (
            "Dropped dialogues: `dropped`, these after those of the dialogues",
            "dropped",
            [pa.field("reason", text), pa.field("step", text)],
        ),
        ("Preference pairs", "preference", [*pair_schema()]),
        ("Rewarded conversations", "rewarded", [*rewarded_schema([])]),
    ]


def _type(arrow: str) -> str:
    """An Arrow type in short: what a struct holds is in its meaning."""
    arrow = arrow.replace("element: ", "").replace("item: ", "")
    inner = arrow.removeprefix("list<").removesuffix(">") if arrow.startswith("list<") else arrow
    inner = "struct" if inner.startswith("struct<") else inner.partition("[")[0]
    return f"list of {inner}" if arrow.startswith("list<") else inner


def _variables() -> Iterator[tuple[str, str]]:
    """Name and description of each variable, as ``hubkit/settings.py`` states them."""
    from hubkit import settings

    body = ast.parse(Path(inspect.getfile(settings)).read_text("utf-8")).body
    for statement, below in itertools.pairwise(body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        name = getattr(settings, statement.target.id)
        yield f"`{name}`", _text(str(below.value.value))


def exit_statuses() -> list[tuple[str, str]]:
    """Give status and meaning of each way in which a command ends."""
    from hubkit.errors import HubkitError, RecipeError, RunInterruptedError

    return [
        ("`0`", "done"),
        (
            f"`{HubkitError.exit_code}`",
            "an error, said in one sentence on stderr; or a dry run that found what cannot run; or "
            "`hub status` where no Hub runs, `hub verify` and `doctor` where something is wrong",
        ),
        (
            f"`{RecipeError.exit_code}`",
            "a mistake in the command line or in the recipe; nothing was started",
        ),
        (
            f"`{RunInterruptedError.exit_code}`",
            "interrupted by Ctrl-C or SIGTERM; the same command resumes",
        ),
        ("`141`", "whoever read the output has closed it (`hubkit … \\| head`)"),
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + " --- |" * len(columns)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _text(text: str | None) -> str:
    """A docstring as a cell: one line, in the reference's marks for code."""
    return " ".join((text or "").replace("``", "`").replace("|", "\\|").split())
