"""All rules over one text: what is found, and the text with it masked."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from hubkit.sensitive_data import personal_rules, secret_rules
from hubkit.sensitive_data.escapes import LEVELS, Resolved
from hubkit.sensitive_data.json_text import JsonMask, documents
from hubkit.sensitive_data.prefilter import Prefilter
from hubkit.sensitive_data.rules import Finding, Rule, Text

SECRETS = secret_rules.KINDS
PERSONAL = personal_rules.KINDS
KINDS = SECRETS | PERSONAL


def scan_text(text: str, kinds: Iterable[str] = KINDS) -> list[Finding]:
    """Find every value of `kinds` in `text`, in time linear in its length.

    JSON's escapes are seen through: ``jane\\u0040uni.edu`` is an address, and no finding begins or
    ends inside an escape.

    Returns:
        The findings in order and without overlaps: a secret wins over personal data, a longer
        finding over a shorter one.

    Raises:
        ValueError: A kind is unknown.
    """
    kinds_set = frozenset(kinds)
    if unknown := kinds_set - KINDS:
        raise ValueError(
            f"no kind of secret or personal data is called {', '.join(sorted(unknown))}; "
            f"known: {', '.join(sorted(KINDS))}"
        )
    rules = _rules(kinds_set)
    findings = rules.findings(_subject(text))
    if "\\" in text:
        findings = _through_escapes(rules, text, findings)
    return _without_overlaps(findings) if findings else findings


def _through_escapes(rules: _Rules, text: str, findings: list[Finding]) -> list[Finding]:
    """`findings` without pieces of escapes, and what `text` holds once they are resolved."""
    above: list[Resolved] = []
    whole_findings: list[Finding] = []
    while True:
        resolved = Resolved(text) if "\\" in text and len(above) < LEVELS else None
        for kind, start, end in findings:
            if resolved:
                start, end = resolved.whole(start, end)
            for outer in reversed(above):
                start, end = outer.in_source(start, end)
            if start < end:
                whole_findings.append(Finding(kind, start, end))
        if not resolved:
            return whole_findings
        above.append(resolved)
        text = resolved.text
        findings = rules.findings(Text(text))


class _Rules:
    """Rules, and which of them a text may match."""

    def __init__(self, rules: list[Rule]) -> None:
        self._rules = rules
        unhinted = [at for at, rule in enumerate(rules) if not rule.hints]
        self._anywhere = [at for at in unhinted if rules[at].where.part != "numbers"]
        self._by_shape: dict[str, list[int]] = {}  # of a number; "" is in each
        for at in unhinted:
            if at not in self._anywhere:
                for shape in rules[at].shapes or ("",):
                    self._by_shape.setdefault(shape, []).append(at)
        self._hints = [(at, hint) for at, rule in enumerate(rules) for hint in rule.hints]
        self._prefilter = Prefilter([hint for _, hint in self._hints])

    def findings(self, text: Text) -> list[Finding]:
        """All findings in `text`, which may overlap."""
        possible: dict[int, list[str]] = {at: [] for at in self._anywhere}
        if text.numbers:
            shapes = text.number_shapes
            for shape, numbered in self._by_shape.items():
                if shape in shapes:
                    possible.update((at, []) for at in numbered)
        for number in self._prefilter.possible(text.lower):
            at, hint = self._hints[number]
            possible.setdefault(at, []).append(hint)
        return [
            finding
            for at in sorted(possible)
            for finding in self._rules[at].findings(text, possible[at])
        ]


@lru_cache(maxsize=8)
def _rules(kinds: frozenset[str]) -> _Rules:
    every = (*secret_rules.secret_rules(), *personal_rules.personal_rules())
    return _Rules([rule for rule in every if rule.kind in kinds])


@lru_cache(maxsize=1)  # filters ask one after another about the same text
def _subject(text: str) -> Text:
    return Text(text)


class Masker:
    """Masks texts, and counts what it masked.

    A text that is JSON, such as a tool call's arguments, stays JSON.

    Args:
        kinds: What is masked.

    Attributes:
        counts: Kind → how many findings were masked."""

    def __init__(self, kinds: Iterable[str] = KINDS) -> None:
        self.counts: Counter[str] = Counter()
        self._kinds = frozenset(kinds)
        self._json = JsonMask(self._scan, self._masked)

    def __call__(self, text: str) -> str:
        """`text` with every finding replaced by its kind in brackets, as in ``[EMAIL]``."""
        findings = self._scan(text)
        if not findings:
            return text
        parts = documents(text)
        if parts is None:
            return self._masked(text, findings)
        return "".join(map(self._json, parts))

    def _scan(self, text: str) -> list[Finding]:
        return scan_text(text, self._kinds)

    def _masked(self, text: str, findings: Sequence[Finding]) -> str:
        self.counts.update(finding.kind for finding in findings)
        return masked(text, findings)


def mask(text: str, kinds: Iterable[str] = KINDS) -> str:
    """`text` with every finding of `kinds` masked, as by a `Masker`."""
    return Masker(kinds)(text)


def masked(text: str, findings: Iterable[Finding]) -> str:
    """`text` with `findings`, which must be in order and apart, replaced by their kinds."""
    parts: list[str] = []
    at = 0
    for finding in findings:
        parts += (text[at : finding.start], f"[{finding.kind.upper()}]")
        at = finding.end
    return "".join((*parts, text[at:])) if parts else text


def _without_overlaps(findings: list[Finding]) -> list[Finding]:
    starts: list[int] = []
    ends: list[int] = []
    separate: list[Finding] = []
    for finding in sorted(findings, key=lambda f: (f.kind in PERSONAL, f.start - f.end, f.start)):
        at = bisect_left(starts, finding.start)
        free_before = at == 0 or ends[at - 1] <= finding.start
        free_after = at == len(starts) or finding.end <= starts[at]
        if free_before and free_after:
            starts.insert(at, finding.start)
            ends.insert(at, finding.end)
            separate.append(finding)
    return sorted(separate, key=lambda f: f.start)
