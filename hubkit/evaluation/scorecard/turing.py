"""A Turing judge: shown a person's next turn and a model's at the same real context, in both
orders, a judge says which one the person wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hubkit.evaluation.aggregate import Compared, Outcome, Wins, wins
from hubkit.evaluation.scorecard.contexts import Context
from hubkit.judging import PromptedJudge, clipped, winner
from hubkit.metrics.lexical import words
from hubkit.metrics.statistics import Bootstrap
from hubkit.progress import Progress, silent

PROMPT = "turing-v1"
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

    def to_dict(self) -> dict[str, Any]:
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
    bootstrap: Bootstrap | None = None,
    progress: Progress = silent,
) -> TuringResult:
    """Ask `judge` (with the prompt `PROMPT` of `hubkit.judging.turing_prompts`) which turn of each
    pair the person wrote, in both orders.

    Two different verdicts on one pair are a tie, so a judge that goes by position finds nothing."""
    matched, unmatched = length_matched(pairs, ratio)
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
