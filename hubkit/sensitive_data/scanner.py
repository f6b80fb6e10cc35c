"""All rules over one text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from hubkit.sensitive_data import personal_rules, secret_rules
from hubkit.sensitive_data.rules import Finding, Text

SECRETS = secret_rules.KINDS
PERSONAL = personal_rules.KINDS
KINDS = SECRETS | PERSONAL


def scan_text(text: str, kinds: Iterable[str] = KINDS) -> list[Finding]:
    """Find every value of `kinds` in `text`, in time linear in its length.

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
    subject = Text(text)
    findings: list[Finding] = []
    for rules in (secret_rules.secret_rules(), personal_rules.personal_rules()):
        for rule in rules:
            if rule.kind in kinds_set:
                findings.extend(rule.findings(subject))
    return _without_overlaps(findings) if findings else findings


def mask(text: str, kinds: Iterable[str] = KINDS) -> str:
    """`text` with every finding of `kinds` replaced by its kind in brackets, as in ``[EMAIL]``."""
    return masked(text, scan_text(text, kinds))


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
