"""``hubkit askers``: the table of every asker that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hubkit.cli import console
from hubkit.cli.options import Json

EXAMPLE = "Example: hubkit askers table --add scorecard/scorecard.json --push askers-measured"


def askers(
    folder: Annotated[Path, typer.Argument(help="Where the table is, or is to be.")],
    evidence: Annotated[
        list[Path],
        typer.Option(
            "--add",
            metavar="FILE",
            help="A scorecard.json of `hubkit eval asker --out`, or a run's results.json.",
        ),
    ] = [],  # noqa: B006 - typer copies it
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="Also commit it to this dataset on the Hub.")
    ] = None,
    json: Json = False,
) -> None:
    """Build the table of askers, next to people: a dataset with its page. Every figure comes from a
    scorecard that is kept with it; those of other contexts, seeds or sampling get a table of their
    own.
    """
    from hubkit.hub import connect
    from hubkit.metrics.scorecards import table
    from hubkit.publishing import asker_table

    added = asker_table.add(folder, evidence)
    protocols = asker_table.build(folder)
    ref = None
    if push:
        hub = connect()
        repo = hub.qualify(push)
        rows = sum(len(protocol.card.rows) for protocol in protocols)
        ref = hub.commit(repo, folder, f"{rows} rows of askers", repo_type="dataset")
    if json:
        figures = [row for protocol in protocols for row in asker_table.rows(protocol)]
        console.data(
            {
                "added": [str(path) for path in added],
                "rows": figures,
                "pushed": ref.to_dict() if ref else None,
            }
        )
        return
    for protocol in protocols:
        console.table(f"protocol {protocol.digest}", *table(protocol.card))
    console.say(f"wrote {folder / asker_table.PAGE} and {folder / asker_table.ROWS}")
    if ref:
        console.say(f"committed to {ref}")
