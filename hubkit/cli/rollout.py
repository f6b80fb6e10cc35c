"""``hubkit rollout``: the dialogues of a recipe, over its endpoints or yours, within caps; or what
they would cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from hubkit.cli import console, job_options
from hubkit.cli.options import OutputOptions, RecipeOptions, grouped
from hubkit.cli.run import walk

if TYPE_CHECKING:
    from hubkit.rollout import Estimate

Urls = list[str]
AskerUrl = Annotated[
    Urls, typer.Option("--asker-url", metavar="URL", help="Where the asker answers; repeatable.")
]
ChatUrl = Annotated[
    Urls,
    typer.Option("--chat-url", metavar="URL", help="Where the chat model answers; repeatable."),
]
Count = Annotated[int | None, typer.Option("--dialogues", "-n", min=1, help="How many dialogues.")]
InFlight = Annotated[
    int | None, typer.Option("--in-flight", min=1, help="How many at once, at most.")
]
Usd = Annotated[
    float | None, typer.Option("--budget-usd", min=0, help="Stop before both seats have cost more.")
]
Tokens = Annotated[
    int | None,
    typer.Option("--budget-tokens", min=1, help="Stop before both seats took more tokens."),
]
Hours = Annotated[
    float | None,
    typer.Option("--max-hours", min=0, help="Stop after this long, all sessions together."),
]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="WHERE", help="Where to drive from: here, or ray (a cluster)."),
]
Sample = Annotated[
    int,
    typer.Option(
        "--estimate", metavar="N", min=0, help="Drive only the first N and say what all would take."
    ),
]


@dataclass(frozen=True)
class SeatOptions:
    """Where both seats answer."""

    asker_url: AskerUrl = field(default_factory=list)
    chat_url: ChatUrl = field(default_factory=list)


@dataclass(frozen=True)
class CapOptions:
    """How many dialogues are driven, and what ends that early."""

    dialogues: Count = None
    in_flight: InFlight = None
    budget_usd: Usd = None
    budget_tokens: Tokens = None
    max_hours: Hours = None
    on: On = None


@grouped
def rollout(
    recipe: RecipeOptions,
    seats: SeatOptions,
    caps: CapOptions,
    *,
    estimate: Sample = 0,
    output: OutputOptions,
) -> None:
    """Let the asker question the chat model; commit the raw dialogues. Stopped, it resumes where
    it was.
    """
    values = _values(seats, caps)
    if not estimate or output.dry_run:
        walk(recipe, output, "rollout", values=values)
        return
    from hubkit.hub import connect
    from hubkit.pipeline.rollout_estimate import estimate as preflight

    loaded, hub = recipe.load(*values), connect()
    job_options.end_what_was_left(hub)
    job_options.say_endpoints(loaded, hub)
    with console.bars(quiet=output.json) as bar_for:
        guess = preflight(loaded, hub, dialogues=estimate, progress=bar_for("rollout"))
    if not output.print(guess.to_dict()):
        _show(guess)


def _values(seats: SeatOptions, caps: CapOptions) -> list[str]:
    """The options that are given, as values laid over the recipe."""
    import json
    from dataclasses import asdict

    chosen = {
        "asker.endpoints": seats.asker_url or None,
        "chat.endpoints": seats.chat_url or None,
        **asdict(caps),
    }
    return [
        f"rollout.{key}={json.dumps(value)}" for key, value in chosen.items() if value is not None
    ]


def _show(guess: Estimate) -> None:
    rows = [
        [
            seat,
            f"{guess.requests[seat]:,}",
            f"{guess.prompt_tokens[seat]:,}",
            f"{guess.completion_tokens[seat]:,}",
        ]
        for seat in ("asker", "chat")
    ]
    console.table(
        f"{guess.dialogues:,} dialogues would take",
        ["seat", "requests", "tokens in", "tokens out"],
        rows,
    )
    console.say(
        f"about {guess.seconds / 3600:.1f} hours and ${guess.usd:,.2f}, judged by "
        f"{guess.sampled} dialogues (tokens may be {guess.spread:.0%} off); those are kept, and "
        "the rollout resumes from them"
    )
