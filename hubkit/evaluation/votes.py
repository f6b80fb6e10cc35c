"""People's votes as the Spaces keep them: which of them count, and what they say.

Takes rows of a dataset of votes; gives win rates and Bradley-Terry strengths with intervals over
visitors, and what share was screened out, by reason. A vote holds no text: which of two contestants
was chosen, by which visitor, and how fast."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from hubkit.errors import SourceError
from hubkit.metrics.bradley_terry import Comparison, bradley_terry
from hubkit.statistics import Bootstrap, Number
from hubkit.untrusted import JsonObject, parse_json

POINTS = {"left": 1.0, "tie": 0.5, "right": 0.0}
PERSON = "person"
_KEYS = ("kind", "pair", "left", "right", "visitor", "choice")


@dataclass(frozen=True, slots=True)
class Vote:
    """One vote: `choice` is left, right or tie, of the contestants `left` and `right`."""

    kind: str
    pair: str
    left: str
    right: str
    visitor: str
    choice: str
    seconds: float
    left_words: int = 0
    right_words: int = 0


@dataclass(frozen=True, slots=True)
class Screen:
    """What makes a vote not count. A visitor that fails a rule loses all of its votes.

    Attributes:
        seconds: A visitor whose median vote took less did not read.
        vote_seconds: A single vote that took less.
        one_sided: A visitor with this many choices of a side and none of the other looked at
            sides: by chance 1 in 2^(n-1).
        most: Votes of one visitor beyond these."""

    seconds: float = 2.0
    vote_seconds: float = 1.0
    one_sided: int = 8
    most: int = 100


@dataclass(frozen=True)
class Standing:
    """What votes of one kind say.

    Attributes:
        kind: ``who-is-human`` or ``which-is-better``.
        votes: How many count.
        visitors: Who cast them.
        rates: (first, second) → how often the first was chosen, ties half; of a model against a
            person, how often it was taken for the person.
        left_rate: How often the left side was chosen: 0.5 where sides do not matter.
        strengths: Contestant → log odds against `anchor`.
        anchor: The person, or the contestant with the most votes."""

    kind: str
    votes: int
    visitors: int
    rates: dict[tuple[str, str], Number]
    left_rate: Number
    strengths: dict[str, Number]
    anchor: str


@dataclass(frozen=True)
class VoteReport:
    """All kinds, and what was screened out of how many."""

    total: int
    screened: dict[str, int]
    standings: list[Standing]
    screen: Screen = field(default_factory=Screen)

    @property
    def screened_share(self) -> float:
        """The share that does not count."""
        return sum(self.screened.values()) / self.total if self.total else 0.0

    def to_dict(self) -> JsonObject:
        """Plain data."""
        standings = [
            {
                **asdict(standing),
                "rates": [
                    {"model": first, "against": second, **asdict(number)}
                    for (first, second), number in standing.rates.items()
                ],
            }
            for standing in self.standings
        ]
        return {
            "total": self.total,
            "screened": self.screened,
            "screened_share": self.screened_share,
            "screen": asdict(self.screen),
            "standings": standings,
        }


def read_votes(files: Iterable[Path]) -> tuple[list[Vote], int]:
    """Read votes out of JSON lines.

    Returns:
        The votes, and how many rows are none.

    Raises:
        SourceError: A file cannot be read as text."""
    votes: list[Vote] = []
    malformed = 0
    for file in files:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{file} cannot be read as votes: {error}") from None
        for line in lines:
            vote = _vote(line)
            if vote is None:
                malformed += bool(line.strip())
            else:
                votes.append(vote)
    return votes, malformed


def _vote(line: str) -> Vote | None:
    try:
        row = parse_json(line)
        seconds = float(row.get("seconds", 0.0))
        words = [int(row.get(f"{side}_words", 0)) for side in ("left", "right")]
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None
    texts = {key: str(row[key]) for key in _KEYS if isinstance(row.get(key), str) and row[key]}
    if len(texts) < len(_KEYS) or texts["choice"] not in POINTS:
        return None
    return Vote(**texts, seconds=seconds, left_words=words[0], right_words=words[1])


def screened(
    votes: Sequence[Vote], screen: Screen | None = None
) -> tuple[list[Vote], dict[str, int]]:
    """Leave out what does not count.

    Returns:
        The votes that count, and reason → how many do not."""
    screen = screen or Screen()
    by_visitor: dict[str, list[Vote]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    voted: set[tuple[str, str]] = set()
    for vote in votes:
        if (vote.visitor, vote.pair) in voted or vote.left == vote.right:
            reasons["repeated" if vote.left != vote.right else "one contestant"] += 1
            continue
        voted.add((vote.visitor, vote.pair))
        by_visitor[vote.visitor].append(vote)
    counting: list[Vote] = []
    for visitor_votes in by_visitor.values():
        if reason := _fault(visitor_votes, screen):
            reasons[reason] += len(visitor_votes)
            continue
        slow = [vote for vote in visitor_votes if vote.seconds >= screen.vote_seconds]
        counting += slow[: screen.most]
        reasons["too fast"] += len(visitor_votes) - len(slow)
        reasons["too many"] += max(0, len(slow) - screen.most)
    return counting, {reason: number for reason, number in reasons.items() if number}


def _fault(visitor_votes: Sequence[Vote], screen: Screen) -> str | None:
    """Why none of a visitor's votes counts; None where they do."""
    if len(visitor_votes) >= 3 and median(vote.seconds for vote in visitor_votes) < screen.seconds:
        return "too fast"
    sides = {vote.choice for vote in visitor_votes if vote.choice != "tie"}
    decided = sum(vote.choice != "tie" for vote in visitor_votes)
    return "one-sided" if len(sides) == 1 and decided >= screen.one_sided else None


def report(
    files: Iterable[Path], *, screen: Screen | None = None, bootstrap: Bootstrap | None = None
) -> VoteReport:
    """Say what the votes in `files` come to.

    Raises:
        SourceError: There is no vote in them."""
    screen, bootstrap = screen or Screen(), bootstrap or Bootstrap()
    votes, malformed = read_votes(files)
    if not votes:
        raise SourceError(
            "there is no vote to report; name a dataset that a Space keeps votes in, or its files"
        )
    counting, reasons = screened(votes, screen)
    if malformed:
        reasons["no vote"] = malformed
    kinds: dict[str, list[Vote]] = defaultdict(list)
    for vote in counting:
        kinds[vote.kind].append(vote)
    standings = [
        _standing(kind, kind_votes, bootstrap) for kind, kind_votes in sorted(kinds.items())
    ]
    return VoteReport(len(votes) + malformed, reasons, standings, screen)


def _standing(kind: str, votes: Sequence[Vote], bootstrap: Bootstrap) -> Standing:
    pairs: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    comparisons = []
    number_of: Counter[str] = Counter()
    for vote in votes:
        points = POINTS[vote.choice]
        first, second = sorted((vote.left, vote.right), key=lambda name: (name == PERSON, name))
        pairs[first, second].append((vote.visitor, points if first == vote.left else 1 - points))
        comparisons.append(Comparison(vote.visitor, vote.left, vote.right, points))
        number_of.update((vote.left, vote.right))
    anchor = PERSON if PERSON in number_of else number_of.most_common(1)[0][0]
    return Standing(
        kind=kind,
        votes=len(votes),
        visitors=len({vote.visitor for vote in votes}),
        rates={pair: bootstrap.mean(values) for pair, values in sorted(pairs.items())},
        left_rate=bootstrap.mean((vote.visitor, POINTS[vote.choice]) for vote in votes),
        strengths=bradley_terry(comparisons, anchor, bootstrap),
        anchor=anchor,
    )


def tables(result: VoteReport) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Title → column names and rows as text: a table a kind of pairs, and one of strengths."""
    content = {}
    for standing in result.standings:
        title = f"{standing.kind}: {standing.votes} votes of {standing.visitors} visitors"
        rows = [
            [first, second, str(number.n), _cell(number, "{:.2f}")]
            for (first, second), number in standing.rates.items()
        ]
        content[title] = (["model", "against", "votes", "chosen"], rows)
        ranked = sorted(
            standing.strengths.items(), key=lambda entry: -(entry[1].value or float("-inf"))
        )
        content[f"{standing.kind}: strengths (log odds against {standing.anchor})"] = (
            ["contestant", "votes", "strength"],
            [[name, str(number.n), _cell(number, "{:+.2f}")] for name, number in ranked],
        )
    return content


def notes(result: VoteReport) -> list[str]:
    """What was screened out, and whether sides mattered."""
    parts = ", ".join(f"{number} {reason}" for reason, number in sorted(result.screened.items()))
    lines = [
        f"{result.total} votes; {result.screened_share:.1%} screened out"
        f"{f' ({parts})' if parts else ''}. Intervals draw visitors."
    ]
    lines += [
        f"{standing.kind}: the left side was chosen {_cell(standing.left_rate, '{:.2f}')} of the "
        "time."
        for standing in result.standings
    ]
    return lines


def _cell(number: Number, form: str) -> str:
    if number.value is None:
        return "–"
    if number.low is None or number.high is None:
        return form.format(number.value)
    return f"{form.format(number.value)} [{form.format(number.low)}, {form.format(number.high)}]"
