"""Plots for cards: PNG files out of numbers that a report already holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (7.0, 3.6)
COLOURS = ("#3b6ea5", "#d97f30", "#4f9d69", "#a54e6e", "#7d6bb3", "#8a8a8a")


def turns(path: Path, counts: Mapping[str, Mapping[int, int]]) -> None:
    """Histogram of human turns per dialogue, one line a dataset (name → turns → dialogues), as
    shares.
    """
    figure, axes = _figure()
    longest = min(20, max((turn for c in counts.values() for turn in c), default=1))
    for colour, (name, count) in zip(_cycle(len(counts)), counts.items(), strict=True):
        total = sum(count.values())
        shares = [count.get(turn, 0) / total for turn in range(1, longest)]
        shares.append(sum(n for turn, n in count.items() if turn >= longest) / total)
        axes.plot(range(1, longest + 1), shares, marker="o", markersize=3, color=colour, label=name)
    axes.set(
        xlabel=f"human turns per dialogue ({longest}: that many or more)",
        ylabel="share of dialogues",
    )
    _save(figure, axes, path)


def lengths(path: Path, values: Mapping[str, Sequence[int]], unit: str) -> None:
    """Distribution of the lengths of human turns, one step line a dataset, on a logarithmic
    axis.
    """
    import numpy as np

    figure, axes = _figure()
    edges = np.logspace(0, 3.5, 30).tolist()
    for colour, (name, sizes) in zip(_cycle(len(values)), values.items(), strict=True):
        weights = np.full(len(sizes), 1 / max(len(sizes), 1))
        axes.hist(
            sizes, edges, weights=weights, histtype="step", linewidth=1.5, color=colour, label=name
        )
    axes.set(xscale="log", xlabel=f"{unit} per human turn", ylabel="share of turns")
    _save(figure, axes, path)


def topics(path: Path, points: Mapping[str, Any]) -> None:
    """Map of human turns: one dot a turn (dataset → array of two columns)."""
    figure, axes = _figure((6.0, 5.0))
    for colour, (name, xy) in zip(_cycle(len(points)), points.items(), strict=True):
        axes.scatter(xy[:, 0], xy[:, 1], s=5, alpha=0.5, linewidths=0, color=colour, label=name)
    axes.set(xlabel="first principal component", ylabel="second", xticks=[], yticks=[])
    _save(figure, axes, path)


def heat_map(
    path: Path,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    *,
    title: str,
) -> None:
    """Heat map of one value for each row and column, with a text in each field; a value of None is
    left grey.
    """
    import numpy as np

    figure, axes = _figure((2.5 + 1.6 * len(columns), 1.6 + 0.7 * len(rows)))
    data = np.array([[np.nan if v is None else v for v in row] for row in values], float)
    axes.set_facecolor("#d0d0d0")
    image = axes.imshow(np.ma.masked_invalid(data), cmap="cividis", aspect="auto")
    finite = data[~np.isnan(data)]
    middle = (finite.min() + finite.max()) / 2 if finite.size else 0.0
    for y, row in enumerate(texts):
        for x, text in enumerate(row):
            dark = not np.isnan(data[y, x]) and data[y, x] <= middle
            colour = "white" if dark else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(columns)), columns, rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    if finite.size:
        figure.colorbar(image, ax=axes, label=title)
    _save(figure, axes, path, legend=False)


def funnel(path: Path, report: Mapping[str, Any]) -> None:
    """Rows left after each step of a ``report.json`` of the corpus or of curation, with what each
    dropped most for.
    """
    figure, axes = _figure((7.0, 0.6 + 0.42 * (len(report["steps"]) + 1)))
    names, remaining, notes = ["read"], [_read(report)], [""]
    for step in report["steps"]:
        names.append(step["name"])
        remaining.append(step["rows_out"])
        reasons = sorted(
            ((t["count"], reason) for reason, t in step["dropped"].items()), reverse=True
        )
        notes.append(", ".join(f"{reason} {number:,}" for number, reason in reasons[:2]))
    axes.barh(range(len(names)), remaining, color=COLOURS[0])
    for at, (rows, note) in enumerate(zip(remaining, notes, strict=True)):
        text = f" {rows:,}" + (f"   (−{note})" if note else "")
        inside = rows > 0.6 * max(remaining)
        axes.text(rows, at, text + " ", va="center", ha="right" if inside else "left", fontsize=7,
                  color="white" if inside else "black")  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("rows left")
    _save(figure, axes, path, legend=False)


def losses_by_depth(
    path: Path, arms: Mapping[str, Mapping[int, tuple[float, float, float]]]
) -> None:
    """Loss of each arm's students less their untrained base's over turn depth, with the interval of
    that difference (arm → depth → difference, low, high)."""
    figure, axes = _figure()
    for number, (colour, (name, points)) in enumerate(
        zip(_cycle(len(arms)), arms.items(), strict=True)
    ):
        at = [depth + 0.06 * (number - (len(arms) - 1) / 2) for depth in points]
        values = [difference for difference, _, _ in points.values()]
        below = [difference - low for difference, low, _ in points.values()]
        above = [high - difference for difference, _, high in points.values()]
        axes.errorbar(
            at, values, [below, above], fmt="o-", markersize=3, capsize=2, color=colour, label=name
        )
    axes.axhline(0, color=COLOURS[-1], linewidth=0.8)
    axes.set(
        xlabel="turn depth (1: the opening; later: people's follow-ups)",
        ylabel="nats per token, less the untrained base",
        xticks=sorted({depth for points in arms.values() for depth in points}),
    )
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    _save(figure, axes, path, legend=False)


def learning_curve(path: Path, points: Sequence[Mapping[str, Any]]) -> None:
    """Held-out loss over loss-bearing tokens trained on; the first point is the base. The interval
    of the difference from the base is drawn round each later one."""
    figure, axes = _figure()
    base, at = points[0]["loss"], [point["loss_tokens"] for point in points]
    spreads = [point.get("against_base") or {"low": 0.0, "high": 0.0} for point in points]
    axes.plot(at, [point["loss"] for point in points], "o-", color=COLOURS[0], label="asker")
    axes.fill_between(
        at,
        [base + spread["low"] for spread in spreads],
        [base + spread["high"] for spread in spreads],
        color=COLOURS[0],
        alpha=0.2,
    )
    axes.set(xlabel="loss-bearing tokens trained on", ylabel="nats per human-turn token")
    _save(figure, axes, path, legend=False)


def _read(report: Mapping[str, Any]) -> int:
    """Conversations that entered the chain: rows read, less the unreadable ones and those joined to
    a neighbour.
    """
    return int(report["rows_read"] - report.get("unreadable", 0) - report.get("joined", 0))


def _cycle(number: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(number)]


def _figure(size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _save(figure: Figure, axes: Axes, path: Path, *, legend: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
