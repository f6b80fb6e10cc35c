"""``hubkit env``: a frozen asker as an environment server, for trainers of one's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubkit.cli import console
from hubkit.cli.eval_chat import Engine, Place
from hubkit.cli.model_args import HARDWARE, show_endpoints
from hubkit.cli.options import DryRun, Json, grouped, usd_per_million
from hubkit.cli.reward_options import Worth, reward_terms
from hubkit.untrusted import JsonObject, objects_in

if TYPE_CHECKING:
    from hubkit.pipeline.asker_environment import EnvironmentOptions

EXAMPLE = "Example: hubkit env parrot-ask --turns 4 --port 8090"


@dataclass(frozen=True)
class WhoAsks:
    """Who asks, and from what."""

    asker: Annotated[str, typer.Argument(metavar="REPO[@REV]", help="The asker.")]
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="REPO[@REV][:SPLIT]",
            help="Openings; default: those that the asker was held out from.",
        ),
    ] = ""
    system: Annotated[
        str | None, typer.Option(help="Tells a repo that no asker stage made to play the user.")
    ] = None
    speaks_user: Annotated[
        bool,
        typer.Option(
            "--speaks-user",
            help="The asker writes people's turns under its own user header, seats not swapped.",
        ),
    ] = False
    end_token: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="With which such an asker ends a conversation."),
    ] = None
    endpoint: Annotated[
        list[str],
        typer.Option(
            "--endpoint",
            metavar="URL[#MODEL]",
            help="Served there, not by our engine; deploy: by an endpoint made for it.",
        ),
    ] = field(default_factory=list)
    engine: Engine = "tgi"
    hardware: Place = HARDWARE


@dataclass(frozen=True)
class Conversation:
    """How a conversation goes."""

    turns: Annotated[
        int, typer.Option(min=1, help="User turns, at most, the opening included.")
    ] = 8
    temperature: Annotated[float, typer.Option(min=0, help="Of the asker's sampling.")] = 0.7
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens a user turn, at most.")] = 256
    retries: Annotated[
        int, typer.Option(min=0, help="How often a user turn that fails a check is asked again.")
    ] = 2


@dataclass(frozen=True)
class Caps:
    """What the asker, and each judge, may take while it is served."""

    price: Annotated[
        str | None,
        typer.Option(
            metavar="IN,OUT", help="US dollars per million of the asker's tokens, in and out."
        ),
    ] = None
    budget_usd: Annotated[
        float | None,
        typer.Option(min=0, help="Stop before the asker costs more; each judge as much again."),
    ] = None
    budget_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Stop before the asker takes more tokens; judges likewise."),
    ] = None
    max_hours: Annotated[
        float | None, typer.Option(min=0, help="Stop asking after so many hours.")
    ] = None


@dataclass(frozen=True)
class Address:
    """Where it is served."""

    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8090
    sessions: Annotated[int, typer.Option(min=1, help="Connections at once, at most.")] = 64
    idle_minutes: Annotated[
        float, typer.Option(min=0.01, help="Without a message for so long, a session ends.")
    ] = 30.0
    slots: Annotated[int, typer.Option(min=1, help="Conversations at once, in our engine.")] = 8


@grouped
def env(
    who: WhoAsks,
    conversation: Conversation,
    worth: Worth,
    caps: Caps,
    place: Address,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Serve an asker as an environment in OpenEnv's protocol, on this machine only, for trainers of
    your own.

    Reset gives a user's first turn; step takes an answer and gives the next. The last result has
    the reward of the whole conversation, where --reward names one. Ctrl-C stops it.
    """
    from hubkit import settings
    from hubkit.api.datasets import find
    from hubkit.environment import Limits
    from hubkit.hub import connect
    from hubkit.pipeline.asker_environment import prepare

    hub = connect()

    def locate(name: str) -> list[Path]:
        return find(name, hub, split="openings").files

    with console.bars(quiet=json) as bar_for:
        prepared = prepare(
            hub, _options(who, conversation, worth, caps, place), locate, progress=bar_for("env")
        )
        if dry_run:
            plan = prepared.plan(hub)
            console.data(plan) if json else _show_plan(plan)
            return
    console.say(f"starting {who.asker}, {len(prepared.openings)} openings")
    limits = Limits(place.sessions, place.idle_minutes * 60)
    token = settings.value(settings.ENDPOINT_TOKEN) or None
    with prepared.served(hub, port=place.port, token=token, limits=limits) as (url, counts):
        if json:
            console.data({"url": url, "openings": len(prepared.openings), "token": bool(token)})
        else:
            console.line(url)
            console.say("OpenEnv: GenericEnvClient(base_url=…), WebSocket /ws; Ctrl-C stops it")
        console.wait_for_signal()
    ends = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
    console.say(f"conversations by their end: {ends or 'none'}")


def _options(
    who: WhoAsks, conversation: Conversation, worth: Worth, caps: Caps, place: Address
) -> EnvironmentOptions:
    from hubkit.api.evaluations import deploy_terms
    from hubkit.pipeline.asker_environment import EnvironmentOptions
    from hubkit.recipe import Sampling

    rewards = reward_terms(worth, caps.budget_usd, caps.budget_tokens) if worth.reward else []
    return EnvironmentOptions(
        asker=who.asker,
        data=who.data,
        system=who.system,
        served_at=who.endpoint,
        deploy=deploy_terms(who.engine, who.hardware),
        sampling=Sampling(temperature=conversation.temperature, max_tokens=conversation.max_tokens),
        rewards=rewards,
        turns=conversation.turns,
        retries=conversation.retries,
        slots=place.slots,
        speaks_user=who.speaks_user,
        end_token=who.end_token,
        budget_usd=caps.budget_usd,
        budget_tokens=caps.budget_tokens,
        max_hours=caps.max_hours,
        usd_per_million=usd_per_million(f"--price {caps.price!r}", caps.price)
        if caps.price is not None
        else None,
    )


def _show_plan(plan: JsonObject) -> None:
    columns = ["asker", "base", "openings", "most_user_turns", "end_mark", "rewards"]
    console.table(
        "What would be served",
        [column.replace("_", " ") for column in columns],
        [[str(plan[column]) for column in columns]],
    )
    show_endpoints(objects_in(plan, "endpoints"))
