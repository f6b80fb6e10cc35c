"""How ``--help`` looks: commands in the order in which they are needed, under headings, no sentence
cut off; values named by words that a person reads, not by Python's types.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

MAP = {
    "A whole recipe": ("run", "recipes"),
    "Its stages, in order": (
        "corpus",
        "train",
        "rollout",
        "curate",
        "prefer",
        "align",
        "reinforce",
        "eval",
        "push",
    ),
    "Look at what there is": ("clean", "lineage", "stats", "diff", "askers", "study"),
    "Serve it": ("serve", "env", "spaces", "deploy"),
    "This machine": ("doctor", "hub", "reference"),
}


_WORDS = {"int": "N", "float": "NUMBER", "path": "PATH"}
_RANGE = re.compile(
    r"(?:(?P<least>-?[\d.]+)<=)?x(?:>=(?P<only_least>-?[\d.]+)|<=(?P<most>-?[\d.]+))"
)
_BROAD = 400  # characters of a command's sentence in a list


def _value(param: Any, ctx: Any) -> str:
    """The word for an option's value: its own, or one by its type, or else the option's name."""
    kind = str(param.display_type(ctx)).strip("<>").removeprefix("list[").removesuffix("]")
    kind = kind.removesuffix(" range")
    return _WORDS.get(kind) or (param.name.upper() if kind == "str" else kind)


def _range(match: re.Match[str]) -> str:
    least, most = match["least"] or match["only_least"], match["most"]
    if least is None or most is None:
        return f"at least {least}" if most is None else f"at most {most}"
    return f"{least} to {most}"


def _argument(param: Any) -> str:
    name = (param.metavar or param.name.upper()).removesuffix("...")
    return name if param.nargs == 1 else f"{name}..."


def _collect_usage_pieces(command: Any, ctx: Any) -> list[str]:
    pieces = [command.options_metavar] if command.options_metavar else []
    for param in command.get_params(ctx):
        if param.param_type_name == "argument":
            name = _argument(param)
            pieces.append(name if param.required else f"[{name}]")
    return pieces


def _format_options(command: Any, ctx: Any, formatter: Any) -> None:
    rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for param in command.get_params(ctx):
        is_argument = param.param_type_name == "argument"
        if not is_argument and param.metavar is None and not (param.is_flag or param.count):
            param.metavar = _value(param, ctx)
        if record := param.get_help_record(ctx):
            name, text = record
            rows["Arguments" if is_argument else "Options"].append(
                (_argument(param) if is_argument else name, _RANGE.sub(_range, text))
            )
    for heading, records in rows.items():
        if records:
            with formatter.section(heading):
                formatter.write_dl(records)


class Worded(TyperCommand):
    """A command whose help names values by words."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words after the command's name."""
        return _collect_usage_pieces(self, ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options."""
        _format_options(self, ctx, formatter)


class Group(TyperGroup):
    """Commands under one name, each with its whole sentence."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Options, and below them the commands."""
        _format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of commands."""
        self._write(formatter, "Commands", self.list_commands(ctx))

    def _write(self, formatter: Any, heading: str, names: Iterable[str]) -> None:
        commands = [(name, self.commands[name]) for name in names if name in self.commands]
        rows = [
            (name, command.get_short_help_str(limit=_BROAD))
            for name, command in commands
            if not command.hidden
        ]
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)


class Mapped(Group):
    """The commands by `MAP`; one that it does not name stands at the end, under a heading of its
    own.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the map's order."""
        mapped = [name for names in MAP.values() for name in names if name in self.commands]
        return [*mapped, *(name for name in self.commands if name not in mapped)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """A list for each heading."""
        unmapped = tuple(
            name
            for name in self.list_commands(ctx)
            if not any(name in names for names in MAP.values())
        )
        for heading, names in {**MAP, "Others": unmapped}.items():
            self._write(formatter, heading, names)
