"""What can be checked of follow-up turns without a reader: numbers, spread, repeats, and signs of
leaning on context.

Takes rows of `mt-bench-8.jsonl` as plain data; gives sentences, one a fault. A person still has to
read the turns; the guideline says what for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from hubkit.metrics.lexical import leans_on_context, words
from hubkit.preference.context import dependence

PHENOMENA = (
    "ellipsis",
    "anaphora",
    "topic_return",
    "correction",
    "short",
    "clarification",
    "shift",
)
TURNS = 6  # of each question
SHORT_WORDS = 4  # the phenomenon `short` is a turn of at most so many words, and no other turn is
LEAST_SHARE = 0.03  # of all turns, for every phenomenon
MOST_SHARE = 0.25
LEAST_KINDS = 5  # phenomena among a question's six
LONGEST_WORDS = 60
MEAN_WORDS = (8.0, 20.0)
NEAR_DUPLICATE = 75.0  # rapidfuzz's ratio (0-100) of the words of two turns

# Signs that a turn continues something, besides those that the two measures of context dependence
# read.
_SIGNS: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "continues": (
            r"\A\W*(?:and|or|but|so|now|then|ok|okay|wait|hang on|oops|back|going back|go back|"
            r"coming back|earlier|same|another|forget|undo|redo|recount|with|without|"
            r"what (?:about|if))\b"
        ),
        "returns": r"\A\W*(?:in|from|for|of|out of|about|compared with) (?:the|your|my)\b",
        "speaks of an answer": (
            r"\byours?\b|\byou(?:'d| did| do|'ve)? (?:mean|meant|said|told|gave|give|picked|"
            r"choose|were|listed|explained|explain|use|used|have|include|see|rule|got|get|need|"
            r"call|ask|asked|change)\b"
        ),
        "points": (
            r"\b(?:here|there|instead|too|as well|again|before|earlier|at the start|"
            r"from the start|original|(?:the|a) (?:\w+ )?(?:ones?|version|two|three|four|five|"
            r"case)|the (?:very )?(?:first|second|third|last)|(?:first|second|third) (?:review|"
            r"book)|same (?:as|verdict))\b"
        ),
        "amends": (
            r"\b(?:sorry|i mean|i meant|my mistake|i should(?:'ve| have)|i forgot|i misread|"
            r"i mistyped|i copied|i got it wrong|i said|i was (?:too|being)|i never told|"
            r"i gave you|i'd rather|change of plan|actually)\b"
        ),
    }.items()
}


def signs(turn: str) -> list[str]:
    """Why `turn` seems to need what came before it; none where it could open a conversation.

    The two measures that the toolkit uses elsewhere (`leans_on_context`, `dependence`), then
    surface signs of English: too short to ask anything alone; begins as a continuation, or
    goes back; speaks of the other's answer; points back; amends what was said. No sign reads the
    context, so a sign is necessary for a mark here and proves nothing by itself."""
    reasons = ["measured: leans on context"] if leans_on_context(turn) else []
    if kind := dependence(turn):
        reasons.append(f"measured: {kind}")
    if len(turn.split()) <= SHORT_WORDS:
        reasons.append("too short to stand alone")
    return reasons + [name for name, sign in _SIGNS.items() if sign.search(turn)]


def faults(rows: Sequence[Mapping[str, Any]], ids: Sequence[int] | None = None) -> list[str]:
    """Every fault of the follow-ups in `rows`, as sentences; `ids` are the question ids that must
    be there.
    """
    turns = [(row["question_id"], turn) for row in rows for turn in row["follow_ups"]]
    problems = (
        []
        if ids is None or [row["question_id"] for row in rows] == list(ids)
        else ["not the questions' ids"]
    )
    for row in rows:
        problems += _of_question(row)
    for number, turn in turns:
        problems += [f"{number}: {problem}: {turn['text']!r}" for problem in _of_turn(turn)]
    return problems + list(_spread(turns)) + list(_repeats(turns))


def _of_question(row: Mapping[str, Any]) -> Iterator[str]:
    if len(row["follow_ups"]) != TURNS:
        yield f"{row['question_id']}: {len(row['follow_ups'])} follow-ups, not {TURNS}"
    kinds = {turn["phenomenon"] for turn in row["follow_ups"]}
    if len(kinds) < LEAST_KINDS:
        yield f"{row['question_id']}: only {', '.join(sorted(kinds))}"


def _of_turn(turn: Mapping[str, Any]) -> Iterator[str]:
    text, long = turn["text"], len(turn["text"].split())
    if turn["phenomenon"] not in PHENOMENA:
        yield f"{turn['phenomenon']} is no phenomenon"
    if not text.strip() or text != text.strip() or long > LONGEST_WORDS:
        yield f"blank, padded, or longer than {LONGEST_WORDS} words"
    if (turn["phenomenon"] == "short") != (long <= SHORT_WORDS):
        yield f"short means at most {SHORT_WORDS} words, and the other way round"
    if turn["needs_context"] == (turn["phenomenon"] == "shift"):
        yield "a shift stands alone, and nothing else does"
    if turn["needs_context"] and not signs(text):
        yield "marked as needing context, and nothing in it points to any"
    if not turn["needs_context"] and (why := signs(text)):
        yield f"marked as standing alone ({', '.join(why)})"


def _spread(turns: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[str]:
    counts = Counter(turn["phenomenon"] for _, turn in turns)
    for kind in PHENOMENA:
        share = counts[kind] / max(len(turns), 1)
        if not LEAST_SHARE <= share <= MOST_SHARE:
            yield (
                f"{kind} is {share:.1%} of all turns, "
                f"not between {LEAST_SHARE:.0%} and {MOST_SHARE:.0%}"
            )
    mean = fmean(len(turn["text"].split()) for _, turn in turns) if turns else 0.0
    if not MEAN_WORDS[0] <= mean <= MEAN_WORDS[1]:
        yield (
            f"{mean:.1f} words a turn on average, "
            f"not between {MEAN_WORDS[0]:g} and {MEAN_WORDS[1]:g}"
        )


def _repeats(turns: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[str]:
    from rapidfuzz import fuzz

    plain = [(number, " ".join(words(turn["text"]))) for number, turn in turns]
    for (first_id, first), (second_id, second) in combinations(plain, 2):
        if fuzz.ratio(first, second, score_cutoff=NEAR_DUPLICATE):
            yield f"{first_id} and {second_id} say nearly the same: {first!r}, {second!r}"
