"""How ``hubkit --help`` lists commands: in the order in which they are needed, under headings, no
sentence cut off.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

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


class Mapped(TyperGroup):
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
            listed = [(name, self.commands[name]) for name in names if name in self.commands]
            if rows := [
                (name, command.get_short_help_str(limit=200))
                for name, command in listed
                if not command.hidden
            ]:
                with formatter.section(heading):
                    formatter.write_dl(rows)
