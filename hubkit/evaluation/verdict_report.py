"""A report from verdicts alone: tables, JSON, a plot, a card section, and how far each judge can be
believed."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hubkit.data.parquet import write_files
from hubkit.errors import SourceError
from hubkit.evaluation.aggregate import POINTS, Compared, Passes, Rated, Scores, Wins
from hubkit.evaluation.judge_quality import (
    Agreement,
    agreement,
    length_slope,
    panel_choice,
    panel_weights,
    self_preference,
)
from hubkit.evaluation.length_control import alpaca_eval_of
from hubkit.evaluation.report import Table, grid, scores_table, wins_table
from hubkit.evaluation.verdict_files import VerdictSet, read_verdicts, table_of
from hubkit.statistics import Bootstrap, Number, among_several, noise
from hubkit.untrusted import JsonObject


@dataclass(frozen=True)
class JudgeQuality:
    """What is known of one judge: verdicts asked for and missing by reason, the share of pairs
    whose two orders disagree, how its verdicts change when an answer is twice as long, how it
    agrees with people, and how much better it rates its own model than others do."""

    verdicts: int
    missing: dict[str, int]
    flip_rate: Number | None = None
    length_slope: Number | None = None
    people: Agreement | None = None
    self_preference: float | None = None
    weight: float | None = None


@dataclass(frozen=True)
class VerdictReport:
    """Everything that verdicts say.

    Attributes:
        tables: (benchmark, judge) → label of a set → its aggregate.
        differences: (benchmark, judge) → "MODEL less MODEL" → paired difference as plain data, with
            its p-value adjusted over all of them (Holm) under ``p_holm``, by which
            ``outside_noise`` goes.
        judges: By judge's name.
        panel: The panel's agreement with people, where there are votes and several judges.
        files: The names of what was read.
        length_controlled: AlpacaEval's length-controlled win rate by model, where it was wanted."""

    tables: dict[tuple[str, str], dict[str, Scores | Passes | Wins]]
    differences: dict[tuple[str, str], dict[str, JsonObject]]
    judges: dict[str, JudgeQuality]
    panel: Agreement | None = None
    files: list[str] = field(default_factory=list)
    length_controlled: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return {
            "benchmarks": [
                {
                    "benchmark": benchmark,
                    "judge": judge,
                    "results": {label: entry.to_dict() for label, entry in tables.items()},
                    "differences": self.differences.get((benchmark, judge), {}),
                }
                for (benchmark, judge), tables in self.tables.items()
            ],
            "judges": {name: asdict(entry) for name, entry in self.judges.items()},
            "panel": asdict(self.panel) if self.panel else None,
            "files": self.files,
            "length_controlled_win_rate": self.length_controlled,
        }


def report(
    paths: Sequence[Path],
    *,
    votes: Path | None = None,
    gamed: Path | None = None,
    kin: Mapping[str, str] | None = None,
    bootstrap: Bootstrap | None = None,
) -> VerdictReport:
    """Make a report of the verdicts in `paths` (see `read_verdicts`).

    Args:
        votes: A file of people's choices in FastChat's pairwise layout or hubkit's, to hold judges
            against.
        gamed: AlpacaEval's ``df_gamed.csv``, for its length-controlled win rate of annotations.
        kin: Judge → the model that it is, for self-preference; a judge named as a model is its own.
        bootstrap: How intervals are made.

    Raises:
        SourceError: A file holds no verdicts."""
    bootstrap = bootstrap or Bootstrap()
    sets = [verdicts for path in paths for verdicts in read_verdicts(path)]
    grouped: dict[tuple[str, str], list[VerdictSet]] = {}
    for verdicts in sets:
        grouped.setdefault((verdicts.benchmark, verdicts.judge), []).append(verdicts)
    tables: dict[tuple[str, str], dict[str, Scores | Passes | Wins]] = {
        key: {verdicts.label: table_of(verdicts, bootstrap) for verdicts in group}
        for key, group in grouped.items()
    }
    human = read_verdicts(votes) if votes else []
    judges = _judges(sets, tables, human, kin or {}, bootstrap)
    return VerdictReport(
        tables=tables,
        differences={key: _differences(group, bootstrap) for key, group in grouped.items()},
        judges=judges,
        panel=_panel(sets, human, judges, bootstrap),
        files=[path.name for path in paths],
        length_controlled=alpaca_eval_of(paths, gamed) if gamed else {},
    )


def _differences(group: Sequence[VerdictSet], bootstrap: Bootstrap) -> dict[str, JsonObject]:
    """Paired differences of every model from the first, p-values adjusted for their number."""
    from hubkit.evaluation.aggregate import difference

    graded: list[Any] = [entry for entry in group if entry.mode != "pairwise"]
    compared = {
        f"{second.model} less {graded[0].model}": difference(second.rows, graded[0].rows, bootstrap)
        for second in graded[1:]
        if second.mode == graded[0].mode
    }
    judged = among_several({name: paired for name, (paired, _) in compared.items()})
    return {
        name: {**paired.to_dict(), "unpaired": unpaired, **asdict(judged[name])}
        for name, (paired, unpaired) in compared.items()
    }


def _judges(
    sets: Sequence[VerdictSet],
    tables: Mapping[tuple[str, str], Mapping[str, Any]],
    human: Sequence[VerdictSet],
    kin: Mapping[str, str],
    bootstrap: Bootstrap,
) -> dict[str, JudgeQuality]:
    names = list(dict.fromkeys(entry.judge for entry in sets))
    means: dict[str, dict[str, float]] = {name: {} for name in names}
    for (_, judge), group in tables.items():
        for label, entry in group.items():
            if isinstance(entry, Scores) and entry.mean.value is not None:
                means[judge][label] = entry.mean.value
    models = {entry.model for entry in sets}
    own_models = {name: kin.get(name, name) for name in names if kin.get(name, name) in models}
    preference = self_preference({n: m for n, m in means.items() if m}, own_models)
    people = _choices(human)
    agreements = {
        name: agreement(_choices([s for s in sets if s.judge == name]), people, bootstrap)
        for name in names
    }
    agreements = {name: entry for name, entry in agreements.items() if entry.n}
    weights = panel_weights(agreements)
    return {
        name: _judge(
            [entry for entry in sets if entry.judge == name],
            bootstrap,
            people=agreements.get(name),
            preference=preference.get(name),
            weight=weights.get(name),
        )
        for name in names
    }


def _judge(
    sets: Sequence[VerdictSet],
    bootstrap: Bootstrap,
    *,
    people: Agreement | None,
    preference: float | None,
    weight: float | None,
) -> JudgeQuality:
    rows = [row for verdicts in sets for row in verdicts.rows]
    pairs = [row for row in rows if isinstance(row, Compared)]
    missing: Counter[str] = Counter()
    for row in rows:
        reasons = row.reasons if isinstance(row, Compared) else (row.reason,)
        missing.update(reason for reason in reasons if reason)
    judged = [row for row in pairs if row.outcome]
    flips = bootstrap.mean([(row.question, float(row.first != row.second)) for row in judged])
    return JudgeQuality(
        verdicts=len(rows) + len(pairs),
        missing=dict(missing),
        flip_rate=flips if judged else None,
        length_slope=_slope(rows, bootstrap),
        people=people,
        self_preference=preference,
        weight=weight,
    )


def _slope(rows: Sequence[Any], bootstrap: Bootstrap) -> Number | None:
    """Of grades on lengths; of pairs, of the model's points on the ratio of both lengths."""
    graded = [
        (row.question, row.rating, float(row.length))
        for row in rows
        if isinstance(row, Rated) and row.rating is not None and row.length
    ]
    compared = [
        (row.question, POINTS[row.outcome], row.length / row.against_length)
        for row in rows
        if isinstance(row, Compared) and row.outcome and row.length and row.against_length
    ]
    slope = length_slope(graded or compared, bootstrap)
    return slope if slope.value is not None else None


def _choices(sets: Sequence[VerdictSet]) -> dict[Any, str]:
    """(both models in order, question, turn) → who is preferred, ``A`` the first by name."""
    choices: dict[Any, str] = {}
    for verdicts in sets:
        for row in verdicts.rows:
            if isinstance(row, Compared) and row.outcome:
                ahead = {"win": verdicts.model, "loss": verdicts.against, "tie": ""}[row.outcome]
                first, second = sorted((verdicts.model, verdicts.against))
                names = {first: "A", second: "B", "": "tie"}
                choices[first, second, row.question, row.turn] = names[ahead]
    return choices


def _panel(
    sets: Sequence[VerdictSet],
    human: Sequence[VerdictSet],
    judges: Mapping[str, JudgeQuality],
    bootstrap: Bootstrap,
) -> Agreement | None:
    """How a panel of all judges agrees with people. Each item is decided by weights that were
    learnt without it: in two halves, each weighed by the other."""
    weighed = [name for name, quality in judges.items() if quality.weight is not None]
    if len(weighed) < 2:
        return None
    people = _choices(human)
    by_judge = {name: _choices([s for s in sets if s.judge == name]) for name in weighed}
    keys = sorted((key for key in people if any(key in c for c in by_judge.values())), key=str)
    halves = [set(keys[::2]), set(keys[1::2])]
    decided: dict[Any, str] = {}
    for decided_here, learnt_from in (halves, halves[::-1]):
        known_choices = {key: people[key] for key in learnt_from}
        weights = panel_weights(
            {
                name: agreement(choices, known_choices, bootstrap)
                for name, choices in by_judge.items()
            }
        )
        for key in decided_here:
            votes = {name: c[key] for name, c in by_judge.items() if key in c}
            decided[key] = panel_choice(votes, weights)
    return agreement(decided, people, bootstrap)


def result_tables(report: VerdictReport) -> dict[str, Table]:
    """Title → columns and rows: the results of each benchmark and judge, then the judges."""
    titled: dict[str, Table] = {}
    for (benchmark, judge), group in report.tables.items():
        title = f"{benchmark}, judged by {judge}" if judge else benchmark
        wins = {label: entry for label, entry in group.items() if isinstance(entry, Wins)}
        grades = {label: entry for label, entry in group.items() if not isinstance(entry, Wins)}
        if wins:
            titled[title] = wins_table(wins)
        for kind in (Scores, Passes):
            if some := {label: entry for label, entry in grades.items() if isinstance(entry, kind)}:
                titled[f"{title}, pairs apart" if wins else title] = scores_table(some)
    titled["judges"] = _judges_table(report)
    return titled


def _judges_table(report: VerdictReport) -> Table:
    columns = ["judge", "verdicts", "missing", "flip rate", "twice as long", "own model",
               "agrees with people", "weight"]  # fmt: skip
    rows = [
        [
            name or "(not named)",
            f"{quality.verdicts:,}",
            ", ".join(f"{count} {reason}" for reason, count in quality.missing.items()) or "0",
            _cell(quality.flip_rate, "{:.1%}"),
            _cell(quality.length_slope, "{:+.2f}"),
            "–" if quality.self_preference is None else f"{quality.self_preference:+.2f}",
            _cell(quality.people.rate if quality.people else None, "{:.1%}"),
            "–" if quality.weight is None else f"{quality.weight:.2f}",
        ]
        for name, quality in report.judges.items()
    ]
    if report.panel:
        rows.append(
            ["panel", "", "", "", "", "", _cell(report.panel.rate, "{:.1%}"), f"n {report.panel.n}"]
        )
    return columns, rows


def _cell(number: Number | None, form: str) -> str:
    if number is None or number.value is None:
        return "–"
    if number.low is None or number.high is None:
        return form.format(number.value)
    return f"{form.format(number.value)} [{form.format(number.low)}, {form.format(number.high)}]"


def notes(report: VerdictReport) -> list[str]:
    """The paired differences in words, and what the judges' table means."""
    lines = []
    for group in report.differences.values():
        for name, difference in group.items():
            if difference["difference"] is None:
                lines.append(f"{name}: no answer that both have a verdict for.")
                continue
            words = noise(bool(difference["outside_noise"]))
            interval = (
                ""
                if difference["low"] is None
                else f" [{difference['low']:+.3f}, {difference['high']:+.3f}]"
            )
            lines.append(
                f"{name}, paired: {difference['difference']:+.3f}{interval} over {difference['n']} "
                f"answers, p {difference['p_holm']:.3g} (Holm), {words}."
            )
    lines.append(
        "Twice as long: how a verdict changes when an answer's length doubles. Own model: how much "
        "better a judge rates its own model than the other judges do. "
        "Weight: in a panel, by the log odds of agreement with people; "
        "the panel's own agreement is measured on items that its weights were not learnt from."
    )
    for name, rate in report.length_controlled.items():
        lines.append(f"{name}: length-controlled win rate {rate:.1%} (AlpacaEval's method).")
    return lines


def section(report: VerdictReport) -> str:
    """The report as a section of a card, in Markdown."""
    parts = []
    for title, content in result_tables(report).items():
        parts += [f"## {title}", grid(content)]
    return "\n\n".join([*parts, *notes(report)]) + "\n"


def write(report: VerdictReport, folder: Path) -> list[Path]:
    """Write ``report.json``, ``report.md`` (a card's section) and ``report.png`` into `folder`."""
    contents = {
        "report.json": (json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n").encode(),
        "report.md": section(report).encode(),
        "report.png": picture(report),
    }
    return write_files(folder, contents)


def picture(report: VerdictReport) -> bytes:
    """A dot with its interval for each set of verdicts, one panel a benchmark and judge, as a PNG.

    Raises `SourceError` where there is nothing to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from hubkit.metrics.plots import COLOURS

    panels = [
        (key, {label: _headline(entry) for label, entry in group.items()})
        for key, group in report.tables.items()
    ]
    panels = [(k, {n: v for n, v in g.items() if v.value is not None}) for k, g in panels]
    panels = [(key, group) for key, group in panels if group]
    if not panels:
        raise SourceError("no set has a verdict; there is nothing to draw")
    height = sum(0.9 + 0.3 * len(group) for _, group in panels)
    figure = Figure(figsize=(7, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid_axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, ((benchmark, judge), group) in zip(grid_axes, panels, strict=True):
        for at, (_, number) in enumerate(group.items()):
            colour = COLOURS[at % len(COLOURS)]
            if number.low is not None and number.high is not None:
                axes.plot([number.low, number.high], [at, at], color=colour, linewidth=2, alpha=0.5)
            axes.plot([number.value], [at], marker="o", markersize=5, color=colour)
        axes.set_yticks(range(len(group)), list(group), fontsize=8)
        axes.set_ylim(len(group) - 0.5, -0.5)
        title = f"{benchmark}, judged by {judge}" if judge else benchmark
        axes.set_title(title, fontsize=8, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _headline(table: Scores | Passes | Wins) -> Number:
    if isinstance(table, Scores):
        return table.mean
    return table.rate if isinstance(table, Passes) else table.win_rate
