"""``hubkit eval``: a recipe's eval stage; a chat model before a judge (``chat``); an asker's
scorecard (``asker``); a report from verdicts alone (``report``).
"""

from __future__ import annotations

from typing import Any

import typer

from hubkit.cli import eval_against, eval_asker, eval_chat, eval_report, eval_votes
from hubkit.cli.help_layout import Group
from hubkit.cli.run import stage_verb

_RECIPE = "recipe"


class _RecipeOrCommand(Group):
    """A group whose first word may also be a recipe: ``hubkit eval parrot`` is ``hubkit eval recipe
    parrot``.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help", "-h"):
            args = [_RECIPE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RecipeOrCommand,
    name="eval",
    help="Judge what was trained: RECIPE (held-out loss), chat MODEL (benchmarks), asker REPO "
    "(scorecard), against ASKERS (cross-simulator table), report FILES (verdicts), votes REPO "
    "(people's).",
    epilog="Example: hubkit eval parrot --profile laptop",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(root: typer.Typer) -> None:
    """Add ``eval`` with its commands to `root`."""
    app.command(
        _RECIPE,
        help=(
            "Held-out loss of asker and chat model, compared with their bases; commit the results."
        ),
        epilog="Example: hubkit eval parrot --profile laptop (the word `recipe` may be left out)",
    )(stage_verb("eval"))
    epilog = (
        "Example: hubkit eval chat parrot-chat --against HuggingFaceTB/SmolLM2-135M-Instruct "
        "--benchmark offline-16"
    )
    app.command("chat", epilog=epilog)(eval_chat.chat)
    app.command("report", epilog=eval_report.EXAMPLE)(eval_report.report)
    app.command("against", epilog=eval_against.EXAMPLE)(eval_against.against)
    app.command("asker", epilog=eval_asker.EXAMPLE)(eval_asker.asker)
    app.command("votes", epilog=eval_votes.EXAMPLE)(eval_votes.votes)
    root.add_typer(app)
