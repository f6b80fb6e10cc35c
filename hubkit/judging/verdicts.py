"""Reads what a judge wrote: one verdict in double square brackets, or none and the reason why.

The marks are those of the published procedure (Zheng et al., 2023, arXiv 2306.05685): ``[[7]]``,
``[[7.5]]`` and ``[[A]]``, ``[[B]]``, ``[[C]]``; WildBench's five-way ``[[A++]]`` … ``[[B++]]``; and
``[[yes]]``, ``[[no]]``. They are read in the spellings that judges really use: full-width, escaped,
with spaces, ``[[7/10]]``. Thoughts are dropped first. Marks that say the same are one verdict; of
marks that differ, the one on a line of its own with at most a label (``Rating: [[2]]``) counts, and
else none does: nothing is guessed, where the published procedure takes the first mark it finds."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from hubkit.untrusted import JsonObject, parse_json

Winner = Literal["A", "B", "tie"]
LOWEST, HIGHEST = 1.0, 10.0
LONGEST_LINE = 300
_MARK = re.compile(r"\[\[([^\[\]]*)\]\]")
_VERDICT_LINE = re.compile(r"[\W_]*(?:[^\W\d_][\w ]{0,40}[::])?[\W_]*?(\[\[[^\[\]]*\]\])[\W_]*\Z")
_NUMBER = re.compile(r"[-+]?[\d.]+(?:\s*/\s*\d+)?")
_RATING = re.compile(r"(\d{1,4}(?:\.\d{1,4})?)(?:\s*/\s*10)?", re.ASCII)
_WINNERS: dict[str, tuple[Winner, int]] = {
    "A": ("A", 1),
    "B": ("B", 1),
    "C": ("tie", 0),
    "A++": ("A", 2),
    "A+": ("A", 1),
    "A=B": ("tie", 0),
    "B+": ("B", 1),
    "B++": ("B", 2),
}
_THOUGHT_ENDS = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_THOUGHT_BEGINS = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\W*(?:(?:i['’]?m|i am) (?:very |so |really )?sorry|sorry|apologies|i apologi[sz]e|"
    r"i (?:can(?:no|['’])?t|am unable to|am not able to|won['’]t))\b",
    re.IGNORECASE,
)
_REFUSED_TASK = re.compile(
    r"\b(?:can(?:no|['’])?t|unable to|not able to|won['’]t)\s+(?:\w+\s+){0,2}"
    r"(?:evaluate|judge|grade|rate|assess|assist|help|compare|comply|provide|review)",
    re.IGNORECASE,
)
Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A verdict, or the `reason` why there is none.

    Reasons are ``empty``, ``no_verdict``, ``refused`` (in words), ``several_verdicts``,
    ``malformed``, ``out_of_range``, and ``cut_off`` for a text that ran out of tokens, or out of
    thoughts, before its verdict; of `line` also ``several_lines`` and ``too_long``. `answer` is
    what was read, as text; `margin` how decided a winner is: 2 for ``[[A++]]``, else
    1."""

    rating: float | None = None
    winner: Winner | None = None
    reason: str = ""
    answer: str = ""
    margin: int = 1


Parse = Callable[[str, str], ParsedReply]


def visible_text(text: str) -> str | None:
    """Drop a judge's thoughts.

    Returns:
        What follows the last closing tag; None where a thought was begun and never ended."""
    remainder = _THOUGHT_ENDS.split(text)[-1]
    return None if _THOUGHT_BEGINS.match(remainder.lstrip()) else remainder


def rating(text: str, finish_reason: str = "stop") -> ParsedReply:
    """Read the rating in `text`, from 1 to 10.

    Brackets around anything but a number (a matrix, say) do not count."""

    def value(mark: str) -> float | None:
        exact = _RATING.fullmatch(mark)
        return float(exact[1]) if exact else None

    mark = _only_mark(text, finish_reason, _NUMBER, value)
    if isinstance(mark, ParsedReply):
        return mark
    if not LOWEST <= mark <= HIGHEST:
        return ParsedReply(reason="out_of_range")
    return ParsedReply(rating=mark)


def winner(text: str, finish_reason: str = "stop") -> ParsedReply:
    """Read which answer `text` calls better: the one shown first (``A``), the second (``B``), or
    neither (``tie``)."""
    mark = _only_mark(text, finish_reason, re.compile(r"[A-Za-z](?:=B|\+{0,2})"), _WINNERS.get)
    if isinstance(mark, ParsedReply):
        return mark
    return ParsedReply(winner=mark[0], margin=mark[1], answer=mark[0])


def yes_or_no(text: str, finish_reason: str = "stop") -> ParsedReply:
    """Read ``yes`` or ``no`` from the mark ``[[yes]]`` or ``[[no]]``, in small letters or large."""

    def value(mark: str) -> str | None:
        return mark.casefold() if mark.casefold() in ("yes", "no") else None

    mark = _only_mark(text, finish_reason, re.compile(r"[A-Za-z]+"), value)
    return mark if isinstance(mark, ParsedReply) else ParsedReply(answer=mark)


def line(text: str, finish_reason: str = "stop") -> ParsedReply:
    """Read `text` itself, where it is one whole line of at most `LONGEST_LINE` characters, quotes
    around it removed."""
    visible = visible_text(text)
    if visible is None:
        return ParsedReply(reason="cut_off")
    lines = [stripped for raw in visible.splitlines() if (stripped := raw.strip())]
    if not lines:
        return ParsedReply(reason="empty")
    if finish_reason == "length":
        return ParsedReply(reason="cut_off")
    if len(lines) > 1:
        return ParsedReply(reason="several_lines")
    content = lines[0]
    if len(content) > 1 and content[0] == content[-1] and content[0] in "\"'":
        content = content[1:-1].strip()
    if len(content) > LONGEST_LINE:
        return ParsedReply(reason="too_long")
    return ParsedReply(answer=content) if content else ParsedReply(reason="empty")


@dataclass(frozen=True, slots=True)
class VerdictSchema:
    """A JSON schema for what `read` reads from marks."""

    read: Parse
    schema: Mapping[str, object]

    def parse(self, text: str, finish_reason: str = "stop") -> ParsedReply:
        """Read the ``verdict`` (or ``rating``, ``winner``) of a JSON object as if it was a mark; a
        text that is no such object is read as without a schema."""
        try:
            reply = parse_json(visible_text(text) or "")
        except ValueError:
            reply = None
        values = (
            [reply[key] for key in _VERDICT_KEYS if key in reply] if isinstance(reply, dict) else []
        )
        return self.read(f"[[{values[0]}]]" if values else text, finish_reason)


_VERDICT_KEYS = ("verdict", "rating", "winner")


def verdict_schema(read: Parse) -> VerdictSchema | None:
    """The schema for what `read` reads: an explanation, then a verdict; None for text of one's own
    (`line`)."""
    verdict: JsonObject
    if read is rating:
        verdict = {"type": "number"}  # bounds are refused by some servers
    elif read is winner:
        verdict = {"type": "string", "enum": list(_WINNERS)}
    elif read is yes_or_no:
        verdict = {"type": "string", "enum": ["yes", "no"]}
    else:
        return None
    schema = {
        "type": "object",
        "properties": {"explanation": {"type": "string"}, "verdict": verdict},
        "required": ["explanation", "verdict"],
        "additionalProperties": False,
    }
    return VerdictSchema(read, schema)


def _only_mark(
    text: str, finish_reason: str, shape: re.Pattern[str], value: Callable[[str], Value | None]
) -> Value | ParsedReply:
    """The value of the one verdict among the marks of this `shape`, or why there is none."""
    visible = visible_text(text)
    if visible is None:
        return ParsedReply(reason="cut_off")
    plain = unicodedata.normalize("NFKC", visible).replace("【", "[").replace("】", "]")
    plain = re.sub(r"\\([\[\]])", r"\1", plain)
    marks = [mark for raw_mark in _MARK.findall(plain) if shape.fullmatch(mark := raw_mark.strip())]
    if not marks:
        return ParsedReply(reason=_why_none(plain, finish_reason))
    values = {mark: value(mark) for mark in marks}
    if len(set(values.values())) > 1:
        last = [m[1][2:-2].strip() for row in plain.splitlines() if (m := _VERDICT_LINE.match(row))]
        values = {mark: values[mark] for mark in last if mark in values}
    if len(set(values.values())) != 1:
        return ParsedReply(reason="several_verdicts")
    (only,) = set(values.values())
    return ParsedReply(reason="malformed") if only is None else only


def _why_none(text: str, finish_reason: str) -> str:
    if not text.strip():
        return "empty"
    if finish_reason == "length":
        return "cut_off"
    if _MARK.search(text):
        return "malformed"
    return "refused" if _REFUSAL.match(text) and _REFUSED_TASK.search(text) else "no_verdict"
