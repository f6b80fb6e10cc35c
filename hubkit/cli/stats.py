"""``hubkit stats`` and ``hubkit diff``: what a dataset of dialogues is like, and what a new version
changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubkit.cli import console
from hubkit.cli import dataset_args as names
from hubkit.cli.options import Json, grouped

if TYPE_CHECKING:
    from hubkit.hub import Hub
    from hubkit.metrics import Judge
    from hubkit.progress import Progress

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
    from hubkit.metrics import stats as measure
    from hubkit.pipeline.inputs import encoder

    hub = _hub(datasets.names)
    located = [names.find(name, hub) for name in datasets.names]
    tokenizer = datasets.tokenizer
    with console.bars(quiet=json) as bar_for:
        progress = bar_for("stats")
        report = measure(
            {entry.name: entry.files for entry in located},
            folder,
            baseline=datasets.baseline,
            tokenizer=_tokenizer(hub, tokenizer, progress) if tokenizer else None,
            judge=_judge(judge, progress) if judge.judge else None,
            embedder=encoder(hub or _connect(), progress=progress) if datasets.topics else None,
            size=datasets.size,
            seed=datasets.seed,
            progress=progress,
        )
    result = report.to_dict() | {"revisions": {entry.name: entry.revision for entry in located}}
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
            console.say(f"{entry.name}: no {measure_name} ({why})")
    for name in report.files:
        console.say(f"wrote {folder}/{name}")


def diff(
    before: Annotated[str, typer.Argument(metavar="REPO@REV[:SPLIT]", help="The older version.")],
    after: Annotated[str, typer.Argument(metavar="REPO@REV[:SPLIT]", help="The newer one.")],
    size: Size = 1000,
    json: Json = False,
) -> None:
    """Compare two versions of a dataset: rows added, dropped and changed; measures side by side."""
    from hubkit.metrics import diff as compare
    from hubkit.metrics import stats as measure

    hub = _hub([before, after])
    old, new = names.find(before, hub), names.find(after, hub)
    changes = compare(old.files, new.files)
    report = measure(
        {before: old.files, after: new.files} if before != after else {before: old.files}, size=size
    )
    if json:
        revisions = {before: old.revision, after: new.revision}
        console.data(
            changes.to_dict() | {"revisions": revisions, "measures": report.to_dict()["datasets"]}
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


def _hub(sources: list[str]) -> Hub | None:
    return _connect() if names.needs_hub(sources) else None


def _connect() -> Hub:
    from hubkit.hub import connect

    return connect()


def _judge(options: ContextJudge, progress: Progress) -> Judge:
    """The judge at its address, its key read from the environment, never from the command line."""
    from hubkit.evaluation.chat import dialect_of
    from hubkit.hub.places import judge_replies
    from hubkit.judging import PromptedJudge, context_judge, question_prompts
    from hubkit.recipe import judging
    from hubkit.serving import ServedModel
    from hubkit.serving.client import key_in

    url, model = options.judge or "", options.judge_model
    profile, token_env = options.judge_profile or dialect_of(url), options.judge_token_env
    seat = {
        "repo": url,
        "endpoints": [url],
        "profile": profile,
        "model": model,
        "sampling": {"temperature": 0.0},
    }
    judge = PromptedJudge(
        judging({"judge": seat, "in_flight": 16, "patience_s": 60.0}),
        ServedModel((url,), profile, model, key_in(token_env, said_by="--judge-token-env")),
        question_prompts(),
        "context-v1",
        identity=f"{url} {model}",
        run="stats",
        folder=judge_replies(),
    )
    return context_judge(judge, progress)


def _tokenizer(hub: Hub | None, name: str, progress: Progress) -> Path:
    """A tokenizer's folder here, or its snapshot; on the embedded Hub, known models are
    imported.
    """
    from hubkit.pipeline.inputs import require

    if Path(name).exists():
        return Path(name)
    hub = hub or _connect()
    return hub.snapshot(require(hub, name, progress=progress), allow_patterns=["tokenizer.json"])
