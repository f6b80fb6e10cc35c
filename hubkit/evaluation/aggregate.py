"""From verdicts to numbers: mean grades, win rates, pass rates, flip rates, with intervals over
questions.

Takes one row per judged answer or pair of answers; gives plain data. Means are over judgments that
have a verdict, as in the published procedure (Zheng et al., 2023, arXiv 2306.05685); what has none
is counted apart, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Literal, TypeVar

from hubkit.evaluation.length_control import equal_length_win_rate
from hubkit.statistics import Bootstrap, Number, PairedDifference
from hubkit.untrusted import JsonObject

Outcome = Literal["win", "tie", "loss"]
POINTS: dict[Outcome, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}
_REWARD: dict[Outcome, float] = {"win": 0.5, "tie": 0.0, "loss": -0.5}


@dataclass(frozen=True, slots=True)
class Rated:
    """One answer: its grade from 1 to 10, or None and the reason why it has none. `length` is the
    answer's, in characters; answers of one `group` count as the lowest of them."""

    question: str
    category: str
    turn: int
    rating: float | None
    reason: str = ""
    length: int = 0
    group: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """One answer and which of its criteria it meets; or the reason why that is not known of all of
    them."""

    question: str
    category: str
    turn: int
    passed: tuple[bool, ...]
    reason: str = ""
    length: int = 0

    @property
    def all_passed(self) -> float | None:
        """1 where all criteria are met, 0 where one is not, None without a verdict on each."""
        return None if self.reason else float(all(self.passed))


@dataclass(frozen=True, slots=True)
class Compared:
    """Two answers to the same turn, judged in both orders.

    `first` is the outcome for the model with its answer shown first, `second` with it shown second;
    None where there is no verdict (`reasons` say why). `length` and `against_length` are
    characters; `margins` say how decided either verdict is (2: much better)."""

    question: str
    category: str
    turn: int
    first: Outcome | None
    second: Outcome | None
    reasons: tuple[str, ...] = ()
    length: int = 0
    against_length: int = 0
    margins: tuple[int, int] = (1, 1)

    @property
    def outcome(self) -> Outcome | None:
        """What both orders agree on; a tie when they do not; None unless both have a verdict."""
        if self.first is None or self.second is None:
            return None
        return self.first if self.first == self.second else "tie"

    @property
    def reward(self) -> float:
        """WildBench's reward, from -1 (much worse) to 1 (much better), mean over both orders."""
        pairs = zip((self.first, self.second), self.margins, strict=True)
        return fmean(_REWARD[outcome] * margin for outcome, margin in pairs if outcome)


class _Table:
    """What tables of all scoring kinds share."""

    categories: dict[str, Number]

    @property
    def macro(self) -> float | None:
        """The mean over categories, each of the same weight."""
        values = [n.value for n in self.categories.values() if n.value is not None]
        return fmean(values) if values else None

    def to_dict(self) -> JsonObject:
        """Plain data, `macro` included."""
        return {**asdict(self), "macro": self.macro}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Scores(_Table):
    """Grades of one model: over all, by turn (from 1) and by category. ``judgments == mean.n +
    sum(missing)``, where there are no groups."""

    mean: Number
    turns: dict[int, Number]
    categories: dict[str, Number]
    judgments: int
    missing: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Passes(_Table):
    """Criteria met by one model: `rate` is the share of answers that meet all of theirs, `parts`
    the share of criteria met. ``judgments == rate.n + sum(missing)``."""

    rate: Number
    parts: Number
    turns: dict[int, Number]
    categories: dict[str, Number]
    judgments: int
    missing: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Wins(_Table):
    """A model against another: `win_rate` counts a tie as half. ``pairs == wins + ties + losses +
    sum(missing)``.

    Attributes:
        flip_rate: Share of pairs whose two orders disagree.
        first_shown_rate: How often a verdict that is no tie goes to the answer that was shown first
            (0.5: no bias).
        single_order_win_rate: What the first order alone would have said.
        equal_length_win_rate: See `hubkit.evaluation.length_control.equal_length_win_rate`.
        reward: See `Compared.reward`; None unless a judge said how decided its verdicts are."""

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
    equal_length_win_rate: Number
    missing: dict[str, int] = field(default_factory=dict)
    reward: Number | None = None


Row = TypeVar("Row", Rated, Compared, Checked)
Key = TypeVar("Key")


def scores(rows: Sequence[Rated], bootstrap: Bootstrap) -> Scores:
    """Aggregate grades: the mean over all graded answers, per turn, per category."""

    def mean(part: Iterable[Rated]) -> Number:
        return bootstrap.mean(
            [(row.question, row.rating) for row in part if row.rating is not None]
        )

    rows = _lowest_of_groups(rows)
    missing = Counter(row.reason for row in rows if row.rating is None)
    return Scores(
        mean=mean(rows),
        turns=_by(rows, lambda row: row.turn, mean),
        categories=_by(rows, lambda row: row.category, mean),
        judgments=len(rows),
        missing=dict(missing),
    )


def _lowest_of_groups(rows: Sequence[Rated]) -> list[Rated]:
    """One row a group: that of its lowest grade, or of the first grade that is missing."""
    lowest: dict[str, Rated] = {}
    for row in rows:
        key = row.group or f"{row.question}\x1f{row.turn}"
        present = lowest.get(key)
        if present is None or (
            present.rating is not None and (row.rating is None or row.rating < present.rating)
        ):
            lowest[key] = row
    return list(lowest.values())


def passes(rows: Sequence[Checked], bootstrap: Bootstrap) -> Passes:
    """Aggregate met criteria: the share of answers that meet all, per turn, per category."""

    def rate(part: Iterable[Checked]) -> Number:
        return bootstrap.mean(
            [(row.question, row.all_passed) for row in part if row.all_passed is not None]
        )

    each = [(r.question, float(met)) for r in rows if not r.reason for met in r.passed]
    return Passes(
        rate=rate(rows),
        parts=bootstrap.mean(each),
        turns=_by(rows, lambda row: row.turn, rate),
        categories=_by(rows, lambda row: row.category, rate),
        judgments=len(rows),
        missing=dict(Counter(row.reason for row in rows if row.reason)),
    )


def _by(
    rows: Sequence[Row], key: Callable[[Row], Key], mean: Callable[[list[Row]], Number]
) -> dict[Key, Number]:
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return {name: mean(group) for name, group in groups.items()}


def difference(
    model: Sequence[Rated] | Sequence[Checked],
    against: Sequence[Rated] | Sequence[Checked],
    bootstrap: Bootstrap,
) -> tuple[PairedDifference, int]:
    """Compare two models over the answers that both have a verdict for, by question.

    Returns:
        The difference, and how many answers only one has a verdict for."""
    first, second = _values(model), _values(against)
    return bootstrap.difference(first, second), len(first.keys() ^ second.keys())


def _values(rows: Sequence[Rated] | Sequence[Checked]) -> Mapping[tuple[str, int], float]:
    values = {}
    for row in rows:
        value = row.rating if isinstance(row, Rated) else row.all_passed
        if value is not None:
            values[row.question, row.turn] = value
    return values


def wins(rows: Sequence[Compared], bootstrap: Bootstrap) -> Wins:
    """Aggregate comparisons in both orders: a disagreement is a tie, as in the published
    procedure."""

    def rate(part: Iterable[Compared]) -> Number:
        return bootstrap.mean([(row.question, POINTS[row.outcome]) for row in part if row.outcome])

    judged = [row for row in rows if row.outcome]
    count = Counter(row.outcome for row in judged)
    decided = any(2 in row.margins for row in judged)
    return Wins(
        win_rate=rate(rows),
        turns=_by(rows, lambda row: row.turn, rate),
        categories=_by(rows, lambda row: row.category, rate),
        wins=count["win"],
        ties=count["tie"],
        losses=count["loss"],
        pairs=len(rows),
        flip_rate=bootstrap.mean([(r.question, float(r.first != r.second)) for r in judged]),
        first_shown_rate=_first_shown(rows),
        single_order_win_rate=bootstrap.mean(
            [(row.question, POINTS[row.first]) for row in rows if row.first]
        ),
        equal_length_win_rate=equal_length_win_rate(
            [r.question for r in judged],
            [POINTS[r.outcome] for r in judged if r.outcome],
            [r.length - r.against_length for r in judged],
            bootstrap,
        ),
        missing=dict(
            Counter("+".join(sorted(set(row.reasons))) for row in rows if not row.outcome)
        ),
        reward=bootstrap.mean([(r.question, r.reward) for r in judged]) if decided else None,
    )


def _first_shown(rows: Sequence[Compared]) -> float | None:
    """Share of verdicts for the answer shown first, among those for either."""
    to_first = [row.first == "win" for row in rows if row.first in ("win", "loss")]
    to_first += [row.second == "loss" for row in rows if row.second in ("win", "loss")]
    return sum(to_first) / len(to_first) if to_first else None
