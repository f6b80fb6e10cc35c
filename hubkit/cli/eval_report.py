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
        list[Path],
        typer.Argument(
            metavar="FILE…",
            help="Verdicts: hubkit's verdicts-*.jsonl, FastChat's judgments, "
            "AlpacaEval's annotations, inspect-ai's logs, lm-eval's samples.",
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
    from hubkit.cli.eval_chat import exports_of
    from hubkit.evaluation import verdict_report as library
    from hubkit.evaluation.length_control import alpaca_eval_of
    from hubkit.evaluation.verdict_files import read_verdicts, write_verdicts

    exports = exports_of(export)
    own_models = dict(pair.split("=", 1) for pair in kin if "=" in pair)
    result = library.report(files, votes=votes, kin=own_models)
    rates = alpaca_eval_of(files, gamed) if gamed else {}
    for form, path in exports.items():
        write_verdicts(path, [verdicts for file in files for verdicts in read_verdicts(file)], form)
    paths = library.write(result, folder) if folder else []
    if json:
        console.data({**result.to_dict(), "length_controlled_win_rate": rates})
        return
    for title, content in library.result_tables(result).items():
        console.table(title, *content)
    for line in library.notes(result):
        console.line(line)
    for name, rate in rates.items():
        console.line(f"{name}: length-controlled win rate {rate:.1%} (AlpacaEval's method).")
    for path in (*paths, *exports.values()):
        console.say(f"wrote {path}")
