"""From verdicts to numbers: mean ratings, win rates, flip rates, each with an interval over
questions.

Takes one row per judged answer or pair of answers; gives plain data. Means are over judgments that
have a verdict, as in the published procedure (Zheng et al., 2023, arXiv 2306.05685); what has none
is counted beside, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hubkit.metrics.statistics import Bootstrap, Number

if TYPE_CHECKING:
    from hubkit.metrics.statistics import Indices, Values

Outcome = Literal["win", "tie", "loss"]
POINTS: dict[Outcome, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass(frozen=True, slots=True)
class Rated:
    """One answer: its grade from 1 to 10, or None and the reason why it has none."""

    question: str
    category: str
    turn: int
    rating: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Compared:
    """Two answers to the same turn, judged in both orders.

    `first` is the outcome for the model with its answer shown first, `second` with it shown second;
    None where there is no verdict (`reasons` say why). `length` and `against_length` are
    characters."""

    question: str
    category: str
    turn: int
    first: Outcome | None
    second: Outcome | None
    reasons: tuple[str, ...] = ()
    length: int = 0
    against_length: int = 0

    @property
    def outcome(self) -> Outcome | None:
        """What both orders agree on; a tie when they do not; None unless both have a verdict."""
        if self.first is None or self.second is None:
            return None
        return self.first if self.first == self.second else "tie"


@dataclass(frozen=True)
class Scores:
    """Ratings of one model: over all, by turn (from 1) and by category. ``judgments == mean.n +
    sum(missing)``.
    """

    mean: Number
    turns: dict[int, Number]
    categories: dict[str, Number]
    judgments: int
    missing: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


Row = TypeVar("Row", Rated, Compared)


def scores(rows: Sequence[Rated], bootstrap: Bootstrap) -> Scores:
    """Single-answer grading: mean over all graded answers, per turn, per category."""

    def mean(part: Iterable[Rated]) -> Number:
        return bootstrap.mean(
            [(row.question, row.rating) for row in part if row.rating is not None]
        )

    missing = Counter(row.reason for row in rows if row.rating is None)
    return Scores(
        mean=mean(rows),
        turns=_by(rows, lambda row: row.turn, mean),
        categories=_by(rows, lambda row: row.category, mean),
        judgments=len(rows),
        missing=dict(missing),
    )


Key = TypeVar("Key")


def _by(
    rows: Sequence[Row], key: Callable[[Row], Key], mean: Callable[[list[Row]], Number]
) -> dict[Key, Number]:
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return {name: mean(group) for name, group in groups.items()}


def difference(
    model: Sequence[Rated], against: Sequence[Rated], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Compare the grades of two models over the answers that both have a grade for, by question.

    Returns:
        `PairedDifference` as plain data, and ``unpaired``: answers that only one has a grade for."""
    first, second = (
        {(row.question, row.turn): row.rating for row in rows if row.rating is not None}
        for rows in (model, against)
    )
    paired = bootstrap.difference(first, second)
    return {**paired.to_dict(), "unpaired": len(first.keys() ^ second.keys())}


@dataclass(frozen=True)
class Wins:
    """A model against another: `win_rate` counts a tie as half. ``pairs == wins + ties + losses +
    sum(missing)``.

    `flip_rate` is the share of pairs whose two orders disagree; `first_shown_rate` how often a
    verdict that is no tie goes to the answer that was shown first (0.5: no bias);
    `single_order_win_rate` what the first order alone would have said.
    `length_controlled_win_rate`: see `length_controlled`."""

    win_rate: Number
    turns: dict[int, Number]
    categories: dict[str, Number]
    wins: int
    ties: int
    losses: int
    pairs: int
    flip_rate: Number
    first_shown_rate: float | None
    single_order_win_rate: Number
    length_controlled_win_rate: Number
    missing: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def wins(rows: Sequence[Compared], bootstrap: Bootstrap) -> Wins:
    """Pairwise comparison, both orders: a disagreement is a tie, as in the published procedure."""

    def rate(part: Iterable[Compared]) -> Number:
        return bootstrap.mean([(row.question, POINTS[row.outcome]) for row in part if row.outcome])

    judged = [row for row in rows if row.outcome]
    count = Counter(row.outcome for row in judged)
    return Wins(
        win_rate=rate(rows),
        turns=_by(rows, lambda row: row.turn, rate),
        categories=_by(rows, lambda row: row.category, rate),
        wins=count["win"],
        ties=count["tie"],
        losses=count["loss"],
        pairs=len(rows),
        flip_rate=bootstrap.mean(
            [(row.question, float(row.first != row.second)) for row in judged]
        ),
        first_shown_rate=_first_shown(rows),
        single_order_win_rate=bootstrap.mean(
            [(row.question, POINTS[row.first]) for row in rows if row.first]
        ),
        length_controlled_win_rate=length_controlled(judged, bootstrap),
        missing=dict(
            Counter("+".join(sorted(set(row.reasons))) for row in rows if not row.outcome)
        ),
    )


def _first_shown(rows: Sequence[Compared]) -> float | None:
    """Share of verdicts for the answer shown first, among those for either."""
    to_first = [row.first == "win" for row in rows if row.first in ("win", "loss")]
    to_first += [row.second == "loss" for row in rows if row.second in ("win", "loss")]
    return sum(to_first) / len(to_first) if to_first else None


def length_controlled(rows: Sequence[Compared], bootstrap: Bootstrap) -> Number:
    """What the win rate would be if both models' answers were equally long: an approximation of
    AlpacaEval's.

    After Dubois et al., 2024 (arXiv 2404.04475): a logistic regression of the outcome on a model
    term and on ``tanh(length difference / its standard deviation)``, read off at a difference of 0.
    Left out is the published term for each instruction's difficulty, which is fitted over a whole
    leaderboard; the length coefficient has a unit L2 penalty here, where the published one is
    chosen by cross-validation. Outcomes are 1, 0.5, 0, not probabilities."""
    import numpy as np

    if not rows:
        return Number(None, 0)
    differences = np.array([row.length - row.against_length for row in rows], dtype=float)
    lengths = np.tanh(differences / (differences.std() or 1.0))
    points = np.array([POINTS[row.outcome] for row in rows if row.outcome])
    ids = {
        question: index
        for index, question in enumerate(dict.fromkeys(row.question for row in rows))
    }
    places = np.array([ids[row.question] for row in rows])

    def statistic(indices: Indices) -> Values:
        counts = np.stack([np.bincount(draw, minlength=len(ids)) for draw in indices])
        return _at_equal_length(lengths, points, counts[:, places].astype(float))

    value = float(_at_equal_length(lengths, points, np.ones((1, len(rows))))[0])
    low, high = bootstrap.interval(len(ids), statistic)
    return Number(value, len(rows), low, high)


def _at_equal_length(lengths: Values, points: Values, weights: Any) -> Values:
    """Newton's method for many weightings of the same rows at once: ``(draws, rows)`` weights →
    ``(draws,)`` rates.
    """
    import numpy as np

    strength, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(strength[:, None] + slope[:, None] * lengths, -30, 30)))
        error, curve = weights * (points - chance), weights * chance * (1 - chance) + 1e-9
        up, side = error.sum(axis=1), (error * lengths).sum(axis=1) - slope
        a, b, c = (
            curve.sum(axis=1),
            (curve * lengths).sum(axis=1),
            (curve * lengths**2).sum(axis=1) + 1.0,
        )
        determinant = a * c - b * b
        strength = np.clip(strength + np.clip((c * up - b * side) / determinant, -4, 4), -20, 20)
        slope = np.clip(slope + np.clip((a * side - b * up) / determinant, -4, 4), -20, 20)
    rates: Values = 1 / (1 + np.exp(-strength))
    return rates
