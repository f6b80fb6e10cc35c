"""``hubkit clean``: any file or dataset of conversations through a recipe's chain, into a folder
here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubkit.cli import console
from hubkit.cli.run import Json, Overrides, Profiles
from hubkit.errors import SourceError

if TYPE_CHECKING:
    from hubkit.data.corpus import CorpusReport
    from hubkit.recipe import Corpus


def clean(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Files, folders, or REPO[@REV] on the Hub."),
    ],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where the dataset goes.")],
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Whose chain of filters and splits.")
    ] = "parrot",
    profile: Profiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with a tokenizer.json, for filters that count.")
    ] = None,
    questions: Annotated[
        list[str],
        typer.Option("--questions", metavar="NAME=FILE", help="Benchmark questions to look for."),
    ] = [],  # noqa: B006
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write the report there as well.")
    ] = None,
    json: Json = False,
) -> None:
    """Read conversations from anything, clean and split them by a recipe, and say what became of
    every row.
    """
    from hubkit.data import corpus
    from hubkit.recipe import load

    chosen = load(recipe, profiles=profile, overrides=overrides)
    files = [_local(name) for name in sources]
    asked = _questions(chosen.corpus, questions)
    block = _without_judge(chosen.corpus)
    with console.bars(quiet=json) as bar_for:
        report = corpus.build(
            block,
            files,
            folder,
            seed=chosen.seed,
            tokenizer=tokenizer,
            questions=asked,
            few=True,
            progress=bar_for("corpus"),
        )
    if (
        report.kept
        and report.splits["train"] == report.kept
        and chosen.corpus.openings + chosen.corpus.test
    ):
        console.say(
            f"{report.kept:,} rows are too few for {chosen.corpus.openings:,} openings and {chosen.corpus.test:,} test "
            "rows: all of them stand in train. Before a run, lower corpus.openings and corpus.test, or add sources"
        )
    if report_file:
        report_file.write_bytes((folder / "report.json").read_bytes())
    if json:
        console.data(report.to_dict())
    else:
        _show(report, recipe)


def _local(name: str) -> Path:
    """A path here, or the snapshot of a dataset repo. Raises `SourceError` for the name of a recipe
    or a profile.
    """
    from hubkit.recipe import available

    path = Path(name)
    if path.exists():
        return path
    for kind, names in available().items():
        if name in names:
            option = f"--{kind.removesuffix('s')} {name}"
            raise SourceError(
                f"{name} is no file or folder here, but one of the {kind}; name it with {option}"
            )
    if name.count("/") != 1 or name.startswith((".", "/")):
        return path
    from hubkit.hub import connect
    from hubkit.pipeline.inputs import require

    repo_id, _, revision = name.partition("@")
    hub = connect()
    return hub.snapshot(require(hub, repo_id, repo_type="dataset", revision=revision or "main"))


def _without_judge(block: Corpus) -> Corpus:
    """`block` as it is cleaned here, where no judge is asked; says so."""
    if block.intents is None or block.intents.judging is None:
        return block
    console.say("no intents are written: the judge is asked by the stage, `hubkit corpus`")
    return block.model_copy(update={"intents": None})


def _questions(block: Corpus, named: list[str]) -> dict[str, Path]:
    """Files of benchmark questions: those named, else the recipe's that are here; says what is not
    looked for.
    """
    from hubkit.data.filters import needs_questions

    if not needs_questions(block.filters):
        return {}
    pairs = [entry.partition("=") for entry in named]
    if bad := [
        entry for entry, (name, _, path) in zip(named, pairs, strict=True) if not name or not path
    ]:
        raise SourceError(
            f"--questions {bad[0]!r} must look like NAME=FILE, for example mt_bench=question.jsonl"
        )
    found = {name: Path(path) for name, _, path in pairs}
    if not named:
        found = {name: Path(source.path) for name, source in block.questions.items() if source.path}
        for name in sorted(block.questions.keys() - found.keys()):
            console.say(
                f"not looked for: the questions of {name}; give them with --questions {name}=FILE"
            )
    return found


def _show(report: CorpusReport, recipe: str) -> None:
    from hubkit.metrics import step_table

    unread = [(reason, tally) for file in report.files for reason, tally in file.unreadable.items()]
    console.table(
        f"{report.rows_read:,} rows read, {report.unreadable:,} unreadable, {report.joined:,} joined to a neighbour",
        ["unreadable because", "rows", "for example"],
        [[reason, f"{tally.count:,}", ", ".join(tally.examples)] for reason, tally in unread],
    )
    console.table("Rows left after each step", *step_table(report.to_dict(), recipe))
    dropped = [
        (step.name, reason, tally)
        for step in report.steps
        for reason, tally in step.dropped.items()
    ]
    console.table(
        "Dropped",
        ["step", "reason", "rows", "for example"],
        [
            [name, reason, f"{tally.count:,}", ", ".join(tally.examples[:3])]
            for name, reason, tally in dropped
        ],
    )
    console.table(
        "Kept", ["split", "rows"], [[name, f"{rows:,}"] for name, rows in report.splits.items()]
    )
