"""``hubkit reference``: every command with its options, every key of a recipe, and the tables of
``reference_tables``, as one Markdown page.

Taken from the code that runs, so it cannot say anything else: the commands' own help texts, and the
keys' types, defaults and descriptions. The README's neighbour REFERENCE.md is what this prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import typer

from hubkit.cli.reference_tables import tables

_WIDTH = 100


def reference() -> None:
    """Print the reference as Markdown: all commands, recipe keys, filters, measures and columns."""
    from hubkit.cli import app

    typer.echo(render(app), nl=False)


def commands(app: typer.Typer) -> Iterator[tuple[str, Any]]:
    """Every command of `app` with the words that call it, parents first."""
    yield from _tree(typer.main.get_command(app), "hubkit")


def render(app: typer.Typer) -> str:
    """The whole page, for the commands of `app`."""
    lines = [
        "# Reference",
        "",
        "Printed by `hubkit reference` (`make reference` writes it here).",
        "",
        "## Commands",
    ]
    for path, entry in commands(app):
        context = entry.context_class(
            entry, info_name=path, max_content_width=_WIDTH, terminal_width=_WIDTH
        )
        lines += ["", f"### `{path}`", "", "```text", _help(entry, context), "```"]
    lines += ["", "## Recipe keys", "", *_recipe()]
    lines += ["", "## Conversations that are read", "", *_layouts()]
    lines += tables()
    return "\n".join(lines) + "\n"


def _layouts() -> Iterator[str]:
    from hubkit.data.readers.table import layout_tables

    yield from layout_tables()


def _tree(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, below in sorted(getattr(command, "commands", {}).items()):
        if not below.hidden:
            yield from _tree(below, f"{path} {name}")


def _help(command: Any, context: Any) -> str:
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines()).strip()


def _recipe() -> Iterator[str]:
    from hubkit import recipe

    shipped = {name: recipe.load(name) for name in recipe.available()["recipes"]}
    yield (
        "A recipe is YAML of this shape, a profile the same with any part left out; "
        "`--set key=value` sets one value."
    )
    yield "The columns of the recipes show their values; *(ours)* marks what no source states."
    later: list[tuple[str, Any]] = []
    printed: set[str] = set()
    yield from _block(recipe.Recipe, "", shipped, printed, later)
    yield from _below(
        later, shipped, printed, later
    )  # no shipped recipe has these; the list grows as it is read


def _block(
    block: Any,
    path: str,
    shipped: Mapping[str, Any],
    printed: set[str],
    later: list[tuple[str, Any]],
) -> Iterator[str]:
    import inspect

    from hubkit.recipe import block_of

    below: list[tuple[str, Any]] = []
    yield from ("", f"### {path or 'the recipe'}", "", inspect.cleandoc(block.__doc__ or ""), "")
    yield "| key | type | default | meaning | " + " | ".join(shipped) + " |"
    yield "|" + " --- |" * (4 + len(shipped))
    for name, field in block.model_fields.items():
        key = f"{path}.{name}" if path else name
        inner = block_of(field.annotation)
        nested = inner is not None and not _many(field.annotation)
        values = [_value(loaded, key, nested) for loaded in shipped.values()]
        default = "" if nested else _code(field.get_default(call_default_factory=True))
        default = "required" if field.is_required() else default
        cells = (f"`{name}`", _type(field.annotation), default, _cell(field.description), *values)
        yield f"| {' | '.join(cells)} |"
        if inner is not None:
            (below if _somewhere(shipped, key) else later).append((key, inner))
    yield from _below(below, shipped, printed, later)


def _below(
    blocks: list[tuple[str, Any]],
    shipped: Mapping[str, Any],
    printed: set[str],
    later: list[tuple[str, Any]],
) -> Iterator[str]:
    for key, inner in blocks:
        if inner.__name__ in printed and inner.__name__ not in ("SeatConfig", "Training"):
            continue
        printed.add(inner.__name__)
        yield from _block(inner, key, shipped, printed, later)


def _somewhere(shipped: Mapping[str, Any], key: str) -> bool:
    """Whether some shipped recipe sets the block at `key`."""
    return any(_at(loaded, key) is not None for loaded in shipped.values())


def _many(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) in (list, dict)


def _value(loaded: Any, key: str, nested: bool) -> str:
    """What a shipped recipe says under `key`, shortened; nothing for blocks, which have tables of
    their own.
    """
    value = _at(loaded, key)
    if value is _NOWHERE:
        return ""
    mark = (
        " *(ours)*"
        if any(key == prefix or key.startswith(f"{prefix}.") for prefix in loaded.ours)
        else ""
    )
    return ("" if nested else _code(value)) + mark


_NOWHERE = object()


def _at(loaded: Any, key: str) -> Any:
    """The value under `key`; `_NOWHERE` below a block that is not set, or one of many."""
    value: Any = loaded
    for part in key.split("."):
        if value is None or isinstance(value, list | dict):
            return _NOWHERE
        value = getattr(value, part)
    return value


def _code(value: Any) -> str:
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if isinstance(value, list | dict) and len(value) > 3:
        return f"{len(value)} entries"
    text = repr(value)
    return f"`{_cell(text if len(text) <= 60 else text[:57] + '…')}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())


def _type(annotation: Any) -> str:
    """`annotation` as a reader writes it: without typing's own words."""
    import types
    from typing import Annotated, Literal, Union, get_args, get_origin

    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return "any"
    if annotation is type(None):
        return "none"
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " \\| ".join(_type(part) for part in inner)
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"mapping of {_type(inner[0])} to {_type(inner[1])}"
    return getattr(annotation, "__name__", str(annotation))
