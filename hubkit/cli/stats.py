"""``hubkit stats`` and ``hubkit diff``: what a dataset of dialogues is like, and what a new version
changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubkit.cli import console
from hubkit.cli.options import Json, grouped

if TYPE_CHECKING:
    from hubkit.api.evaluations import ContextJudge as Judge

Size = Annotated[int, typer.Option("--sample", min=1, help="Dialogues measured of each dataset.")]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", metavar="REPO|PATH", help="Count lengths in its tokens, not in words."
    ),
]


@dataclass(frozen=True)
class Datasets:
    """What is measured, and how."""

    dataset: Annotated[
        str, typer.Argument(metavar="REPO[@REV][:SPLIT]", help="A dataset, or parquet files here.")
    ]
    against: Annotated[
        list[str],
        typer.Option("--against", "-a", metavar="REPO[@REV][:SPLIT]", help="Measure this one too."),
    ] = field(default_factory=list)
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", "-b", metavar="REPO[@REV][:SPLIT]", help="Real people's conversations."
        ),
    ] = None
    tokenizer: Tokenizer = None
    topics: Annotated[
        bool, typer.Option(help="Embed turns to measure topics (an 84 MB model at first use).")
    ] = True
    size: Size = 1000
    seed: Annotated[int, typer.Option(help="Draws the sample.")] = 42

    @property
    def names(self) -> list[str]:
        """All of them, the baseline last."""
        return [self.dataset, *self.against, *([self.baseline] if self.baseline else [])]


@dataclass(frozen=True)
class ContextJudge:
    """Who says which turns need their context."""

    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", metavar="URL", help="Ask this endpoint which turns need their context."
        ),
    ] = None
    judge_model: Annotated[str, typer.Option("--judge-model", help="The model's name there.")] = (
        "tgi"
    )
    judge_profile: Annotated[
        str | None,
        typer.Option(
            "--judge-profile",
            help="Who speaks there: tgi, vllm, sglang, llamacpp, openai, …; default: openai at "
            "https, else tgi.",
        ),
    ] = None
    judge_token_env: Annotated[
        str | None,
        typer.Option("--judge-token-env", metavar="NAME", help="The variable that holds its key."),
    ] = None


@grouped
def stats(
    datasets: Datasets,
    judge: ContextJudge,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write stats.json and plots there.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare dialogues with real people's: turns, lengths, diversity, context, likeness,
    duplicates.
    """
    from hubkit.api.evaluations import StatsOptions, dialogue_stats

    options = StatsOptions(
        datasets.tokenizer, datasets.topics, _judge(judge), datasets.size, datasets.seed
    )
    with console.bars(quiet=json) as bar_for:
        measured = dialogue_stats(
            datasets.names,
            folder,
            baseline=datasets.baseline,
            options=options,
            progress=bar_for("stats"),
        )
    report = measured.report
    result = report.to_dict() | {"revisions": dict(measured.revisions)}
    result |= {"judge": judge.judge_model} if judge.judge else {}
    if json:
        console.data(result)
        return
    console.table("Measures (means; 95 % bootstrap intervals over dialogues)", *report.table())
    console.table("As published", *_published())
    for entry in report.datasets:
        if entry.judged:
            number, gaps = entry.judged["turns"], entry.judged["without_verdict"]
            console.say(
                f"{entry.name}: judged {number:,} turns by {judge.judge_model}, {gaps:,} of them "
                "without a verdict"
            )
        for measure_name, why in entry.missing.items():
            console.say(f"{entry.name}: {report.title(measure_name)}: not measured ({why})")
    for name in report.files:
        console.say(f"wrote {folder}/{name}")


def diff(
    before: Annotated[str, typer.Argument(metavar="REPO@REV[:SPLIT]", help="The older version.")],
    after: Annotated[str, typer.Argument(metavar="REPO@REV[:SPLIT]", help="The newer one.")],
    size: Size = 1000,
    json: Json = False,
) -> None:
    """Compare two versions of a dataset: rows added, dropped and changed; measures side by side."""
    from hubkit.api.evaluations import dataset_changes

    changed = dataset_changes(before, after, size=size)
    changes, report = changed.rows, changed.stats.report
    if json:
        console.data(
            changes.to_dict()
            | {
                "revisions": dict(changed.stats.revisions),
                "measures": report.to_dict()["datasets"],
            }
        )
        return
    rows: list[list[Any]] = [
        [kind, getattr(changes, kind), ", ".join(changes.examples[kind][:3])]
        for kind in changes.examples
    ]
    console.table(
        f"{before} → {after}",
        ["rows", "number", "for example"],
        [*rows, ["same", changes.same, ""]],
    )
    console.table("Measures", *report.table())


def _published() -> tuple[list[str], list[list[str]]]:
    """One row a dataset, its numbers in words: their columns would not fit a terminal."""
    from hubkit.metrics import published

    rows = [
        [
            entry["dataset"],
            ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in entry["values"].items()),
        ]
        for entry in published()["measures"]
    ]
    return ["dataset", "numbers"], rows


def _judge(options: ContextJudge) -> Judge | None:
    """The judge at its address, its key read from the environment, never from the command line."""
    from hubkit.api.evaluations import ContextJudge as Judge

    if options.judge is None:
        return None
    return Judge(
        options.judge,
        options.judge_model,
        options.judge_profile,
        options.judge_token_env,
        "--judge-token-env",
    )
