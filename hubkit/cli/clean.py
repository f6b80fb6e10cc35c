"""``hubkit clean``: any file or dataset of conversations through a recipe's chain, into a folder
here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubkit.cli import console
from hubkit.cli.options import Json, Overrides, Profiles, grouped
from hubkit.errors import SourceError
from hubkit.untrusted import JsonObject

if TYPE_CHECKING:
    from hubkit.data.corpus import CorpusReport
    from hubkit.data.filters import Tally
    from hubkit.recipe import Corpus, Source

_MAX_SHOWN = 20


@dataclass(frozen=True)
class ChainOptions:
    """Whose chain of filters and splits, and what is laid over it."""

    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="Whose chain of filters and splits.")
    ] = "parrot"
    profile: Profiles = field(default_factory=list)
    overrides: Overrides = field(default_factory=list)
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with a tokenizer.json, for filters that count.")
    ] = None
    questions: Annotated[
        list[str],
        typer.Option("--questions", metavar="NAME=FILE", help="Benchmark questions to look for."),
    ] = field(default_factory=list)


@dataclass(frozen=True)
class ReadingOptions:
    """How files that the readers would not know by themselves are read."""

    column: Annotated[
        list[str],
        typer.Option(
            "--column",
            metavar="KIND=NAME",
            help="A column of its own, and its name or path (thread.posts): turns, role, text, "
            "system or person; where each row is one turn, conversation and order.",
        ),
    ] = field(default_factory=list)
    role: Annotated[
        list[str],
        typer.Option(
            "--role",
            metavar="NAME=SEAT",
            help="A role of its own, and whether it is user, assistant, system or tool.",
        ),
    ] = field(default_factory=list)
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of its text files, where that is not UTF-8.")
    ] = None

    def keys(self) -> JsonObject:
        """The keys of a source that the options set. Raises `SourceError`."""
        from pydantic import ValidationError

        from hubkit.recipe import Source

        keys: JsonObject = {}
        for option, entries, key in (
            ("--column", self.column, "columns"),
            ("--role", self.role, "roles"),
        ):
            pairs = [entry.partition("=")[::2] for entry in entries]
            if bad := [entry for entry, pair in zip(entries, pairs, strict=True) if not all(pair)]:
                shape = "turns=NAME, role=NAME, text=NAME, system=NAME or conversation=NAME"
                shape = shape if key == "columns" else "NAME=user, NAME=assistant, NAME=system"
                raise SourceError(f"{option} {bad[0]!r} must look like {shape}")
            if pairs:
                keys[key] = dict(pairs)
        if self.encoding:
            keys["encoding"] = self.encoding
        try:
            source = Source.model_validate({"path": "-", **keys})
        except ValidationError as error:
            about = error.errors()[0]
            value = ".".join(map(str, about["loc"]))
            raise SourceError(f"--column, --role or --encoding: {value}: {about['msg']}") from None
        return {key: getattr(source, key) for key in keys}


@grouped
def clean(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Files, folders, or REPO[@REV] on the Hub."),
    ],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where the dataset goes.")],
    chain: ChainOptions,
    reading: ReadingOptions,
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Write the report there as well.")
    ] = None,
    json: Json = False,
) -> None:
    """Read conversations from anything, clean and split them by a recipe, and say what became of
    every row.
    """
    from hubkit.data import corpus
    from hubkit.data.filters import Context
    from hubkit.recipe import load

    chosen = load(chain.recipe, profiles=chain.profile, overrides=chain.overrides)
    named = [_source(name, chosen.corpus) for name in sources]
    keys = reading.keys()
    inputs = [source.model_copy(update=keys) for _, source in named]
    question_files = _questions(chosen.corpus, chain.questions)
    block = _without_judge(chosen.corpus).model_copy(update={"sources": inputs})
    with console.bars(quiet=json) as bar_for:
        report = corpus.build(
            block,
            [
                corpus.SourceFile(path, source)
                for (path, _), source in zip(named, inputs, strict=True)
            ],
            folder,
            seed=chosen.seed,
            context=Context(chain.tokenizer, question_files),
            few=True,
            progress=bar_for("corpus"),
        )
    if report.splits["train"] == report.kept and block.openings + block.test:
        console.say(
            f"{report.kept:,} rows are too few for {block.openings:,} openings and "
            f"{block.test:,} test rows: all of them are in train. Before a run, lower "
            "corpus.openings and corpus.test, or add sources"
        )
    if report_file:
        report_file.write_bytes((folder / "report.json").read_bytes())
    if json:
        console.data(report.to_dict())
    else:
        recipe_repos = {source.repo_id for source in chosen.corpus.sources if source.repo_id}
        own_data = recipe_repos == {source.repo_id for source in inputs}
        _show(
            report, chain.recipe if own_data else ""
        )  # published numbers are about the recipe's own data


def _source(name: str, block: Corpus) -> tuple[Path, Source]:
    """Find where `name` lies on this machine (a path here, or the snapshot of a dataset repo), and
    what the recipe says about it. Raises `SourceError` for the name of a recipe or a profile.
    """
    from hubkit.recipe import Source, available

    path = Path(name)
    named = [s for s in block.sources if s.path and Path(s.path) == path]
    source = named[0] if named else Source(path=name)
    if path.exists():
        return path, source
    for kind, names in available().items():
        if name in names:
            option = f"--{kind.removesuffix('s')} {name}"
            raise SourceError(
                f"{name} is no file or folder here, but one of the {kind}; name it with {option}"
            )
    if name.count("/") != 1 or name.startswith((".", "/")):
        return path, source
    from hubkit.hub import connect
    from hubkit.pipeline.inputs import require

    repo_id, _, revision = name.partition("@")
    hub = connect()
    named = [s for s in block.sources if s.repo_id == repo_id]
    source = (named[0] if named else Source(repo_id=repo_id)).model_copy(
        update={"revision": revision or "main"}
    )
    return hub.snapshot(
        require(hub, repo_id, repo_type="dataset", revision=source.revision)
    ), source


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
    from hubkit.data.filters import needs

    if "questions" not in needs(block.filters):
        return {}
    pairs = [entry.partition("=") for entry in named]
    if bad := [
        entry for entry, (name, _, path) in zip(named, pairs, strict=True) if not name or not path
    ]:
        raise SourceError(
            f"--questions {bad[0]!r} must look like NAME=FILE, for example mt_bench=question.jsonl"
        )
    files = {name: Path(path) for name, _, path in pairs}
    if not named:
        files = {name: Path(source.path) for name, source in block.questions.items() if source.path}
        for name in sorted(block.questions.keys() - files.keys()):
            console.say(
                f"not looked for: the questions of {name}; give them with --questions {name}=FILE"
            )
    return files


def _show(report: CorpusReport, recipe: str) -> None:
    from hubkit.metrics import step_table

    title = (
        f"{report.rows_read:,} rows read, {report.unreadable:,} unreadable, "
        f"{report.joined:,} joined to a neighbour"
    )
    if unreadable := _tallies(file.unreadable for file in report.files):
        console.table(title, ["unreadable because", "rows", "for example"], unreadable)
    else:
        console.line(title)
    _show_unread(report)
    console.table("Rows left after each step", *step_table(report.to_dict(), recipe))
    dropped = [
        [step.name, *row] for step in report.steps for row in _tallies([step.dropped], examples=3)
    ]
    if dropped:
        console.table("Dropped", ["step", "reason", "rows", "for example"], dropped)
    splits = [[name, f"{rows:,}"] for name, rows in report.splits.items()]
    console.table("Kept", ["split", "rows"], splits)


def _show_unread(report: CorpusReport) -> None:
    """Show what reading changed, what it left out, and what was not looked at."""
    changed = _tallies((file.notes for file in report.files), examples=3)
    if changed:
        columns = ["change", "conversations", "for example"]
        console.table("Changed while reading", columns, changed)
    kinds = {
        "column": "unread_columns",
        "key of turns": "unread_fields",
        "unknown role": "unknown_roles",
        "unknown keys": "unknown_keys",
    }
    unread = [
        [kind, name, f"{number:,}"]
        for kind, field in kinds.items()
        for name, number in _sum(getattr(file, field) for file in report.files)
    ]
    if unread:
        console.table("Text that was not read", ["kind", "name", "times"], unread)
    passed = report.passed_over | {
        n: r for file in report.files for n, r in file.passed_over.items()
    }
    rows = [[name, reason] for name, reason in list(passed.items())[:_MAX_SHOWN]]
    if len(passed) > _MAX_SHOWN:
        rows.append([f"and {len(passed) - _MAX_SHOWN} more", "see report.json"])
    if rows:
        console.table("Not looked at", ["file or value", "because"], rows)


def _tallies(tallies: Iterable[Mapping[str, Tally]], examples: int = 5) -> list[list[str]]:
    """Rows of reason, count and examples, summed over `tallies`."""
    from hubkit.data.filters import Tally

    total: dict[str, Tally] = {}
    for counts in tallies:
        for reason, tally in counts.items():
            other = total.get(reason)
            total[reason] = (
                Tally(other.count + tally.count, [*other.examples, *tally.examples])
                if other
                else tally
            )
    return [
        [reason, f"{tally.count:,}", ", ".join(tally.examples[:examples])]
        for reason, tally in total.items()
    ]


def _sum(counts: Iterable[Mapping[str, int]]) -> list[tuple[str, int]]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total.most_common(_MAX_SHOWN)
