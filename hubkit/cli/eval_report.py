"""``hubkit eval report``: tables, data, a plot and a card section from verdicts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hubkit.cli import console
from hubkit.cli.options import Json

EXAMPLE = "Example: hubkit eval report gpt-4_single.jsonl annotations.json --out report"


def report(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE…",
            help="Verdicts: hubkit's verdicts-*.jsonl, FastChat's judgments, "
            "AlpacaEval's annotations, inspect-ai's logs, lm-eval's samples; or a dataset with "
            "verdicts-*.jsonl.",
        ),
    ],
    votes: Annotated[
        Path | None, typer.Option(help="People's votes on pairs, to hold the judges against.")
    ] = None,
    gamed: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="AlpacaEval's df_gamed.csv: also its length-controlled win rate of annotations.",
        ),
    ] = None,
    kin: Annotated[
        list[str],
        typer.Option("--own", metavar="JUDGE=MODEL", help="Which model a judge is."),
    ] = [],  # noqa: B006 - typer copies it
    export: Annotated[
        list[str],
        typer.Option(
            metavar="FORM=FILE",
            help="Write the verdicts as fastchat, alpaca_eval, lm_eval or hubkit.",
        ),
    ] = [],  # noqa: B006
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write report.json, report.md and report.png."),
    ] = None,
    json: Json = False,
) -> None:
    """Report what verdicts say, whoever asked for them: results with intervals, and how far each
    judge can be believed.
    """
    from hubkit.api import evaluations
    from hubkit.cli.eval_chat import exports_of
    from hubkit.evaluation.verdict_report import notes, result_tables

    exports = exports_of(export)
    result = evaluations.verdict_report(
        files,
        human=votes,
        gamed=gamed,
        own_models=dict(pair.split("=", 1) for pair in kin if "=" in pair),
        exports=exports,
    )
    paths = evaluations.write_verdict_report(result, folder) if folder else []
    if json:
        console.data(result.to_dict())
        return
    for title, content in result_tables(result).items():
        console.table(title, *content)
    for line in notes(result):
        console.line(line)
    for path in (*paths, *exports.values()):
        console.say(f"wrote {path}")
