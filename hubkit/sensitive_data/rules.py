"""What a rule of the scanner is, and the checks that several rules share.

A rule is a pattern whose every repetition is bounded, so that a scan takes time linear in the text,
a few literals of which the text must hold one (so that clean text costs little), and a check that
has the last word on a match."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

Match = re.Match[str]
Check = Callable[[Match], bool]
_LEAD = 64
CONTEXT_CHARS = 48  # how far before a number the word that names it may stand


class Finding(NamedTuple):
    """One secret or piece of personal data: its kind and where it stands, ``text[start:end]``."""

    kind: str
    start: int
    end: int


class Text:
    """A text under scan, and what several rules ask about it, worked out once."""

    def __init__(self, value: str) -> None:
        self.value = value
        self.lower = value.lower()
        self.has_run = _has_run(value)
        self.has_number = _LONG_NUMBER.search(value) is not None
        self.shape = value.encode("latin-1", "replace").translate(_SHAPES).decode("latin-1")


@dataclass(frozen=True, slots=True)
class Rule:
    """Finds one kind of value: matches of `patterns` for which `check` holds.

    Args:
        kind: What a finding is called.
        patterns: Bounded patterns. A group named ``value`` is the part that is masked; without it
            the whole match is.
        hints: Literals of which the text must hold one; none: the rule always runs. They are
            compared with the lower-cased text where `folded`.
        check: Decides on each match.
        folded: Whether `hints` are lower case and compared regardless of case.
        needs_run: Only texts with an unbroken run of 16 token characters can match.
        needs_number: Only texts with a long number can match.
        shapes: Only texts whose shape (every digit a 9, every capital an A) holds one can match.
        gate: Only texts in which this is found can match.
        context: What must stand right before a match, in lower case.
        reach: How far a match may reach from its hint, which begins within its first `_LEAD`
            characters; only there it is looked for. 0: in the whole text.
    """

    kind: str
    patterns: tuple[re.Pattern[str], ...]
    hints: tuple[str, ...] = ()
    check: Check = lambda _: True
    folded: bool = False
    needs_run: bool = False
    needs_number: bool = False
    shapes: tuple[str, ...] = ()
    gate: re.Pattern[str] | None = None
    context: re.Pattern[str] | None = None
    reach: int = 0

    def may_match(self, text: Text) -> bool:
        """Whether `text` has what every match needs; cheaper than looking for one."""
        if (self.needs_run and not text.has_run) or (self.needs_number and not text.has_number):
            return False
        haystack = text.lower if self.folded else text.value
        return (
            (not self.hints or any(hint in haystack for hint in self.hints))
            and (not self.shapes or any(shape in text.shape for shape in self.shapes))
            and (self.gate is None or self.gate.search(text.value) is not None)
            and (self.context is None or self.context.search(text.lower) is not None)
        )

    def findings(self, text: Text) -> Iterator[Finding]:
        """Every finding of this rule in `text`."""
        if not self.may_match(text):
            return
        windows = list(self._windows(text)) if self.reach else [(0, len(text.value))]
        for pattern in self.patterns:
            group = "value" if "value" in pattern.groupindex else 0
            matches = (m for window in windows for m in pattern.finditer(text.value, *window))
            for match in matches:
                start, end = match.span(group)
                if (
                    end > start
                    and (self.context is None or self.context.search(before(match)))
                    and self.check(match)
                ):
                    yield Finding(self.kind, start, end)

    def _windows(self, text: Text) -> Iterator[tuple[int, int]]:
        """The stretches around the hints, apart and in order."""
        haystack = text.lower if self.folded else text.value
        if len(haystack) != len(text.value):  # lower case may be longer: places would be wrong
            yield 0, len(text.value)
            return
        hits: list[int] = []
        for hint in self.hints:
            at = haystack.find(hint)
            while at >= 0:
                hits.append(at)
                at = haystack.find(hint, at + len(hint))
        start = end = -1
        for hit in sorted(hits):
            if start >= 0 and hit - _LEAD <= end:
                end = hit + self.reach
                continue
            if start >= 0:
                yield start, end
            start, end = max(0, hit - _LEAD), hit + self.reach
        if start >= 0:
            yield start, end


def rule(
    kind: str,
    hints: str,
    *patterns: str,
    check: Check = lambda _: True,
    folded: bool = False,
    needs_run: bool = False,
    needs_number: bool = False,
    shapes: str = "",
    gate: str = "",
    context: str = "",
    reach: int = 0,
) -> Rule:
    """A `Rule` whose `hints` are written as words; patterns see ASCII word boundaries.

    With ASCII boundaries a value is found between Chinese or Japanese letters as well."""
    flags = re.ASCII | (re.IGNORECASE if folded else 0)
    compiled = tuple(re.compile(pattern, flags) for pattern in patterns)
    return Rule(
        kind,
        compiled,
        tuple(hints.split()),
        check,
        folded,
        needs_run,
        needs_number,
        tuple(shapes.split("|")) if shapes else (),
        re.compile(gate, flags) if gate else None,
        re.compile(context) if context else None,
        reach,
    )


def value_of(match: Match) -> str:
    """The matched value: the group ``value`` where the pattern has one, else the whole match."""
    return match["value"] if "value" in match.re.groupindex else match[0]


def before(match: Match, chars: int = CONTEXT_CHARS) -> str:
    """The lower-cased text right before a match."""
    start = match.start()
    return match.string[max(0, start - chars) : start].lower()


def digits_of(value: str) -> str:
    """The digits of `value`, whatever parts them, as ASCII."""
    return "".join(str(int(c)) for c in value if c.isdecimal())


def entropy(value: str) -> float:
    """Shannon entropy of the characters of `value`, in bits per character."""
    total = len(value)
    return -sum(n / total * math.log2(n / total) for n in Counter(value).values())


_PLACEHOLDER = re.compile(
    r"example|sample|placeholder|your|xxxx|\*{3}|\.{3}|redacted|dummy|fake|insert|replace"
    r"|changeme"
    r"|\bmy[-_]|todo|[<>{}$]|(.)\1{5}|qwerty",
    re.IGNORECASE,
)


def not_a_placeholder(match: Match) -> bool:
    """Examples in documentation ("your-key", "xxxx…", ``${KEY}``) are no secrets."""
    return not is_placeholder(value_of(match))


def is_placeholder(value: str) -> bool:
    """Whether `value` stands for a secret instead of being one."""
    return _PLACEHOLDER.search(value) is not None or len(set(value)) < 4


_SERIES = re.compile(r"345678|abcdefgh", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_HEX = re.compile(r"[0-9a-f]+", re.IGNORECASE)


def is_random(value: str) -> bool:
    """Whether `value` looks like the output of a generator: letters and digits, no words.

    Bounds: 2.8 bits a character for hexadecimal text, 3.3 for other text."""
    if _UUID.fullmatch(value):
        return True
    has_digit = any(c.isdigit() for c in value)
    has_letter = any(c.isalpha() for c in value)
    if not (has_digit and has_letter) or is_placeholder(value) or _SERIES.search(value):
        return False
    return entropy(value) >= (2.8 if _HEX.fullmatch(value) else 3.3)


# Every character that a token may hold becomes "a", every other one a space.
_TOKEN_CHARS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/=.:")
_RUNS = bytes(97 if byte in _TOKEN_CHARS else 32 for byte in range(256))
_RUN = b"a" * 16
_SHAPES = bytes(57 if 48 <= byte <= 57 else 65 if 65 <= byte <= 90 else byte for byte in range(256))
_LONG_NUMBER = re.compile(
    r"\d[\d ().\-/\u2010-\u2015\u00a0\uff0d]{5,24}\d|[A-Z]{2}\d{2} [A-Z0-9]{4} "
)


def _has_run(text: str) -> bool:
    return _RUN in text.encode("utf-8", "replace").translate(_RUNS)


def words(text: str) -> tuple[str, ...]:
    """The words of `text`, for lists that are easier to read without quotes."""
    return tuple(text.split())
