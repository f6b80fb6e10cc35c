"""``hubkit eval asker``: a scorecard of askers compared with people, on held-out real conversations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubkit.cli import console
from hubkit.cli import dataset_args as names
from hubkit.cli.eval_chat import Engine, Place
from hubkit.cli.model_args import HARDWARE, show_endpoints, terms
from hubkit.cli.options import Json

if TYPE_CHECKING:
    from hubkit.hub import Hub
    from hubkit.metrics.scorecards import Scorecard
    from hubkit.pipeline.askers import AskerSpec
    from hubkit.progress import Progress
    from hubkit.recipe import Deploy

DEPLOY = "deploy"
EXAMPLE = "Example: hubkit eval asker parrot-ask --against usergpt --out scorecard"

Against = Annotated[
    list[str],
    typer.Option(
        "--against", "-a", metavar="REPO[@REV]", help="Another asker, on the same contexts."
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        help="Tells repos that no asker stage made to play; default: as the first asker is told."
    ),
]
Endpoints = Annotated[
    list[str],
    typer.Option(
        "--endpoint",
        metavar="REPO=URL",
        help="Served there, not by our engine; REPO=deploy: by an endpoint made for it. `base=…`: its base.",
    ),
]
Folder = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write data, picture, card section, Hub entries.")
]


def asker(
    repo: Annotated[str, typer.Argument(metavar="REPO[@REV]", help="The asker.")],
    against: Against = [],  # noqa: B006 - typer copies it
    data: Annotated[
        str, typer.Option("--data", metavar="REPO[@REV][:SPLIT]", help="Held-out conversations.")
    ] = "",
    conversations: Annotated[
        int, typer.Option("--conversations", "-n", min=2, help="Contexts to go on at.")
    ] = 100,
    openings: Annotated[int, typer.Option(min=0, help="First turns to ask for.")] = 50,
    base: Annotated[
        bool, typer.Option("--base/--no-base", help="Also its base, only told to play the user.")
    ] = True,
    perplexity: Annotated[
        bool, typer.Option(help="Also the perplexity of people's turns (loads the weights).")
    ] = True,
    system: System = None,
    endpoint: Endpoints = [],  # noqa: B006
    engine: Engine = "tgi",
    hardware: Place = HARDWARE,
    temperature: Annotated[float, typer.Option(min=0, help="Of both players' sampling.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens a turn, at most.")] = 256,
    context_chars: Annotated[
        int, typer.Option(min=100, help="Characters of a context, at most.")
    ] = 6000,
    seed: Annotated[int, typer.Option(help="Draws contexts and turns.")] = 42,
    folder: Folder = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be asked, and ask nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """How like people an asker plays: its turns at real contexts, next to its base's, other askers'
    and people.
    """
    from hubkit.hub import connect
    from hubkit.pipeline import askers
    from hubkit.recipe import Evals, Sampling, Scorecard

    hub = connect()
    with console.bars(quiet=json) as bar_for:
        progress = bar_for("eval")
        urls = _urls([repo, *against], endpoint)
        on = terms(engine, hardware)
        found = _found(hub, [repo, *against], system, progress)
        found = [_reached(one, urls.get(one.name), on) for one in found]
        held_out, source = _held_out(hub, data, found)
        players = _with_base(found, urls.get("base"), on) if base else found
        block = Scorecard(
            contexts=conversations,
            openings=openings,
            context_chars=context_chars,
            sampling=Sampling(temperature=temperature, max_tokens=max_tokens),
        )
        if dry_run:
            plan = {
                "data": source,
                "players": askers.plan(block, players, held_out, seed=seed),
                "endpoints": askers.endpoints(hub, players),
            }
            console.data(plan) if json else _show_plan(plan)
            return
        losses = Evals(conversations=conversations) if perplexity else None
        work = askers.workplace(block, players, held_out, seed)
        card = askers.compare(
            hub,
            block,
            players,
            held_out,
            seed=seed,
            losses=losses,
            source=source,
            work=work,
            progress=progress,
        )
    files = _write(folder, card, source, work, found[0].name) if folder else []
    _clear(work)
    _show(card, files, json=json)


def _show(card: Scorecard, files: list[Any], *, json: bool) -> None:
    if json:
        console.data(card.to_dict())
        return
    console.table(
        f"Askers and people, at {card.settings['contexts']} held-out contexts", *_table(card)
    )
    hints = [] if files else ["what each measure is, a picture, and every turn: --out FOLDER"]
    for note in (*_notes(card), *(f"wrote {file}" for file in files), *hints):
        console.say(note)


def _urls(repos: list[str], pairs: list[str]) -> dict[str, list[str]]:
    """Repo, or ``base``, → the addresses that were given for it."""
    from hubkit.errors import RecipeError

    urls: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, url = pair.partition("=")
        if not equals or name not in (*repos, "base"):
            raise RecipeError(
                f"--endpoint {pair!r} must be NAME=URL, with a NAME out of {', '.join([*repos, 'base'])}"
            )
        urls.setdefault(name, []).append(url)
    return urls


def _found(hub: Hub, repos: list[str], system: str | None, progress: Progress) -> list[AskerSpec]:
    """The askers; one that no asker stage made is told to play by `system`, else by the first one's
    system message.
    """
    from hubkit.pipeline import askers

    first = askers.find(hub, repos[0], system=system, progress=progress)
    system_message = system or first.system
    return [
        first,
        *(askers.find(hub, name, system=system_message, progress=progress) for name in repos[1:]),
    ]


def _reached(asker: AskerSpec, urls: list[str] | None, terms: Deploy) -> AskerSpec:
    """`asker` where ``--endpoint`` says: at these addresses, or at an endpoint on these terms."""
    from dataclasses import replace

    from hubkit.serving import ModelSpec, ServedModel

    if not urls:
        return asker
    if urls == [DEPLOY]:
        return replace(asker, model=ModelSpec(asker.ref, asker.base, terms))
    return replace(asker, model=ModelSpec(ServedModel.at(*urls)))


def _with_base(
    askers_found: list[AskerSpec], urls: list[str] | None, terms: Deploy
) -> list[AskerSpec]:
    from hubkit.pipeline import askers

    players = askers.with_base(askers_found)
    return [
        *players[: len(askers_found)],
        *(_reached(base, urls, terms) for base in players[len(askers_found) :]),
    ]


def _held_out(
    hub: Hub, name: str, askers_found: list[AskerSpec]
) -> tuple[list[Path], dict[str, Any]]:
    """The parquet files of the held-out conversations, and what they are."""
    from hubkit.errors import SourceError

    if name:
        located = names.find(name, hub, split="test")
        repo, _, split = name.partition(":")
        return located.files, {
            "repo_id": repo.partition("@")[0],
            "revision": located.revision,
            "split": split or "test",
        }
    ref = next((asker.data for asker in askers_found if asker.data), None)
    if ref is None:
        raise SourceError(
            f"{askers_found[0].name} does not say what it was held out from; give conversations with --data REPO:SPLIT"
        )
    return names.find(f"{ref.repo_id}@{ref.revision}:test", hub).files, {
        **ref.to_dict(),
        "split": "test",
    }


def _show_plan(plan: dict[str, Any]) -> None:
    columns = ["name", "model", "base", "served", "requests", "tokens_at_most"]
    title = f"What would be asked, on {plan['data']['repo_id']} ({plan['data']['split']})"
    rows = [[row[column] for column in columns] for row in plan["players"]]
    console.table(title, [column.replace("_", " ") for column in columns], rows)
    show_endpoints(plan["endpoints"])


def _table(card: Scorecard) -> tuple[list[str], list[list[str]]]:
    from hubkit.metrics.scorecards import table

    return table(card)


def _notes(card: Scorecard) -> list[str]:
    from hubkit.metrics.scorecards import notes

    return notes(card)


def _write(
    folder: Path, card: Scorecard, source: dict[str, Any], work: Path, player: str
) -> list[Path]:
    """The result in every form: data, picture, card section, the Hub's entries for `player`, the
    turns themselves.
    """
    import json
    import shutil

    from hubkit.data.parquet import disk_errors
    from hubkit.metrics.scorecards import picture
    from hubkit.publishing import scorecard as shown
    from hubkit.publishing.card_data import Input

    data = Input("held-out", source["repo_id"], "dataset", source["revision"] or "")
    contents = {
        "scorecard.json": (
            json.dumps(card.to_dict(), indent=1, ensure_ascii=False) + "\n"
        ).encode(),
        shown.PICTURE: picture(card),
        "scorecard.md": shown.section(card).encode(),
        shown.ENTRIES: shown.entries(card, data, player).encode(),
        "model-index.yaml": shown.model_index_yaml(card, data, player).encode(),
    }
    with disk_errors(folder):
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        shutil.copyfile(work / "turns.jsonl", folder / "turns.jsonl")
    return [folder / name for name in (*contents, "turns.jsonl")]


def _clear(work: Path) -> None:
    """What was unfinished is finished."""
    import shutil

    shutil.rmtree(work, ignore_errors=True)
