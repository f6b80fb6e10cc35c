"""What is asked of a model, in one form for all tests: a fixed history, user turns to come, and
what its answers are scored by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hubkit.conversation import Message

Mode = Literal["single", "pairwise", "criteria", "checks"]
"""How answers are scored: a judge's grade, a judge's choice between two, a judge's yes or no to
each criterion, or checkers in code."""
MODES: tuple[Mode, ...] = ("single", "pairwise", "criteria", "checks")

# Temperature of answers by category: FastChat's llm_judge (common.py, `temperature_config`); 0.7
# elsewhere.
TEMPERATURES: Mapping[str, float] = {
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class Criterion:
    """A yes-or-no question about the last answer, and which of the two passes."""

    text: str
    passes: Literal["yes", "no"] = "yes"


@dataclass(frozen=True, slots=True)
class Check:
    """A checker in code by `name`, and what it is given besides the answer."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """One item.

    Attributes:
        turns: User turns to come, in order; each answer is part of the next turn's context.
        reference: Correct answers to the first of them.
        messages: What was said before them, the assistant's turns included.
        criteria: What a judge is asked about the last answer, in mode ``criteria``.
        checks: Checkers of each turn's answer, in mode ``checks``.
        checklist: What a grading or comparing judge is told to look at.
        group: Items of one group are scored together: by the lowest grade of them.
        revealed: Whether `turns` are parts of one task that a simulated user words and reveals."""

    id: str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    criteria: tuple[Criterion, ...] = ()
    checks: tuple[tuple[Check, ...], ...] = ()
    checklist: tuple[str, ...] = ()
    group: str = ""
    revealed: bool = False

    @property
    def temperature(self) -> float:
        """At which its answers are sampled."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)

    @property
    def first_turns(self) -> Question:
        """Without anything but its identity and turns: what older runs were identified by."""
        return Question(self.id, self.category, self.turns)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A set of items.

    Attributes:
        files: ``{name, sha256}`` of what it was read from; a benchmark made in Python has a name
            and no digest.
        recorded: Answers that came with the questions: who answered → question id → answers.
        length_margin: A slight win by an answer that is longer by more characters is a tie.
        macro: Whether the headline is the mean over categories.
        notes: What a reader must know beside its numbers."""

    name: str
    questions: list[Question]
    files: list[dict[str, str]]
    recorded: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    length_margin: int | None = None
    macro: bool = False
    notes: tuple[str, ...] = ()

    @property
    def most_turns(self) -> int:
        """User turns of its longest conversation; a fixed history counts as two."""
        return max(len(q.turns) + (2 if q.messages else 0) for q in self.questions)

    def part(self, *, questions: int | None, turns: int | None) -> Benchmark:
        """Keep only the first `questions`, spread over the categories in order, and only their
        first `turns` turns."""
        chosen = _spread(self.questions, questions) if questions else self.questions
        cut = [
            q
            if turns is None or turns >= len(q.turns)
            else replace(q, turns=q.turns[:turns], checks=q.checks[:turns], criteria=())
            for q in chosen
        ]
        return replace(self, questions=cut)


def _spread(questions: list[Question], number: int) -> list[Question]:
    """`number` questions, taken round by round from the categories, in the file's order; a group is
    taken as a whole."""
    by_category: dict[str, list[Question]] = {}
    for question in questions:
        by_category.setdefault(question.category, []).append(question)
    rounds = [
        q
        for position in range(len(questions))
        for group in by_category.values()
        for q in group[position : position + 1]
    ]
    chosen: dict[str, None] = {}
    for question in rounds:
        if len(chosen) == number:
            break
        chosen.setdefault(question.group or question.id)
    return [question for question in questions if (question.group or question.id) in chosen]
