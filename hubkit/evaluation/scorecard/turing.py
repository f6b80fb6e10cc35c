"""A Turing judge: shown a person's next turn and a model's at the same real context, in both
orders, a judge says which one the person wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace

from hubkit.evaluation.aggregate import Compared, Outcome, Wins, wins
from hubkit.evaluation.scorecard.contexts import Context
from hubkit.judging import PromptedJudge, clipped, winner
from hubkit.metrics.lexical import words
from hubkit.metrics.scorecards import PEOPLE, Row
from hubkit.progress import Progress, silent
from hubkit.statistics import Bootstrap
from hubkit.untrusted import JsonObject

PROMPT = "turing-v1"
MEASURES = ("turing_rate", "turing_flips")
LENGTH_RATIO = 2.0
_MESSAGES, _CHARS = 4, 1500  # of a context, and of each message, what a judge is shown


@dataclass(frozen=True, slots=True)
class TuringPair:
    """A real context, what the person said there, and what a model said."""

    context: Context
    person: str
    model: str


@dataclass(frozen=True)
class TuringResult:
    """What a Turing judge found of one model.

    Attributes:
        wins: Its ``win_rate`` is how often the model is taken for the person: 0.5 where a judge
            cannot tell, as an always undecided or position-biased judge also gives; 0 where it
            always can. Its ``flip_rate`` says how far the judge can be believed.
        pairs: How many were asked about.
        unmatched: Pairs left out because one turn is more than `LENGTH_RATIO` times as long."""

    wins: Wins
    pairs: int
    unmatched: int

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return {**asdict(self), "wins": self.wins.to_dict()}


def pairs_of(contexts: Sequence[Context], turns: Mapping[int, str]) -> list[TuringPair]:
    """Pair what people said at `contexts` with a model's turns, by position there; empty turns and
    contexts at which people ended are left out."""
    return [
        TuringPair(context, context.real, turns[number])
        for number, context in enumerate(contexts)
        if context.real and turns.get(number, "").strip()
    ]


def length_matched(
    pairs: Iterable[TuringPair], ratio: float = LENGTH_RATIO
) -> tuple[list[TuringPair], int]:
    """Keep the pairs in which neither turn has more than `ratio` times the other's words.

    Without this a judge that only looks at length tells most models from people.

    Returns:
        The pairs, and how many were left out."""
    matched, left_out = [], 0
    for pair in pairs:
        short, long = sorted((1 + len(words(pair.person)), 1 + len(words(pair.model))))
        if long <= ratio * short:
            matched.append(pair)
        else:
            left_out += 1
    return matched, left_out


def turing(
    judge: PromptedJudge,
    pairs: Sequence[TuringPair],
    *,
    ratio: float = LENGTH_RATIO,
    most: int | None = None,
    bootstrap: Bootstrap | None = None,
    progress: Progress = silent,
) -> TuringResult:
    """Ask `judge` (with the prompt `PROMPT` of `hubkit.judging.turing_prompts`) which turn of each
    pair the person wrote, in both orders.

    Two different verdicts on one pair are a tie, so a judge that goes by position finds nothing.

    Args:
        ratio: See `length_matched`.
        most: At most so many of the pairs that are left."""
    matched, unmatched = length_matched(pairs, ratio)
    matched = matched[:most] if most else matched
    questions: list[tuple[str, dict[str, str]]] = []
    for number, pair in enumerate(matched):
        conversation = clipped(pair.context.messages[-_MESSAGES:], _CHARS)
        for order, (first, second) in (
            ("model first", (pair.model, pair.person)),
            ("person first", (pair.person, pair.model)),
        ):
            values = {
                "conversation": conversation,
                "turn_a": first[:_CHARS],
                "turn_b": second[:_CHARS],
            }
            questions.append((f"{number}/{order}", values))
    answers = judge.ask(questions, winner, progress)
    first_outcomes: dict[str, Outcome] = {"A": "win", "B": "loss", "tie": "tie"}
    second_outcomes: dict[str, Outcome] = {"A": "loss", "B": "win", "tie": "tie"}
    rows = []
    for number, pair in enumerate(matched):
        model_first = first_outcomes.get(answers.get(f"{number}/model first", ""))
        person_first = second_outcomes.get(answers.get(f"{number}/person first", ""))
        rows.append(
            Compared(
                question=pair.context.id,
                category="all",
                turn=1,
                first=model_first,
                second=person_first,
                reasons=() if model_first and person_first else ("no_verdict",),
                length=len(pair.model),
                against_length=len(pair.person),
            )
        )
    return TuringResult(wins(rows, bootstrap or Bootstrap()), len(matched), unmatched)


@dataclass(frozen=True)
class TuringTest:
    """A Turing judge as a scorecard asks it.

    Attributes:
        open: Gives the judge, asked `PROMPT`, for the length of a block.
        judge: What the results say that it is.
        pairs: At most so many pairs a player; each is asked about twice.
        stats: What the judge's answers took, once they are there."""

    open: Callable[[], AbstractContextManager[PromptedJudge]]
    judge: str
    pairs: int
    stats: JsonObject = field(default_factory=dict)

    def judged(
        self,
        rows: Sequence[Row],
        contexts: Sequence[Context],
        turns: Mapping[str, Mapping[int, str]],
        bootstrap: Bootstrap,
        progress: Progress = silent,
    ) -> list[Row]:
        """Add `MEASURES` to the row of every player, whose `turns` are by position in
        `contexts`."""
        with self.open() as judge:
            results = {
                name: turing(
                    judge,
                    pairs_of(contexts, turn_text),
                    most=self.pairs,
                    bootstrap=bootstrap,
                    progress=progress,
                )
                for name, turn_text in turns.items()
            }
            self.stats.update(judge.stats)
        return [row if row.name == PEOPLE else _with_result(row, results[row.name]) for row in rows]

    def settings(self) -> JsonObject:
        """What a reader must know of the judge."""
        return {
            "judge": self.judge,
            "pairs": self.pairs,
            "length_ratio": LENGTH_RATIO,
            "prompts": self.stats.get("prompts"),
            "unusable_attempts": self.stats.get("unusable_attempts", {}),
            "stopped": self.stats.get("stopped"),
        }


def _with_result(row: Row, result: TuringResult) -> Row:
    wins_of, missing, values = result.wins, dict(row.missing), dict(row.values)
    for measure, number in (
        ("turing_rate", wins_of.win_rate),
        ("turing_flips", wins_of.flip_rate),
    ):
        if number.value is None:
            missing[measure] = "no pair is alike in length, or the judge gave no verdict"
        else:
            missing.pop(measure, None)
            values[measure] = asdict(number)
    counts = {
        "turing_pairs": result.pairs,
        "turing_unmatched": result.unmatched,
        "turing_without_verdict": sum(wins_of.missing.values()),
    }
    return replace(row, values=values, missing=missing, counts={**row.counts, **counts})
