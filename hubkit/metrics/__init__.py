"""How dialogues compare with what people say: lengths, diversity, context, likeness, duplicates,
with their sources.

Takes parquet files with a ``messages`` column, one dataset or several next to a baseline of real
conversations; gives numbers with intervals, ``stats.json`` and plots. Every measure carries its
formula and where it comes from (`definitions`); the papers' own numbers (`published`) are shown
as published."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hubkit.conversation import Message
from hubkit.data.parquet import disk_errors
from hubkit.metrics import plots
from hubkit.metrics.dataset_diff import Difference, diff
from hubkit.metrics.definitions import (
    METRICS,
    Metric,
    definitions,
    definitions_with_plugins,
    published,
    step_table,
)
from hubkit.metrics.human_likeness import FEWEST, available, human_likeness
from hubkit.metrics.lexical import (
    distinct,
    leans_on_context,
    mtld,
    mtld_released,
    repeated_share,
    self_rouge,
    shuffled,
    token_counter,
    words,
)
from hubkit.metrics.sampling import Dialogue, Sample, sample
from hubkit.metrics.topics import (
    cluster_entropy,
    embed,
    mean_cosine,
    nearest_distance,
    plane,
    shifts,
)
from hubkit.progress import Progress, part, silent
from hubkit.statistics import Bootstrap, Number
from hubkit.tokenization import load_fast_tokenizer
from hubkit.untrusted import JsonObject

if TYPE_CHECKING:
    from hubkit.metrics.topics import Matrix

__all__ = [
    "METRICS",
    "Difference",
    "Helpers",
    "Judge",
    "Measured",
    "Metric",
    "StatsReport",
    "Value",
    "definitions",
    "diff",
    "plots",
    "published",
    "stats",
    "step_table",
]

Judge = Callable[[Sequence[Sequence[Message]]], Sequence[bool | None]]
"""Says of conversations that end in a human turn whether that turn needs its context; None where it
cannot tell.
"""


@dataclass(frozen=True, slots=True)
class Value:
    """One number: `n` dialogues or turns it rests on, and a 95 % bootstrap interval over dialogues
    where it has one.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None


@dataclass
class Measured:
    """Everything measured of one dataset: measure → `Value`; a measure that could not be taken is
    in `missing`, why.

    `judged` counts the ``turns`` that a judge was asked about and those ``without_verdict``.
    """

    name: str
    dialogues: int
    sampled: int
    values: dict[str, Value] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    human_turns: dict[int, int] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)

    def record(
        self, measure: str, value: float | None, n: int, why: str = "too little text"
    ) -> None:
        """Note a single number, or why there is none."""
        if value is None or n == 0:
            self.missing[measure] = why
        else:
            self.values[measure] = Value(float(value), n)

    def record_mean(self, measure: str, values: Sequence[float | None], seed: int) -> None:
        """Note the mean of `values`, one a dialogue, with its interval; None are left out."""
        present = [value for value in values if value is not None]
        if not present:
            self.missing[measure] = "no dialogue is long enough"
            return
        self.record_number(measure, Bootstrap(1000, seed=seed).mean_of(present))

    def record_number(self, measure: str, number: Number, why: str = "too little text") -> None:
        """Note an estimate with its interval, or why there is none."""
        if number.value is None:
            self.missing[measure] = why
        else:
            self.values[measure] = Value(float(number.value), number.n, number.low, number.high)


@dataclass
class StatsReport:
    """All datasets measured alike, the baseline's name, the unit of lengths, and the files
    written.
    """

    datasets: list[Measured]
    baseline: str | None
    unit: str
    seed: int
    files: list[str] = field(default_factory=list)

    def to_dict(self) -> JsonObject:
        """As ``stats.json`` holds it, with every measure's definition and the published numbers."""
        used = {name for dataset in self.datasets for name in (*dataset.values, *dataset.missing)}
        return asdict(self) | {
            "definitions": {
                name: asdict(entry)
                for name, entry in definitions_with_plugins().items()
                if name in used
            },
            "published": published()["measures"],
            "published_caution": published()["caution"],
        }

    def title(self, measure: str) -> str:
        """What a reader calls the measure of that name."""
        definition = definitions_with_plugins().get(measure)
        return definition.title.replace("{unit}", self.unit) if definition else measure

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names and rows as text: measures down, datasets across, the baseline last."""
        ordered = sorted(self.datasets, key=lambda dataset: dataset.name == self.baseline)
        columns = [
            "measure",
            *(d.name + (" (baseline)" if d.name == self.baseline else "") for d in ordered),
        ]
        rows = [["dialogues", *(f"{d.dialogues:,}" for d in ordered)]]
        rows.append(["of them measured", *(f"{d.sampled:,}" for d in ordered)])
        for name, definition in definitions_with_plugins().items():
            if any(name in d.values for d in ordered):
                rows.append(
                    [
                        self.title(name),
                        *(_cell(d.values.get(name), definition.digits) for d in ordered),
                    ]
                )
        return columns, rows


def _cell(value: Value | None, digits: int) -> str:
    if value is None:
        return "–"
    text = f"{value.value:.{digits}f}"
    return (
        text
        if value.low is None or value.high is None
        else f"{text} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    )


@dataclass(frozen=True)
class Helpers:
    """What measures need besides dialogues.

    Args:
        tokenizer: A folder with a ``tokenizer.json``, or that file; without it lengths are in
            words.
        embedder: A folder with an encoder; without it topics are not measured.
        judge: Says whether turns need their context; without it only the heuristic is shown.
    """

    tokenizer: Path | None = None
    embedder: Path | None = None
    judge: Judge | None = None


def stats(
    datasets: Mapping[str, Sequence[Path]],
    out: Path | None = None,
    *,
    baseline: str | None = None,
    helpers: Helpers | None = None,
    size: int = 1000,
    seed: int = 42,
    progress: Progress = silent,
) -> StatsReport:
    """Measure every dataset (name → parquet files) alike, on `size` dialogues each; write
    ``stats.json`` and plots.

    `baseline` names the one of real people; human likeness is measured against it. Embedding and
    judging read at most 1,000 follow-up turns of a dataset. Raises `SourceError`."""
    helpers = helpers or Helpers()
    tokenizer = load_fast_tokenizer(helpers.tokenizer) if helpers.tokenizer else None
    counter = token_counter(tokenizer)
    samples = {name: sample(name, files, size=size, seed=seed) for name, files in datasets.items()}
    real = samples.get(baseline) if baseline else None
    usable = [available(dataset.dialogues) for dataset in samples.values()]
    alike = min((turns for turns in usable if turns >= FEWEST[0]), default=None)
    measured: list[Measured] = []
    sizes: dict[str, list[int]] = {}
    vectors: dict[str, Matrix] = {}
    for at, (name, dataset) in enumerate(samples.items()):
        progress(at, len(samples), f"datasets · {name}")
        result = Measured(name, dataset.total, len(dataset.dialogues))
        sizes[name] = _lengths(result, dataset, counter, seed)
        _words(result, dataset, seed)
        _context(result, dataset, helpers.judge, seed)
        if helpers.embedder:
            dataset_progress = part(progress, at, len(samples), name, "datasets")
            vectors[name] = _topics(
                result, dataset, helpers.embedder, seed, progress=dataset_progress
            )
        _likeness(result, dataset, real, alike, seed)
        _plugins(result, dataset, seed)
        measured.append(result)
    progress(len(samples), len(samples), "datasets measured")
    unit = "tokens" if helpers.tokenizer else "words"
    report = StatsReport(measured, baseline, unit, seed)
    if out:
        _write(report, out, sizes, vectors)
    return report


def _lengths(
    result: Measured, dataset: Sample, counter: Callable[[list[str]], list[int]], seed: int
) -> list[int]:
    human, answers, totals, all_human = [], [], [], []
    for dialogue in dataset.dialogues:
        counts = counter([m["content"] for m in dialogue.messages])
        user_counts = [
            n for n, m in zip(counts, dialogue.messages, strict=True) if m["role"] == "user"
        ]
        answer_counts = [
            n for n, m in zip(counts, dialogue.messages, strict=True) if m["role"] == "assistant"
        ]
        human.append(fmean(user_counts))
        answers.append(fmean(answer_counts) if answer_counts else None)
        totals.append(float(sum(counts)))
        all_human += user_counts
    pooled = sum(totals) / max(sum(len(dialogue.messages) for dialogue in dataset.dialogues), 1)
    result.record("tokens_per_turn", pooled, len(totals))
    turns = [float(len(dialogue.human)) for dialogue in dataset.dialogues]
    result.human_turns = dict(sorted(Counter(map(int, turns)).items()))
    result.record_mean("human_turns", turns, seed)
    result.record_mean("tokens_per_human_turn", human, seed)
    result.record_mean("tokens_per_answer", answers, seed)
    result.record_mean("tokens_per_dialogue", totals, seed)
    return all_human


def _words(result: Measured, dataset: Sample, seed: int) -> None:
    human = [turn for dialogue in dataset.dialogues for turn in dialogue.followups]
    mixed = shuffled(human, seed)
    per_dialogue = [_mean_mtld(dialogue.followups) for dialogue in dataset.dialogues]
    result.record_mean("mtld", per_dialogue, seed)
    every = [turn for dialogue in dataset.dialogues for turn in dialogue.human]
    released = [value for turn in every if (value := mtld_released(turn)) is not None]
    result.record("mtld_released", fmean(released) if released else None, len(released))
    result.record("distinct_1", distinct(mixed, 1), len(human))
    result.record("distinct_2", distinct(mixed, 2), len(human))
    result.record_mean(
        "self_rouge", [self_rouge(dialogue.human) for dialogue in dataset.dialogues], seed
    )
    result.record("repeated_turns", repeated_share(human), len(human))
    result.record("near_duplicates", _near_duplicates(dataset.dialogues), len(dataset.dialogues))


def _mean_mtld(turns: Sequence[str]) -> float | None:
    values = [value for turn in turns if (value := mtld(words(turn))) is not None]
    return fmean(values) if values else None


def _near_duplicates(dialogues: Sequence[Dialogue]) -> float:
    from hubkit.conversation import Conversation
    from hubkit.data.filters import FILTERS

    judge = FILTERS["near_duplicates"](seat="user")
    return fmean(judge(Conversation(d.id, list(d.messages))) is not None for d in dialogues)


def _context(result: Measured, dataset: Sample, judge: Judge | None, seed: int) -> None:
    leaning = [
        [leans_on_context(turn) for turn in dialogue.followups] for dialogue in dataset.dialogues
    ]
    result.record_mean(
        "context_heuristic_per_dialogue", [float(sum(flags)) for flags in leaning], seed
    )
    result.record_mean(
        "context_heuristic_per_turn", [fmean(flags) if flags else None for flags in leaning], seed
    )
    if judge is None:
        return
    conversations, budget = [], 1000
    for dialogue in dataset.dialogues:
        ends = [i for i, m in enumerate(dialogue.messages) if m["role"] == "user"][1:]
        if budget <= 0:
            break
        budget -= len(ends)
        conversations.append([dialogue.messages[: end + 1] for end in ends])
    verdicts = iter(judge([conversation for turns in conversations for conversation in turns]))
    by_dialogue = [[next(verdicts) for _ in turns] for turns in conversations]
    gaps = sum(flags.count(None) for flags in by_dialogue)
    result.judged = {"turns": sum(map(len, by_dialogue)), "without_verdict": gaps}
    counts = [None if None in flags else float(sum(map(bool, flags))) for flags in by_dialogue]
    result.record_mean("context_judged_per_dialogue", counts, seed)


def _topics(
    result: Measured,
    dataset: Sample,
    embedder: Path,
    seed: int,
    budget: int = 1000,
    progress: Progress = silent,
) -> Matrix:
    """Embed the human turns of as many dialogues as the budget of follow-up turns allows; openings
    only for shifts.
    """
    chosen: list[Dialogue] = []
    for dialogue in dataset.dialogues:
        if sum(len(d.followups) for d in chosen) >= budget:
            break
        chosen.append(dialogue)
    vectors = embed(
        [turn for dialogue in chosen for turn in dialogue.human], embedder, progress=progress
    )
    edges = [0, *accumulate(len(dialogue.human) for dialogue in chosen)]
    per_dialogue = [vectors[start:end] for start, end in pairwise(edges)]
    result.record_mean(
        "topic_shifts",
        [float(shifts(dataset)) if len(dataset) > 1 else None for dataset in per_dialogue],
        seed,
    )
    import numpy as np

    later = [
        rows[len(d.human) - len(d.followups) :]
        for rows, d in zip(per_dialogue, chosen, strict=True)
    ]
    followups: Matrix = np.concatenate(later)[:budget]
    result.record("mean_cosine", mean_cosine(followups), len(followups))
    result.record("nearest_distance", nearest_distance(followups), len(followups))
    result.record(
        "cluster_entropy",
        cluster_entropy(followups, seed=seed),
        len(followups),
        "fewer than 200 follow-up turns",
    )
    return followups


def _likeness(
    result: Measured, dataset: Sample, real: Sample | None, turns: int | None, seed: int
) -> None:
    """Against `real`; for `real` itself, one half of its dialogues against the other: what chance
    looks like.
    """
    if real is None:
        return
    half = len(dataset.dialogues) // 2
    sides = (
        (dataset.dialogues[:half], dataset.dialogues[half:])
        if dataset is real
        else (dataset.dialogues, real.dialogues)
    )
    likeness = human_likeness(*sides, seed=seed, turns=turns)
    if likeness is None:
        few, dialogues = FEWEST
        result.missing["likeness_auc"] = (
            f"fewer than {few} follow-up turns or {dialogues} dialogues on a side"
        )
    else:
        result.values["likeness_auc"] = Value(
            likeness.auc, likeness.turns, likeness.low, likeness.high
        )


def _plugins(result: Measured, dataset: Sample, seed: int) -> None:
    for name, metric in METRICS.items():
        result.record_mean(name, [metric(dialogue) for dialogue in dataset.dialogues], seed)


def _write(
    report: StatsReport, out: Path, sizes: Mapping[str, list[int]], vectors: Mapping[str, Matrix]
) -> None:
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        plots.turns(out / "turns.png", {d.name: d.human_turns for d in report.datasets})
        plots.lengths(out / "lengths.png", sizes, report.unit)
        report.files = ["stats.json", "turns.png", "lengths.png"]
        if vectors and sum(map(len, vectors.values())) > 2:
            plots.topics(out / "topics.png", _map(vectors))
            report.files.append("topics.png")
        text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False)
        (out / "stats.json").write_text(text + "\n", "utf-8")


def _map(vectors: Mapping[str, Matrix]) -> dict[str, Any]:
    """All datasets on the same two axes."""
    import numpy as np

    points = plane(np.concatenate(list(vectors.values())))
    edges = [0, *accumulate(map(len, vectors.values()))]
    return {
        name: points[start:end] for name, (start, end) in zip(vectors, pairwise(edges), strict=True)
    }
