"""A judged evaluation in words and tables: what came out, how sure it is, what is missing, what
papers published.

Takes a `Judged` and published tables; gives rows for a terminal, sentences, and a Markdown report.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hubkit.evaluation.aggregate import Passes, Scores, Wins
from hubkit.evaluation.judged import Judged
from hubkit.recipe import Published
from hubkit.statistics import Number, noise

Table = tuple[list[str], list[list[str]]]
_MEANINGS = (
    "Win rates count a tie as half. One order alone: as if only the order with this "
    "model shown first had been asked. Flip rate: pairs whose two orders disagree. "
    "At equal length: what a logistic model of the verdicts, with length as a term, "
    "says where both answers are as long; AlpacaEval's length-controlled win rate is another fit."
)


def table(result: Judged) -> Table:
    """Columns and rows: per model the headline, each turn, each category; or, in pairs, the win
    rates."""
    if result.wins is None:
        return scores_table(result.scores)
    against = result.setup.against
    title = f"wins of {result.setup.model.name} against {against.name if against else ''}"
    return wins_table({title: result.wins})


def wins_table(tables: Mapping[str, Wins]) -> Table:
    """Columns and rows of comparisons, one a column."""
    wins = list(tables.values())
    turns = sorted({turn for entry in wins for turn in entry.turns})
    categories = sorted({name for entry in wins for name in entry.categories})
    rows = [["all", *(_percent(entry.win_rate) for entry in wins)]]
    rows += [
        [f"turn {turn}", *(_percent(entry.turns.get(turn)) for entry in wins)] for turn in turns
    ]
    rows += [
        [name, *(_percent(entry.categories.get(name)) for entry in wins)] for name in categories
    ]
    rows.append(
        ["at equal length (not AlpacaEval's)", *(_percent(w.equal_length_win_rate) for w in wins)]
    )
    rows.append(["one order alone", *(_percent(entry.single_order_win_rate) for entry in wins)])
    rows.append(["flip rate", *(_percent(entry.flip_rate) for entry in wins)])
    if any(entry.reward for entry in wins):
        rows.append(["reward, -1 to 1", *(_grade(entry.reward) for entry in wins)])
    rows.append(["pairs judged", *(f"{entry.win_rate.n} of {entry.pairs}" for entry in wins)])
    return ["", *tables], rows


def scores_table(tables: Mapping[str, Scores | Passes]) -> Table:
    """Columns and rows of grades or of met criteria, a model a column."""
    values = list(tables.values())
    turns = sorted({turn for entry in values for turn in entry.turns})
    categories = sorted({name for entry in values for name in entry.categories})
    graded = all(isinstance(entry, Scores) for entry in values)
    cell = _grade if graded else _percent
    rows = [["mean" if graded else "all criteria met", *(cell(_headline(t)) for t in values)]]
    if len(categories) > 1:
        form = "{:.2f}" if graded else "{:.1%}"
        macros = ["–" if t.macro is None else form.format(t.macro) for t in values]
        rows.append(["mean over categories", *macros])
    if not graded:
        parts = [t.parts if isinstance(t, Passes) else None for t in values]
        rows.append(["criteria met", *(_percent(entry) for entry in parts)])
    rows += [[f"turn {turn}", *(cell(t.turns.get(turn)) for t in values)] for turn in turns]
    rows += [[name, *(cell(t.categories.get(name)) for t in values)] for name in categories]
    rows.append(["judged", *(f"{_headline(t).n} of {t.judgments}" for t in values)])
    return ["", *tables], rows


def _headline(table: Scores | Passes) -> Number:
    return table.mean if isinstance(table, Scores) else table.rate


def sentences(result: Judged) -> list[str]:
    """State what a reader must know to read the numbers."""
    setup, lines = result.setup, []
    if result.difference is not None:
        lines.append(_difference(result))
    if result.wins is not None:
        lines += [_positions(result), _MEANINGS]
    number = len(setup.benchmark.questions)
    lines.append(
        f"In brackets: {setup.bootstrap.confidence:.0%} bootstrap "
        f"intervals over {number} questions."
    )
    lines += setup.benchmark.notes
    if not setup.judged:
        return [*lines, "Checked by code; no judge was asked.", *_missing(result)]
    lines.append(
        f"Judged by {setup.judge.name}, prompts: {setup.prompts.source} "
        f"(sha256 {setup.prompts.sha256[:12]})."
    )
    if setup.judge.embedded:
        lines.append(
            f"A weak judge: {setup.judge.name} ran on this machine's embedded engine. "
            "Its grades show that the machinery works, and say next to nothing about the models; "
            "name a strong judge with --judge."
        )
    lines += _missing(result)
    return lines


def _difference(result: Judged) -> str:
    difference, models = result.difference or {}, list(result.scores)
    if difference["difference"] is None:
        return (
            f"{models[0]} and {models[1]} have no answer that both got a grade for: "
            "nothing can be compared."
        )
    words = noise(bool(difference["outside_noise"]))
    return (
        f"{models[0]} less {models[1]}, paired: {difference['difference']:+.2f} "
        f"{_signed_interval(difference)} over {difference['n']} answers, {words}"
        f"{_detectable(difference)}."
    )


def _signed_interval(difference: Mapping[str, Any]) -> str:
    if difference["low"] is None:
        return "[one question: no interval]"
    return f"[{difference['low']:+.2f}, {difference['high']:+.2f}]"


def _detectable(difference: Mapping[str, Any]) -> str:
    """What a difference must be for this many questions to show it; said where none was shown."""
    smallest = difference.get("smallest_detectable")
    if difference["outside_noise"] or not smallest:
        return ""
    return f" (differences below {smallest:.2f} are found with less than 80 % power)"


def _positions(result: Judged) -> str:
    wins = result.wins
    assert wins is not None
    text = (
        f"{wins.wins} wins, {wins.ties} ties, {wins.losses} losses; "
        "a disagreement of the two orders is a tie."
    )
    if wins.first_shown_rate is not None:
        text += (
            f" {wins.first_shown_rate:.0%} of decided verdicts went to the answer "
            "shown first (50% is no bias)."
        )
    return text


def _missing(result: Judged) -> list[str]:
    lines = []
    counts = {name: scores.missing for name, scores in result.scores.items()}
    if result.wins is not None:
        counts["pairs"] = result.wins.missing
    for name, missing in counts.items():
        if missing:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(missing.items()))
            lines.append(
                f"{name}: {sum(missing.values())} without a verdict ({reasons}); "
                "missing, not counted as 0."
            )
    if stopped := result.judging.get("stopped"):
        lines.append(
            f"Stopped by {stopped}: raise it and run the same command, which judges the rest."
        )
    return lines


def _grade(number: Number | None) -> str:
    return _with_interval(number, "{:.2f}")


def _percent(number: Number | None) -> str:
    return _with_interval(number, "{:.1%}")


def _with_interval(number: Number | None, form: str) -> str:
    if number is None or number.value is None:
        return "–"
    low, high = (form.format(end) if end is not None else "–" for end in (number.low, number.high))
    return f"{form.format(number.value)} [{low}, {high}]"


def fitting(published: Iterable[Published], benchmark: str) -> list[Published]:
    """The published tables that a reader may compare with `benchmark`."""
    return [entry for entry in published if benchmark in entry.benchmarks]


def origin(entry: Published) -> str:
    """Who judged a published table, where it stands, and what is not certain about it."""
    return f"Judge: {entry.judge}. Source: {entry.source}. {entry.caution}"


def published_table(entry: Published) -> Table:
    """Columns and rows of a published table; a dash where no number is known."""
    rows = [
        [name, *("–" if v is None else f"{v:g}" for v in values)]
        for name, values in entry.rows.items()
    ]
    return ["", *entry.columns], rows


def markdown(result: Judged, published: Sequence[Published] = ()) -> str:
    """The whole report. Names from files and command lines are escaped."""
    setup = result.setup
    title = (
        f"# {_safe(setup.benchmark.name)}: "
        f"{' and '.join(_safe(player.name) for player in setup.players)}"
    )
    parts = [title, grid(table(result)), *(_safe(sentence) for sentence in sentences(result))]
    parts.append(grid((["what", "which"], _inputs(result))))
    for entry in fitting(published, setup.benchmark.name):
        parts += [
            f"## As published: {_safe(entry.title)}",
            grid(published_table(entry)),
            f"{_safe(origin(entry))} Not measured here.",
        ]
    return "\n\n".join(parts) + "\n"


def _inputs(result: Judged) -> list[list[str]]:
    setup = result.setup
    rows = [
        ["questions", file["name"] + (f" (sha256 {sha256[:12]})" if sha256 else "")]
        for file in setup.benchmark.files
        for sha256 in [file.get("sha256", "")]
    ]
    rows += [["answers", player.identity] for player in setup.players]
    if not setup.judged:
        return [*rows, ["run", setup.digest[:12]]]
    judge = result.judging
    cost = f"{judge['asked']} asked, {judge['from_journal']} known before, ${judge['usd']:.2f}"
    return [
        *rows,
        ["judge", setup.judge.identity],
        ["judge's replies", cost],
        ["run", setup.digest[:12]],
    ]


def grid(content: Table) -> str:
    """Columns and rows as a table in Markdown, their texts escaped."""
    columns, rows = content
    lines: list[list[Any]] = [[_safe(cell) for cell in row] for row in [columns, *rows]]
    lines.insert(1, ["---"] * len(columns))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _safe(text: str) -> str:
    """`text` as Markdown that shows it as it is: no table, tag or link of its own."""
    plain = html.escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{letter}" if letter in "|`*[]\\" else letter for letter in plain)
