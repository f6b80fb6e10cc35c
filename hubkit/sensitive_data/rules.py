"""What a rule of the scanner is, and the checks that several rules share.

A rule is a pattern whose every repetition is bounded, so that a scan takes time linear in the text,
literals of which the text must hold one, and a check that has the last word on a match. Clean text
costs little: all literals of all rules are looked for at once (`prefilter`), and a pattern is tried
only near its literals, near numbers or in unbroken runs of token characters."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

Match = re.Match[str]
Check = Callable[[Match], bool]
Span = tuple[int, int]
Part = Literal["text", "numbers", "runs"]
CONTEXT_CHARS = 48  # how far before a number the word that names it may stand
_RUN_CHARS = 12  # of the shortest run of token characters that is noted
_NEAR_CHARS = 160  # how far after the name of a value the value may begin
_BEFORE_NUMBER, _AFTER_NUMBER = 12, 32  # what of a value may stand around its digits


class Finding(NamedTuple):
    """One secret or piece of personal data: its kind and where it stands, ``text[start:end]``."""

    kind: str
    start: int
    end: int


class Text:
    """A text under scan, and what several rules ask about it, worked out once."""

    def __init__(self, value: str) -> None:
        self.value = value

    @cached_property
    def lower(self) -> str:
        """The text in lower case, of the same length."""
        lower = self.value.lower()
        if len(lower) == len(self.value):
            return lower
        return "".join(low if len(low := c.lower()) == 1 else c for c in self.value)

    @cached_property
    def shape(self) -> str:
        """The text with a 9 for every digit and an A for every capital."""
        value = self.value
        if not value.isascii():
            encoded = value.encode("utf-8", "replace")
            if encoded.translate(None, _NO_WIDE_DIGIT):
                value = _DIGIT.sub("9", value)
        return value.encode("latin-1", "replace").translate(_SHAPES).decode("latin-1")

    @cached_property
    def runs(self) -> list[Span]:
        """The unbroken runs of token characters."""
        plain = self.value.encode("latin-1", "replace").translate(_RUNS)
        return [match.span() for match in _RUN.finditer(plain)]

    @cached_property
    def longest_run(self) -> int:
        """The length of the longest run of token characters; 0 where none is noted."""
        return max((end - start for start, end in self.runs), default=0)

    @cached_property
    def numbers(self) -> list[Span]:
        """The stretches around four digits and more that stand close together, apart."""
        size = len(self.value)
        return _merged(
            (max(0, match.start() - _BEFORE_NUMBER), min(size, match.end() + _AFTER_NUMBER))
            for match in _NUMBER.finditer(self.shape)
        )

    @cached_property
    def number_shapes(self) -> str:
        """The shapes of all `numbers`."""
        return "\n".join(self.shape[start:end] for start, end in self.numbers)

    @cached_property
    def number_words(self) -> str:
        """The text of `numbers` and before them, in lower case."""
        lower = self.lower
        return "\n".join(lower[max(0, s - CONTEXT_CHARS) : e] for s, e in self.numbers)

    def spans(self, part: Part) -> list[Span]:
        """The stretches of the text that are such a part."""
        if part == "text":
            return [(0, len(self.value))]
        return self.numbers if part == "numbers" else self.runs


@dataclass(frozen=True, slots=True)
class Where:
    """Where in a text the matches of a rule can be.

    Args:
        part: The stretches in which a match lies.
        lead: How far before its hint a match may begin; 0: at the hint.
        reach: How far after its hint a match may end; 0: the hints say nothing of the place.
        near: What must stand within or shortly after the hint.
        run: The shortest run of token characters without which there is no match.
    """

    part: Part = "text"
    lead: int = 64
    reach: int = 0
    near: Part = "text"
    run: int = 0


ANYWHERE = Where()
IN_NUMBERS = Where("numbers")
NAMED_NUMBER = Where(reach=200, near="numbers")


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
        where: Where matches can be.
        shapes: Of which the shape of a number must hold one, every digit a 9, every capital an A.
        gate: Only texts in which this is found can match.
        context: What must stand right before a match, in lower case.
    """

    kind: str
    patterns: tuple[re.Pattern[str], ...]
    hints: tuple[str, ...] = ()
    check: Check = lambda _: True
    folded: bool = False
    where: Where = ANYWHERE
    shapes: tuple[str, ...] = ()
    gate: re.Pattern[str] | None = None
    context: re.Pattern[str] | None = None

    def may_match(self, text: Text) -> bool:
        """Whether `text` has what every match needs besides a hint; cheaper than looking for
        one.
        """
        return (
            (not self.where.run or text.longest_run >= self.where.run)
            and (self.where.part != "numbers" or bool(text.numbers))
            and (self.gate is None or self.gate.search(text.value) is not None)
            and (self.context is None or self.context.search(text.number_words) is not None)
        )

    def findings(self, text: Text, hints: Sequence[str]) -> Iterator[Finding]:
        """Every finding of this rule in `text`, of whose hints it may hold `hints` alone."""
        if not self.may_match(text):
            return
        for match in self.matches(text, hints):
            start, end = match.span("value" if "value" in match.re.groupindex else 0)
            if (
                end > start
                and (self.context is None or self.context.search(before(match)))
                and self.check(match)
            ):
                yield Finding(self.kind, start, end)

    def matches(self, text: Text, hints: Sequence[str]) -> Iterator[Match]:
        """What the patterns find, before it is checked."""
        where = self.where
        if where.reach:
            hits = self._hits(text, hints)
            if not where.lead:
                for pattern in self.patterns:
                    yield from filter(None, (pattern.match(text.value, hit) for hit in hits))
                return
            windows = _merged((max(0, hit - where.lead), hit + where.reach) for hit in hits)
        elif hints and not any(hint in self._haystack(text) for hint in hints):
            return
        elif where.part == "runs":
            # One character more, so that a pattern sees where its match ends.
            windows = [(start, end + 1) for start, end in text.runs if end - start >= where.run]
        else:
            windows = text.spans(where.part)
        for pattern in self.patterns:
            for window in windows:
                yield from pattern.finditer(text.value, *window)

    def _haystack(self, text: Text) -> str:
        return text.lower if self.folded else text.value

    def _hits(self, text: Text, hints: Sequence[str]) -> list[int]:
        """Where the hints stand that have near them what the rule needs, in order."""
        haystack = self._haystack(text)
        hits: set[int] = set()
        for start, end in self._regions(text):
            for hint in hints:
                at = haystack.find(hint, start, end + len(hint))
                while at >= 0:
                    hits.add(at)
                    at = haystack.find(hint, at + len(hint), end + len(hint))
        return sorted(hits)

    def _regions(self, text: Text) -> list[Span]:
        """Where hints can begin: everywhere, or in and shortly before what must be near."""
        spans = text.spans(self.where.near)
        if self.where.near == "text":
            return spans
        if self.where.near == "runs":
            spans = [span for span in spans if span[1] - span[0] >= self.where.run]
        return _merged((max(0, start - _NEAR_CHARS), end) for start, end in spans)


def _merged(spans: Iterable[Span]) -> list[Span]:
    """`spans`, which are in order of their beginnings, those that touch made one."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def rule(
    kind: str,
    hints: str | tuple[str, ...],
    *patterns: str,
    check: Check = lambda _: True,
    folded: bool = False,
    where: Where = ANYWHERE,
    gate: str = "",
) -> Rule:
    """A `Rule` whose `hints` are written as words; patterns see ASCII word boundaries.

    With ASCII boundaries a value is found between Chinese or Japanese letters as well."""
    flags = re.ASCII | (re.IGNORECASE if folded else 0)
    return Rule(
        kind,
        tuple(re.compile(pattern, flags) for pattern in patterns),
        tuple(hints.split()) if isinstance(hints, str) else hints,
        check,
        folded,
        where,
        gate=re.compile(gate, flags) if gate else None,
    )


def number_rule(
    kind: str,
    *patterns: str,
    check: Check,
    shapes: str = "",
    context: str = "",
) -> Rule:
    """A `Rule` for numbers, looked for where digits stand close together.

    Args:
        kind: What a finding is called.
        patterns: What the number looks like.
        check: Decides on each match.
        shapes: Shapes of which a number must hold one, parted by ``|``; none: every number.
        context: What must stand right before it.
    """
    return Rule(
        kind,
        tuple(re.compile(pattern, re.ASCII) for pattern in patterns),
        check=check,
        where=IN_NUMBERS,
        shapes=tuple(shapes.split("|")) if shapes else (),
        context=re.compile(context) if context else None,
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
_TOKEN_CHARS = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/=.:~!@#%^*"
)
_RUNS = bytes(97 if byte in _TOKEN_CHARS else 32 for byte in range(256))
_RUN = re.compile(rb"a{%d,}" % _RUN_CHARS)
_SHAPES = bytes(
    57 if 48 <= b <= 57 else 65 if 65 <= b <= 90 or 0xC0 <= b <= 0xDE else b for b in range(256)
)
_NUMBER = re.compile(r"9(?:[^9]{0,8}9){3,}")
_DIGIT = re.compile(r"\d")
# First bytes in UTF-8 of digits beyond ASCII; few texts have any.
_WIDE_DIGIT_STARTS = bytes((0xD9, 0xDB, 0xDF, 0xE0, 0xE1, 0xEA, 0xEF, 0xF0))
_NO_WIDE_DIGIT = bytes(sorted(set(range(256)) - set(_WIDE_DIGIT_STARTS)))


def words(text: str) -> tuple[str, ...]:
    """The words of `text`, for lists that are easier to read without quotes."""
    return tuple(text.split())
