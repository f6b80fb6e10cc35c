"""``hubkit eval asker``: a scorecard of askers compared with people, on held-out conversations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubkit.cli import console
from hubkit.cli.eval_chat import Engine, Place
from hubkit.cli.model_args import HARDWARE, show_endpoints
from hubkit.cli.options import Json, grouped
from hubkit.untrusted import JsonObject, object_in, objects_in

if TYPE_CHECKING:
    from hubkit.api.evaluations import AskerComparison
    from hubkit.metrics.scorecards import Scorecard

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
EXAMPLE = "Example: hubkit eval asker parrot-ask --against usergpt --out scorecard"


@dataclass(frozen=True)
class Askers:
    """Who is compared, and where they answer."""

    repo: Annotated[str, typer.Argument(metavar="REPO[@REV]", help="The asker.")]
    against: Annotated[
        list[str],
        typer.Option(
            "--against", "-a", metavar="REPO[@REV]", help="Another asker, on the same contexts."
        ),
    ] = field(default_factory=list)
    base: Annotated[
        bool, typer.Option("--base/--no-base", help="Also its base, only told to play the user.")
    ] = True
    system: Annotated[
        str | None,
        typer.Option(
            help=(
                "Tells repos that no asker stage made to play; default: as the first asker is told."
            )
        ),
    ] = None
    speaks_user: Annotated[
        list[str],
        typer.Option(
            "--speaks-user",
            metavar="REPO[=END_TOKEN]",
            help=(
                "One of these writes people's turns under its own user header, seats not swapped; "
                "END_TOKEN ends a conversation."
            ),
        ),
    ] = field(default_factory=list)
    endpoint: Annotated[
        list[str],
        typer.Option(
            "--endpoint",
            metavar="REPO=URL[#MODEL]",
            help=(
                "Served there, not by our engine (as MODEL: by vLLM or SGLang); REPO=deploy: "
                "by an endpoint made for it. `base=…`: its base."
            ),
        ),
    ] = field(default_factory=list)
    engine: Engine = "tgi"
    hardware: Place = HARDWARE


@dataclass(frozen=True)
class Sample:
    """On what, and how turns are sampled."""

    data: Annotated[
        str, typer.Option("--data", metavar="REPO[@REV][:SPLIT]", help="Held-out conversations.")
    ] = ""
    conversations: Annotated[
        int | None,
        typer.Option(
            "--conversations",
            "-n",
            min=2,
            help="Contexts to go on at; default 64, with --full 400.",
        ),
    ] = None
    openings: Annotated[
        int | None,
        typer.Option(min=0, help="First turns to ask for; default 24, with --full 100."),
    ] = None
    temperature: Annotated[float, typer.Option(min=0, help="Of both players' sampling.")] = 0.7
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="New tokens a turn, at most; default 64, with --full 256."),
    ] = None
    context_chars: Annotated[
        int | None,
        typer.Option(
            min=100, help="Characters of a context, at most; default 1500, with --full 6000."
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Draws contexts and turns.")] = 42


@dataclass(frozen=True)
class Measures:
    """What is measured."""

    full: Annotated[
        bool,
        typer.Option(
            "--full", help="More contexts, longer ones, 500 resamples, and perplexity: an hour."
        ),
    ] = False
    perplexity: Annotated[
        bool | None,
        typer.Option(
            "--perplexity/--no-perplexity",
            help="Also the perplexity of people's turns (loads the weights); default: with --full.",
        ),
    ] = None
    embedder: Annotated[
        str,
        typer.Option(
            metavar="REPO[@REV]|none",
            help="Encoder of the measures in an embedding space (an 84 MB model at first use).",
        ),
    ] = EMBEDDER
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Who tells turns from people's: URL[#MODEL], REPO_ID, or deploy:REPO_ID.",
        ),
    ] = None
    judge_pairs: Annotated[
        int,
        typer.Option(min=1, help="Pairs of a player, at most; each is shown in both orders."),
    ] = 50
    setting: Annotated[
        list[str],
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="Of the judge, e.g. judge.token_env=KEY."
        ),
    ] = field(default_factory=list)
    budget_usd: Annotated[
        float | None, typer.Option(min=0, help="Stop before the judge has cost more.")
    ] = None
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop before the judge took more tokens.")
    ] = None


@grouped
def asker(
    askers: Askers,
    sample: Sample,
    measures: Measures,
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write data, picture, card section, Hub entries."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be asked, and ask nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """How like people an asker plays: its turns at real contexts, next to its base's, other askers'
    and people's.
    """
    from hubkit.api.evaluations import asker_comparison
    from hubkit.hub import connect

    hub = connect()
    with console.bars(quiet=json) as bar_for:
        progress = bar_for("eval")
        prepared = asker_comparison(
            _comparison(askers, sample, measures), hub=hub, progress=progress
        )
        if dry_run:
            plan = prepared.plan(hub)
            console.data(plan) if json else _show_plan(plan)
            return
        card, files = prepared.run(hub, folder, progress=progress)
    _show(card, files, json=json)


def _comparison(askers: Askers, sample: Sample, measures: Measures) -> AskerComparison:
    from hubkit.api.evaluations import (
        DEPLOYED,
        AskerComparison,
        JudgeChoice,
        addresses,
        deploy_terms,
    )
    from hubkit.recipe import Sampling, Scorecard

    repos, full = [askers.repo, *askers.against], measures.full
    return AskerComparison(
        repos=repos,
        block=Scorecard(
            contexts=sample.conversations or (400 if full else 64),
            openings=(100 if full else 24) if sample.openings is None else sample.openings,
            context_chars=sample.context_chars or (6000 if full else 1500),
            sampling=Sampling(
                temperature=sample.temperature,
                max_tokens=sample.max_tokens or (256 if full else 64),
            ),
            resamples=500 if full else 200,
            embedder=None if measures.embedder == "none" else measures.embedder,
        ),
        data=sample.data,
        system=askers.system,
        speaks_user={
            name: token or None
            for name, _, token in (text.partition("=") for text in askers.speaks_user)
        },
        served_at=addresses(repos, askers.endpoint),
        deploy=deploy_terms(askers.engine, askers.hardware),
        with_base=askers.base,
        perplexity=full if measures.perplexity is None else measures.perplexity,
        judge=JudgeChoice(
            measures.judge.removeprefix(DEPLOYED),
            measures.judge.startswith(DEPLOYED),
            measures.setting,
            measures.budget_usd,
            measures.budget_tokens,
        )
        if measures.judge
        else None,
        judge_pairs=measures.judge_pairs,
        seed=sample.seed,
    )


def _show(card: Scorecard, files: list[Path], *, json: bool) -> None:
    from hubkit.metrics.scorecards import notes, table

    if json:
        console.data(card.to_dict())
        return
    title = f"Askers and people, at {card.settings['contexts']} held-out contexts"
    console.table(title, *table(card))
    hints = [] if files else ["what each measure is, a picture, and every turn: --out FOLDER"]
    for note in (*notes(card), *(f"wrote {file}" for file in files), *hints):
        console.say(note)


def _show_plan(plan: JsonObject) -> None:
    columns = ["name", "model", "base", "served", "requests", "tokens_at_most"]
    data = object_in(plan, "data")
    title = f"What would be asked, on {data['repo_id']} ({data['split']})"
    rows = [[row[column] for column in columns] for row in objects_in(plan, "players")]
    console.table(title, [column.replace("_", " ") for column in columns], rows)
    if plan["judgments"]:
        console.say(f"and the judge, at most {plan['judgments']:,} times")
    show_endpoints(objects_in(plan, "endpoints"))
