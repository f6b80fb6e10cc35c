"""``hubkit rollout``: the dialogues of a recipe, over its endpoints or yours, within caps; or what
they would cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubkit.cli import console, job_options
from hubkit.cli.options import (
    DryRun,
    Json,
    OutputOptions,
    Overrides,
    Profiles,
    RecipeName,
    RecipeOptions,
)
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
    str | None, typer.Option("--on", help="Where to drive from: here, or ray (a cluster).")
]
Sample = Annotated[
    int,
    typer.Option(
        "--estimate", metavar="N", min=0, help="Drive only the first N and say what all would take."
    ),
]


def rollout(
    recipe: RecipeName,
    profile: Profiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    asker_url: AskerUrl = [],  # noqa: B006
    chat_url: ChatUrl = [],  # noqa: B006
    dialogues: Count = None,
    in_flight: InFlight = None,
    budget_usd: Usd = None,
    budget_tokens: Tokens = None,
    max_hours: Hours = None,
    on: On = None,
    estimate: Sample = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Let the asker question the chat model; commit the raw dialogues. Stopped, it resumes where
    it was.
    """
    chosen = {
        "asker.endpoints": asker_url or None,
        "chat.endpoints": chat_url or None,
        "dialogues": dialogues,
        "in_flight": in_flight,
        "budget_usd": budget_usd,
        "budget_tokens": budget_tokens,
        "max_hours": max_hours,
        "on": on,
    }
    overrides = [*overrides, *_overrides(chosen)]
    if not estimate or dry_run:
        walk(RecipeOptions(recipe, profile, overrides), OutputOptions(dry_run, json), "rollout")
        return
    from hubkit.hub import connect
    from hubkit.pipeline.rollout_estimate import estimate as preflight
    from hubkit.recipe import load

    loaded, hub = load(recipe, profiles=profile, overrides=overrides), connect()
    job_options.end_what_was_left(hub)
    job_options.say_endpoints(loaded, hub)
    with console.bars(quiet=json) as bar_for:
        found = preflight(loaded, hub, dialogues=estimate, progress=bar_for("rollout"))
    console.data(found.to_dict()) if json else _show(found)


def _overrides(chosen: dict[str, Any]) -> list[str]:
    import json

    return [
        f"rollout.{key}={json.dumps(value)}" for key, value in chosen.items() if value is not None
    ]


def _show(found: Estimate) -> None:
    rows = [
        [
            seat,
            f"{found.requests[seat]:,}",
            f"{found.prompt_tokens[seat]:,}",
            f"{found.completion_tokens[seat]:,}",
        ]
        for seat in ("asker", "chat")
    ]
    console.table(
        f"{found.dialogues:,} dialogues would take",
        ["seat", "requests", "tokens in", "tokens out"],
        rows,
    )
    console.say(
        f"about {found.seconds / 3600:.1f} hours and ${found.usd:,.2f}, judged by "
        f"{found.sampled} dialogues (tokens may be {found.spread:.0%} off); those are kept, and "
        "the rollout resumes from them"
    )
