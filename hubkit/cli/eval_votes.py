"""``hubkit eval votes``: what visitors of the Spaces chose."""

from __future__ import annotations

from typing import Annotated

import typer

from hubkit.cli import console
from hubkit.cli.options import Json

EXAMPLE = "Example: hubkit eval votes me/parrot-votes"


def votes(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="REPO[@REV]|FILE…", help="A dataset of votes (its votes/*.jsonl), or files."
        ),
    ],
    seconds: Annotated[
        float, typer.Option(min=0, help="A visitor whose median vote took less does not count.")
    ] = 2.0,
    one_sided: Annotated[
        int, typer.Option(min=2, help="Nor one with so many choices, all of one side.")
    ] = 8,
    seed: Annotated[int, typer.Option(help="Draws visitors for the intervals.")] = 0,
    json: Json = False,
) -> None:
    """Report people's votes: win rates and Bradley-Terry strengths, with intervals over visitors,
    and the share that was screened out.
    """
    from hubkit.api.evaluations import vote_report
    from hubkit.evaluation import votes as library

    screen = library.Screen(seconds=seconds, one_sided=one_sided)
    result = vote_report(source, screen=screen, seed=seed)
    if json:
        console.data(result.to_dict())
        return
    for title, content in library.tables(result).items():
        console.table(title, *content)
    for line in library.notes(result):
        console.line(line)
