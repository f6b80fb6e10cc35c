"""An asker's scorecard as data: people's row and each player's, as a table and as a picture.

Takes and gives the plain data that a results file holds, so that whoever shows a scorecard needs no
model and no conversations: the card of an asker, the command line, a reader of ``results.json``.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hubkit.metrics.definitions import Definition, card_definitions
from hubkit.metrics.plots import COLOURS
from hubkit.untrusted import JsonObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PEOPLE, BASE = "people", "base as user"
"""What rows of people, and of a base that is only told to play them, are called."""
_COLUMNS, _TITLE_CHARS = 4, 29
_BETTER = {
    "high": "higher is better",
    "low": "lower is better",
    "people": "people's is best",
    "chance": "0.5 is best",
    "n": "of this many turns",
}


@dataclass(frozen=True, slots=True)
class Row:
    """What one player's turns are like: `values` maps a measure to ``value``, ``n`` and, where it
    has an interval, ``low`` and ``high``; a measure that could not be taken is in `missing`, with
    the reason. `counts` are requests."""

    name: str
    model: Mapping[str, Any] | None
    values: Mapping[str, Mapping[str, Any]]
    missing: Mapping[str, str]
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scorecard:
    """All players on the same held-out contexts, people first. `settings` say on what and how they
    were asked.
    """

    rows: Sequence[Row]
    settings: Mapping[str, Any]

    def to_dict(self) -> JsonObject:
        """As a results file holds it, with the definition of every measure in it."""
        used = {name for row in self.rows for name in (*row.values, *row.missing)}
        measures = {
            name: asdict(entry) for name, entry in card_definitions().items() if name in used
        }
        return {
            "settings": dict(self.settings),
            "measures": measures,
            "rows": [asdict(row) for row in self.rows],
        }


def of(card: Mapping[str, Any]) -> Scorecard:
    """The scorecard in a results file. Raises `KeyError` or `TypeError` where it is not one."""
    return Scorecard([Row(**row) for row in card["rows"]], card["settings"])


def measured(card: Scorecard) -> dict[str, Definition]:
    """The measures that at least one row has a value of."""
    return {
        name: e
        for name, e in card_definitions().items()
        if any(name in row.values for row in card.rows)
    }


def table(card: Scorecard) -> tuple[list[str], list[list[str]]]:
    """Column names and rows as text: measures down, with which way is better; people and players
    across.
    """
    columns = ["measure", "", *(row.name for row in card.rows)]
    rows = [
        [entry.title, _BETTER[entry.best], *(_cell(row, name, entry.digits) for row in card.rows)]
        for name, entry in measured(card).items()
    ]
    return columns, rows


def notes(card: Scorecard) -> list[str]:
    """What could not be measured and why, one sentence a reason; and requests that failed."""
    titles = card_definitions()
    why: dict[tuple[str, str], list[str]] = {}
    for row in card.rows:
        for name, reason in row.missing.items():
            if row.name != PEOPLE and name in titles:
                why.setdefault((titles[name].title, reason), []).append(row.name)
    together: dict[tuple[str, str], list[str]] = {}
    for (title, reason), names in why.items():
        together.setdefault((" and ".join(names), reason), []).append(title)
    lines = [
        f"{'; '.join(measures)}: not measured for {names}"
        # Scorecards of before have no other reason for a perplexity.
        + ("" if reason == "not measured" else f" ({reason})")
        for (names, reason), measures in together.items()
    ]
    for name, number in card.settings.get("trained_on", {}).items():
        if number is None:
            lines.append(
                f"{name}: what it was trained on is not known here; the held-out conversations "
                "may be among it"
            )
        elif number:
            lines.append(
                f"{name} was trained on {number} of the held-out conversations, or on "
                "near-duplicates: no asker is asked at those"
            )
    failed = [(row.name, row.counts["failed"]) for row in card.rows if row.counts.get("failed")]
    return lines + [
        f"{name}: {number} requests failed and are in no measure" for name, number in failed
    ]


def _cell(row: Row, name: str, digits: int) -> str:
    cell = row.values.get(name)
    if cell is None:
        return "–" if row.name == PEOPLE else "n/a"
    text = f"{cell['value']:.{digits}f}"
    if cell.get("low") is None or cell.get("high") is None:
        return text
    return f"{text} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"


def picture(card: Scorecard) -> bytes:
    """Small multiples as a PNG: one panel a measure, a dot with its interval a player, people's
    value as a line.

    The same scorecard gives the same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = measured(card)
    lines = -(-len(measures) // _COLUMNS)
    figure = Figure(
        figsize=(11, (0.75 + 0.22 * len(card.rows)) * max(lines, 1)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(max(lines, 1), _COLUMNS, squeeze=False).ravel()
    for at, (axes, (name, entry)) in enumerate(zip(grid, measures.items(), strict=False)):
        _panel(axes, card, name, entry)
        if at % _COLUMNS:
            axes.set_yticklabels([])
    for axes in grid[len(measures) :]:
        axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _panel(axes: Axes, card: Scorecard, name: str, entry: Definition) -> None:
    for at, row in enumerate(card.rows):
        colour = "#444444" if row.name == PEOPLE else COLOURS[(at - 1) % len(COLOURS)]
        cell = row.values.get(name)
        if cell is None:
            axes.text(0.02, at, "–" if row.name == PEOPLE else "n/a",
                      transform=axes.get_yaxis_transform(),
                      va="center", fontsize=7, color="#8a8a8a")  # fmt: skip
            continue
        if cell.get("low") is not None and cell.get("high") is not None:
            axes.plot([cell["low"], cell["high"]], [at, at], color=colour, linewidth=2, alpha=0.5)
        axes.plot([cell["value"]], [at], marker="o", markersize=5, color=colour)
        if row.name == PEOPLE:
            axes.axvline(cell["value"], color=colour, linewidth=0.8, linestyle=":")
    title = textwrap.fill(entry.title, _TITLE_CHARS)
    axes.set_title(f"{title}\n({_BETTER[entry.best]})", fontsize=7.5, loc="left")
    axes.set_yticks(range(len(card.rows)), [row.name for row in card.rows], fontsize=7.5)
    axes.set_ylim(len(card.rows) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=6.5)
    axes.locator_params(axis="x", nbins=5)  # more would run into each other
    axes.spines[["top", "right"]].set_visible(False)
