"""How far a judge can be believed: agreement with people, flips, favouritism, length, failures.

Takes one record per verdict; gives plain numbers with intervals. A panel of judges is weighted by
how far each agrees with people."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubkit.statistics import Bootstrap, Number

Choice = str
"""``A``, ``B`` or ``tie``: what a judge or a person prefers."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a judge says what people say, over `n` items that both have a choice for.

    Attributes:
        rate: Share of equal choices, ties included.
        decided: The same where both prefer one.
        kappa: Cohen's kappa (1960): agreement beyond what both would reach by chance."""

    rate: Number
    decided: Number
    kappa: float | None
    n: int


def agreement(
    judge: Mapping[Hashable, Choice], people: Mapping[Hashable, Choice], bootstrap: Bootstrap
) -> Agreement:
    """Compare a judge's choices with people's, item by item."""
    shared = [key for key in judge if key in people]
    pairs = [(judge[key], people[key]) for key in shared]
    decided = [(a, b) for a, b in pairs if "tie" not in (a, b)]
    return Agreement(
        rate=bootstrap.mean_of([float(a == b) for a, b in pairs]),
        decided=bootstrap.mean_of([float(a == b) for a, b in decided]),
        kappa=_kappa(pairs),
        n=len(pairs),
    )


def _kappa(pairs: Sequence[tuple[Choice, Choice]]) -> float | None:
    if not pairs:
        return None
    n, kinds = len(pairs), {choice for pair in pairs for choice in pair}
    observed = sum(a == b for a, b in pairs) / n
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    expected = sum(first.count(kind) * second.count(kind) for kind in kinds) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def length_slope(values: Iterable[tuple[Hashable, float, float]], bootstrap: Bootstrap) -> Number:
    """Estimate how a judge's verdict changes with length: the least-squares slope of the verdict on
    log2(length), so the change when an answer is twice as long.

    Args:
        values: (question, verdict, length in characters). For pairs, give the points of the model
            and the ratio of both lengths. Each question's own mean is removed first where it has
            several verdicts, so that questions with long answers are not compared with others.
        bootstrap: Draws questions."""
    import numpy as np

    rows = [(q, v, math.log2(length)) for q, v, length in values if length > 0]
    ids = {q: i for i, q in enumerate(dict.fromkeys(q for q, _, _ in rows))}
    if len(ids) < 3:
        return Number(None, len(rows))
    places = np.array([ids[q] for q, _, _ in rows])
    y, x = np.array([v for _, v, _ in rows]), np.array([v for _, _, v in rows])
    sizes = np.bincount(places)
    if (sizes > 1).all():
        y = y - (np.bincount(places, y) / sizes)[places]
        x = x - (np.bincount(places, x) / sizes)[places]
    parts = [np.bincount(places, weights) for weights in (np.ones(len(x)), x, y, x * x, x * y)]

    def slope(indices: Any) -> Any:
        n, sx, sy, sxx, sxy = (part[indices].sum(axis=1) for part in parts)
        spread = n * sxx - sx * sx
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(np.abs(spread) > 1e-9, (n * sxy - sx * sy) / spread, np.nan)

    value = float(slope(np.arange(len(ids))[None, :])[0])
    low, high = bootstrap.interval(len(ids), slope)
    return Number(None, len(rows)) if math.isnan(value) else Number(value, len(rows), low, high)


def self_preference(
    judges: Mapping[str, Mapping[str, float]], kin: Mapping[str, str]
) -> dict[str, float]:
    """Say how much better each judge rates its own kin than the other judges do.

    Args:
        judges: Judge → model → its mean verdict on that model.
        kin: Judge → the model that it is, or is of the family of.

    Returns:
        Judge → its verdict on its own model, less that of the others, each judge's verdicts taken
        relative to its mean over the models that all of them judged."""
    if len(judges) < 2:
        return {}
    common = set.intersection(*(set(verdicts) for verdicts in judges.values()))
    if len(common) < 2:
        return {}
    relative = {
        judge: {m: verdicts[m] - sum(verdicts[c] for c in common) / len(common) for m in common}
        for judge, verdicts in judges.items()
    }
    preference = {}
    for judge, model in kin.items():
        other_verdicts = [
            relative[peer][model] for peer in judges if peer != judge and model in common
        ]
        if judge in judges and other_verdicts:
            preference[judge] = relative[judge][model] - sum(other_verdicts) / len(other_verdicts)
    return preference


def panel_weights(agreements: Mapping[str, Agreement]) -> dict[str, float]:
    """Weigh judges by the log odds of their agreement with people on decided items, which is the
    best weighting of independent judges (Nitzan & Paroush 1982); one that is no better than chance
    gets 0. They sum to 1, or are all equal where none is better than chance."""
    odds = {}
    for judge, measured in agreements.items():
        n = measured.decided.n
        rate = ((measured.decided.value or 0.0) * n + 0.5) / (n + 1)  # never 0 or 1
        odds[judge] = max(0.0, math.log(rate / (1 - rate)))
    total = sum(odds.values())
    if not total:
        return dict.fromkeys(odds, 1 / len(odds)) if odds else {}
    return {judge: weight / total for judge, weight in odds.items()}


def panel_choice(choices: Mapping[str, Choice], weights: Mapping[str, float]) -> Choice:
    """What a panel prefers: the sign of the weighted sum of its judges' choices; a tie at 0."""
    signs = {"A": 1.0, "B": -1.0, "tie": 0.0}
    total = sum(weights.get(judge, 0.0) * signs[choice] for judge, choice in choices.items())
    return "tie" if abs(total) < 1e-12 else "A" if total > 0 else "B"
