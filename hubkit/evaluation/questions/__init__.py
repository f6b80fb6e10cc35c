"""The benchmark questions that ship: follow-ups to MT-Bench's questions, and conversations that are
all our own.

Takes MT-Bench's question file where a user has one; gives rows in FastChat's layout
(``question_id``, ``category``, ``turns``, optional ``reference``), eight human turns each. What is
written here is licensed cc-by-4.0; MT-Bench's own questions are not here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import TypedDict, cast

from hubkit.errors import SourceError
from hubkit.evaluation.questions.checks import PHENOMENA, faults, signs
from hubkit.untrusted import JsonObject, parse_json

__all__ = [
    "CHECKED",
    "FOLLOW_UPS",
    "GUIDELINE",
    "OFFLINE",
    "PHENOMENA",
    "checked",
    "extended",
    "faults",
    "files",
    "follow_ups",
    "offline",
    "signs",
    "summary",
]

_FOLDER = resources.files("hubkit.evaluation.questions")
FOLLOW_UPS, OFFLINE, CHECKED, GUIDELINE = (
    Path(str(_FOLDER / name))
    for name in ("mt-bench-8.jsonl", "offline-16.jsonl", "offline-checks.jsonl", "GUIDELINE.md")
)


class FollowUp(TypedDict):
    """A human turn after the first, and what makes it hard."""

    text: str
    needs_context: bool
    phenomenon: str


class QuestionRow(TypedDict, total=False):
    """A row of a question file, in FastChat's layout; those that ship have more."""

    question_id: int
    category: str
    turns: list[str]
    reference: list[str]
    follow_ups: list[FollowUp]
    checks: list[JsonObject]


def follow_ups() -> list[QuestionRow]:
    """Rows ``question_id``, ``category``, ``follow_ups``: six of ``text``, ``needs_context``,
    ``phenomenon`` each.
    """
    return list(_rows(FOLLOW_UPS))


def offline() -> list[QuestionRow]:
    """Sixteen conversations of eight human turns, two in each of MT-Bench's categories, none of
    them MT-Bench's.
    """
    return list(_rows(OFFLINE))


def checked() -> list[QuestionRow]:
    """Twelve conversations of three human turns, all our own, whose answers code can check
    (``checks``: a list of checks of each turn, in names of `hubkit.evaluation.checkers`).
    """
    return list(_rows(CHECKED))


def extended(questions: Path) -> list[QuestionRow]:
    """MT-Bench's questions from a file in FastChat's layout, each with our six turns after its
    two.

    A reference answer, where the file has some, is kept for the two turns that it is for. Raises
    `SourceError` when the file cannot be read, or lacks one of the 80 questions."""
    added = {row["question_id"]: row for row in follow_ups()}
    rows = {row["question_id"]: row for row in _rows(questions) if row.get("question_id") in added}
    if missing := sorted(set(added) - set(rows)):
        raise SourceError(
            f"{questions} lacks {len(missing)} of MT-Bench's 80 questions (such as {missing[0]}); "
            "give question.jsonl"
        )
    return [
        rows[number]
        | {"turns": [*rows[number]["turns"][:2], *(turn["text"] for turn in row["follow_ups"])]}
        for number, row in added.items()
    ]


def files() -> dict[str, Path]:
    """The files of the benchmark's dataset repo, by their path in it."""
    return {path.name: path for path in (FOLLOW_UPS, OFFLINE, CHECKED, GUIDELINE)}


def summary() -> JsonObject:
    """The numbers that its card shows: questions, turns, words, and turns by phenomenon."""
    rows = follow_ups()
    turns = [turn for row in rows for turn in row["follow_ups"]]
    lengths = [len(turn["text"].split()) for turn in turns]
    counts = Counter(turn["phenomenon"] for turn in turns)
    return {
        "questions": len(rows),
        "turns": len(turns),
        "needs_context": sum(turn["needs_context"] for turn in turns),
        "mean_words": fmean(lengths),
        "most_words": max(lengths),
        "phenomena": {name: counts[name] for name in PHENOMENA},
        "conversations": len(offline()),
        "checked": len(checked()),
    }


def _rows(path: Path) -> Iterator[QuestionRow]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path} cannot be read as a question file ({type(error).__name__}); give its path"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise SourceError(
                f"line {number} of {path} is not a JSON object; give a file of one object a line"
            )
        yield cast("QuestionRow", row)
