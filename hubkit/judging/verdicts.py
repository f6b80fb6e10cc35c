"""What a judge said, read strictly: one mark in double square brackets, or no verdict and a reason
why.

Takes a judge's text; gives a rating from 1 to 10, or which of two answers is better. The marks are
those of the published procedure (Zheng et al., 2023, arXiv 2306.05685): ``[[7]]`` or ``[[7.5]]``,
and ``[[A]]``, ``[[B]]``, ``[[C]]``. Where that takes the first mark it finds, or a mark in single
brackets, nothing is guessed here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Winner = Literal["A", "B", "tie"]
LOWEST, HIGHEST = 1.0, 10.0
_ANY_MARK = re.compile(r"\[\[[^\[\]]*\]\]")
_NUMBER_MARK = re.compile(r"\[\[\s*[-+]?[\d.]+\s*\]\]")
_RATING = re.compile(r"\[\[(\d{1,4}(?:\.\d{1,4})?)\]\]", re.ASCII)
_WORD_MARK = re.compile(r"\[\[\s*[A-Za-z]+\s*\]\]")
LONGEST_LINE = 300
_LETTER_MARK = re.compile(r"\[\[\s*[A-Za-z]\s*\]\]")
_WINNERS: dict[str, Winner] = {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie"}


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A verdict, or the reason why there is none: ``empty``, ``no_verdict``, ``several_verdicts``,
    ``malformed``, ``out_of_range``, or ``cut_off`` for a text without a verdict that ran out of
    tokens. `answer` is what `yes_or_no` and `line` read, whose further reasons are ``several_lines``
    and ``too_long``."""

    rating: float | None = None
    winner: Winner | None = None
    reason: str = ""
    answer: str = ""


Parse = Callable[[str, str], ParsedReply]


def rating(text: str, finish_reason: str = "stop") -> ParsedReply:
    """The one rating in `text`, from 1 to 10. Brackets around anything but a number (a matrix, say)
    do not count.
    """
    marks = _NUMBER_MARK.findall(text)
    if len(marks) != 1:
        return _none(text, marks, finish_reason)
    exact = _RATING.fullmatch(marks[0])
    if exact is None:
        return ParsedReply(reason="malformed")
    value = float(exact[1])
    return (
        ParsedReply(rating=value)
        if LOWEST <= value <= HIGHEST
        else ParsedReply(reason="out_of_range")
    )


def winner(text: str, finish_reason: str = "stop") -> ParsedReply:
    """Which answer `text` calls better: the one shown first (``A``), the second (``B``), or neither
    (``tie``).
    """
    marks = _LETTER_MARK.findall(text)
    if len(marks) != 1:
        return _none(text, marks, finish_reason)
    choice = _WINNERS.get(marks[0])
    return ParsedReply(winner=choice) if choice else ParsedReply(reason="malformed")


def yes_or_no(text: str, finish_reason: str = "stop") -> ParsedReply:
    """``yes`` or ``no``, from the one mark ``[[yes]]`` or ``[[no]]`` in `text`, in small letters or
    large.
    """
    marks = _WORD_MARK.findall(text)
    if len(marks) != 1:
        return _none(text, marks, finish_reason)
    answer = marks[0].strip("[] ").casefold()
    return (
        ParsedReply(answer=answer) if answer in ("yes", "no") else ParsedReply(reason="malformed")
    )


def line(text: str, finish_reason: str = "stop") -> ParsedReply:
    """`text` itself, where it is one whole line of at most `LONGEST_LINE` characters, quotes around
    it taken off.
    """
    lines = [raw_line.strip() for raw_line in text.splitlines() if raw_line.strip()]
    if not lines:
        return ParsedReply(reason="empty")
    if finish_reason == "length":
        return ParsedReply(reason="cut_off")
    if len(lines) > 1:
        return ParsedReply(reason="several_lines")
    content = lines[0]
    content = (
        content[1:-1].strip()
        if len(content) > 1 and content[0] == content[-1] and content[0] in "\"'"
        else content
    )
    if len(content) > LONGEST_LINE:
        return ParsedReply(reason="too_long")
    return ParsedReply(answer=content) if content else ParsedReply(reason="empty")


def _none(text: str, marks: list[str], finish_reason: str) -> ParsedReply:
    if marks:
        return ParsedReply(reason="several_verdicts")
    if not text.strip():
        return ParsedReply(reason="empty")
    if finish_reason == "length":
        return ParsedReply(reason="cut_off")
    return ParsedReply(reason="malformed" if _ANY_MARK.search(text) else "no_verdict")
