"""``hubkit eval against``: every chat model in conversation with every asker, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubkit.cli import console
from hubkit.cli.eval_chat import Engine, Place
from hubkit.cli.model_args import HARDWARE, show_endpoints
from hubkit.cli.options import Json, grouped, usd_per_million
from hubkit.cli.reward_options import Worth, reward_terms
from hubkit.untrusted import JsonObject, number_in, object_in, objects_in

if TYPE_CHECKING:
    from hubkit.api.evaluations import ChatModels
    from hubkit.metrics.cross_table import CrossTable
    from hubkit.pipeline.against import CrossTableRun
    from hubkit.progress import Progress
    from hubkit.recipe import Against, Deploy, RewardTerm

EXAMPLE = (
    "Example: hubkit eval against parrot-ask --chat HuggingFaceTB/SmolLM2-135M-Instruct "
    "--chat parrot-chat -n 8 --turns 2"
)


@dataclass(frozen=True)
class Seats:
    """Who meets whom, and where they answer."""

    askers: Annotated[list[str], typer.Argument(metavar="ASKER...", help="REPO[@REV] of askers.")]
    chat: Annotated[
        list[str],
        typer.Option(
            "--chat",
            "-c",
            metavar="MODEL",
            help=(
                "A chat model: REPO_ID[@REV], deploy:REPO_ID[@REV] or URL[#MODEL]; the others are "
                "compared with the first."
            ),
        ),
    ]
    base: Annotated[
        bool,
        typer.Option(
            "--base/--no-base",
            help="Also the first asker's base, only told to play the user, as an asker.",
        ),
    ] = True
    system: Annotated[
        str | None,
        typer.Option(help="Tells askers that no asker stage made to play; default: the first's."),
    ] = None
    speaks_user: Annotated[
        list[str],
        typer.Option(
            "--speaks-user",
            metavar="ASKER[=END_TOKEN]",
            help="One of these writes people's turns under its own user header, seats not swapped.",
        ),
    ] = field(default_factory=list)
    endpoint: Annotated[
        list[str],
        typer.Option(
            "--endpoint",
            metavar="ASKER=URL",
            help="An asker served there; ASKER=deploy: by an endpoint made for it; `base=…`.",
        ),
    ] = field(default_factory=list)
    server: Annotated[
        str | None,
        typer.Option(help="Kind of server at chat models' URLs: tgi, vllm, openai, …"),
    ] = None
    token_env: Annotated[
        str | None, typer.Option(metavar="VAR", help="Environment variable with their key.")
    ] = None
    engine: Engine = "tgi"
    hardware: Place = HARDWARE


@dataclass(frozen=True)
class Talks:
    """On which openings, how long, and how turns are sampled."""

    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="REPO[@REV][:SPLIT]",
            help="Held-out conversations; default: those of the first asker.",
        ),
    ] = ""
    openings: Annotated[
        int, typer.Option("--openings", "-n", min=2, help="Conversations of each pair.")
    ] = 50
    turns: Annotated[
        int, typer.Option(min=1, help="User turns, at most, the opening included.")
    ] = 4
    temperature: Annotated[float, typer.Option(min=0, help="Of both seats' sampling.")] = 0.7
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens a turn, at most.")] = 256
    seed: Annotated[int, typer.Option(help="Draws openings and turns.")] = 42


@dataclass(frozen=True)
class Caps:
    """What it may take."""

    price: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=IN,OUT",
            help="US dollars per million tokens in and out, of an asker or chat model.",
        ),
    ] = field(default_factory=list)
    budget_usd: Annotated[
        float | None,
        typer.Option(min=0, help="Stop before conversations cost more; each judge as much again."),
    ] = None
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop before they took more tokens; judges likewise.")
    ] = None
    max_hours: Annotated[
        float | None, typer.Option(min=0, help="Stop conversations after so many hours.")
    ] = None
    in_flight: Annotated[int, typer.Option(min=1, help="Conversations at once.")] = 16


@grouped
def against(
    seats: Seats,
    talks: Talks,
    worth: Worth,
    caps: Caps,
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write data, heat map, card section, conversations."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be asked and cost; ask nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """The cross-simulator table: every chat model in conversation with every asker on the same
    held-out openings; mean rewards (judges' ratings, unless --reward says otherwise) and paired
    differences with their intervals. Interrupted, it resumes where it stopped.
    """
    from hubkit.api.evaluations import write_cross_table

    with console.bars(quiet=json) as bar_for:
        looking = bar_for("look up")
        prepared = _prepared(seats, talks, worth, caps, looking)
        looking(1, 1, "done")
        hub = _hub()
        if dry_run:
            plan = prepared.plan(hub)
            console.data(plan) if json else _show_plan(plan)
            return
        result, scored = prepared.run(hub, progress=bar_for("against"))
        files = write_cross_table(folder, result, scored) if folder else []
    console.data(result.to_dict()) if json else _show(result, files)


def _hub() -> Any:
    from hubkit.hub import connect

    return connect()


def _prepared(
    seats: Seats, talks: Talks, worth: Worth, caps: Caps, progress: Progress
) -> CrossTableRun:
    from hubkit.api.evaluations import AskerComparison, addresses, cross_table, deploy_terms
    from hubkit.recipe import Scorecard

    deploy = deploy_terms(seats.engine, seats.hardware)
    comparison = AskerComparison(
        repos=seats.askers,
        block=Scorecard(),
        data=talks.data,
        system=seats.system,
        speaks_user={
            name: token or None
            for name, _, token in (text.partition("=") for text in seats.speaks_user)
        },
        served_at=addresses(seats.askers, seats.endpoint),
        deploy=deploy,
        with_base=seats.base,
        seed=talks.seed,
    )
    rewards = reward_terms(worth, caps.budget_usd, caps.budget_tokens)
    chats = [_chat(name, seats, deploy) for name in seats.chat]
    block = _block(talks, caps, seats, rewards)
    return cross_table(block, comparison, chats, hub=_hub(), progress=progress)


def _block(talks: Talks, caps: Caps, seats: Seats, rewards: list[RewardTerm]) -> Against:
    from hubkit.recipe import Against, Sampling

    sampling = Sampling(temperature=talks.temperature, max_tokens=talks.max_tokens)
    return Against(
        openings=talks.openings,
        turns=talks.turns,
        rewards=rewards,
        prompted=seats.base,
        sampling=sampling,
        chat_sampling=sampling,
        in_flight=caps.in_flight,
        usd_per_million=dict(map(_price, caps.price)),
        budget_usd=caps.budget_usd,
        budget_tokens=caps.budget_tokens,
        max_hours=caps.max_hours,
    )


def _price(text: str) -> tuple[str, tuple[float, float]]:
    name, _, prices = text.rpartition("=")
    return name, usd_per_million(f"--price {text!r}", prices if name else "", "NAME=IN,OUT")


def _chat(name: str, seats: Seats, deploy: Deploy) -> ChatModels:
    from hubkit.api.evaluations import ChatModels

    return ChatModels(name, server=seats.server, token_env=seats.token_env, deploy=deploy)


def _show(result: CrossTable, files: list[Path]) -> None:
    from hubkit.metrics.cross_table import notes, table

    title = f"Mean reward over {result.settings['openings']} openings, with 95% intervals"
    console.table(title, *table(result))
    hints = [] if files else ["a heat map, and every conversation's reward: --out FOLDER"]
    for note in (*notes(result), *(f"wrote {file}" for file in files), *hints):
        console.say(note)


def _show_plan(plan: JsonObject) -> None:
    columns = ["asker", "chat", "conversations", "requests", "tokens_at_most", "usd_at_most"]
    data = object_in(plan, "data")
    title = f"What would be asked, on {data['repo_id']} ({data['split']})"
    rows = [[row[column] for column in columns] for row in objects_in(plan, "pairs")]
    console.table(title, [column.replace("_", " ") for column in columns], rows)
    if judges := objects_in(plan, "judges"):
        columns = ["judge", "judgments", "tokens_at_most", "usd_at_most"]
        rows = [[row[column] for column in columns] for row in judges]
        heads = [column.replace("_", " ") for column in columns]
        console.table("What judges would be asked, retries apart", heads, rows)
    console.say(
        f"{number_in(plan, 'usd_at_most'):.4f} USD at most in all; it resumes in {plan['folder']}"
    )
    show_endpoints(objects_in(plan, "endpoints"))
