"""Secrets and personal data in text: found, counted by kind, masked; never shown.

Takes text or a folder; gives findings (kind and place), masked text or counts. A value that was
found leaves this room in no message, log or report. Patterns of secrets are detect-secrets' own,
gated by a literal that each needs, so that clean text costs little; phone numbers are judged by
``phonenumbers``, cards, IBANs and social security numbers by ``python-stdnum``'s checksums and
rules, addresses by the standard library."""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SECRETS = frozenset({
    "artifactory_key", "aws_key", "azure_key", "password_in_url", "discord_token", "github_token", "gitlab_token",
    "google_key", "huggingface_token", "json_web_token", "mailchimp_key", "npm_token", "openai_key", "anthropic_key",
    "private_key", "pypi_token", "sendgrid_key", "slack_token", "square_secret", "stripe_key", "telegram_token",
    "twilio_key",
})  # fmt: skip
PERSONAL = frozenset(
    {"email", "phone_number", "credit_card", "iban", "us_social_security_number", "ip_address"}
)
KINDS = SECRETS | PERSONAL


@dataclass(frozen=True, slots=True)
class Finding:
    """One secret or piece of personal data: its kind and where it stands, ``text[start:end]``."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Rule:
    """Looks for `patterns` where one of `hints` (without hints: a long number) occurs; `check` has
    the last word.
    """

    kind: str
    hints: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]
    check: Callable[[str], bool] = lambda _: True


def scan_text(text: str, kinds: Iterable[str] = KINDS) -> list[Finding]:
    """Every finding of `kinds` in `text`, in order and without overlaps (a secret wins over
    personal data).

    Raises `ValueError` for an unknown kind.
    """
    wanted = frozenset(kinds)
    if unknown := wanted - KINDS:
        raise ValueError(
            f"no kind of secret or personal data is called {', '.join(sorted(unknown))}; known: {KINDS}"
        )
    has_number = _LONG_NUMBER.search(text) is not None
    found: list[Finding] = []
    for rule in _rules():
        if rule.kind in wanted and (
            any(hint in text for hint in rule.hints) if rule.hints else has_number
        ):
            for match in (match for pattern in rule.patterns for match in pattern.finditer(text)):
                if match.end() > match.start() and rule.check(match[0]):
                    found.append(Finding(rule.kind, match.start(), match.end()))
    return _without_overlaps(found) if found else found


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


def scan_folder(path: Path, kinds: Iterable[str] = KINDS) -> dict[str, int]:
    """How often each kind occurs in the text and parquet files below `path` (or in the file
    `path`).
    """
    total: Counter[str] = Counter()
    for counts in scan_files(path, kinds).values():
        total.update(counts)
    return dict(sorted(total.items()))


def scan_files(path: Path, kinds: Iterable[str] = KINDS) -> dict[str, dict[str, int]]:
    """As `scan_folder`, by file: ``{"relative/path": {kind: count}}``, files without findings left
    out.

    Text is what decodes as UTF-8; in parquet every string of every column is read; other binary
    files are passed over."""
    wanted = frozenset(kinds)
    files = (
        [path]
        if path.is_file()
        else sorted(p for p in path.rglob("*") if p.is_file() and ".git" not in p.parts)
    )
    found: dict[str, dict[str, int]] = {}
    for file in files:
        counts = Counter(
            finding.kind for text in _texts(file) for finding in scan_text(text, wanted)
        )
        if counts:
            found[file.relative_to(path).as_posix() if file != path else file.name] = dict(
                sorted(counts.items())
            )
    return found


def _texts(file: Path) -> Iterator[str]:
    with file.open("rb") as opened:
        head = opened.read(8192)
    if head[:4] == b"PAR1":
        yield from _parquet_texts(file)
    elif b"\0" not in head:
        with file.open(encoding="utf-8", errors="replace") as lines:
            while block := lines.read(1 << 20):
                yield (
                    block + lines.readline()
                )  # a block ends with a line, so that no secret is cut in two


def _parquet_texts(file: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def strings(column: Any) -> Iterator[str]:
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            yield from (value for value in column.to_pylist() if value)
        elif pa.types.is_struct(kind):
            for field in column.flatten():
                yield from strings(field)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            yield from strings(column.flatten())

    with pq.ParquetFile(
        file, pre_buffer=False, buffer_size=1 << 20
    ) as table:  # else it keeps all it has read
        for batch in table.iter_batches(batch_size=1000):
            for column in batch.columns:
                yield from strings(column)


def _without_overlaps(found: list[Finding]) -> list[Finding]:
    kept: list[Finding] = []
    for finding in sorted(found, key=lambda f: (f.kind in PERSONAL, f.start - f.end)):
        if all(finding.end <= other.start or finding.start >= other.end for other in kept):
            kept.append(finding)
    return sorted(kept, key=lambda f: f.start)


_LONG_NUMBER = re.compile(r"\d[\d ().-]{5,}\d|\d{2} [A-Z0-9]{4} ")

_PRIVATE_KEY = (
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:(?!-----END).)*(?:-----END [A-Z0-9 ]*-----)?",
    r"PuTTY-User-Key-File-2.*?(?=\n\n|\Z)",
)
_EMAIL = r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"
_PHONE = r"(?<![\w.,+/=#-])(?:\+\d[\d ().-]{7,18}\d|\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}([-.])\d{3}\1\d{4})(?![\w/=-])"
_CARD = r"(?<![\w.-])\d{4}([ -]?)\d{4}\1\d{4}\1\d{1,7}(?![\w-])"
_IBAN = r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,4})?\b"
_SSN = r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"
_IP = r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"


@cache
def _rules() -> tuple[_Rule, ...]:
    def rule(
        kind: str, hint: str, *patterns: str, check: Callable[[str], bool] = lambda _: True
    ) -> _Rule:
        return _Rule(
            kind, tuple(hint.split()), tuple(re.compile(p, re.DOTALL) for p in patterns), check
        )

    return (
        rule("private_key", "PRIVATE PuTTY", *_PRIVATE_KEY),
        rule("huggingface_token", "hf_ api_org_", r"\b(?:hf|api_org)_[A-Za-z0-9]{30,40}\b"),
        rule("anthropic_key", "sk-ant-", r"\bsk-ant-[\w-]{20,}"),
        rule("openai_key", "sk-", r"\bsk-(?:(?:proj|svcacct|admin)-[\w-]{40,}|[A-Za-z0-9]{48}\b)"),
        rule("google_key", "AIza", r"\bAIza[\w-]{35}(?![\w-])"),
        rule("github_token", "github_pat_", r"\bgithub_pat_\w{50,}"),
        rule("json_web_token", "eyJ", r"\beyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?", check=_web_token),
        *(_library_rule(*entry) for entry in _LIBRARY),
        rule("email", "@", _EMAIL, check=_email),
        rule("phone_number", "", _PHONE, check=_phone),
        rule("credit_card", "", _CARD, check=_card),
        rule("iban", "", _IBAN, check=_iban),
        rule("us_social_security_number", "", _SSN, check=_ssn),
        rule("ip_address", "", _IP, check=_ip),
    )


# detect-secrets' class, its module there, our kind, and literals of which its patterns need one.
# Its detectors that go by words such as "key" near any hex string are left out: in talk about code
# they find little else than examples.
_LIBRARY = (
    ("ArtifactoryDetector", "artifactory", "artifactory_key", "AKC"),
    ("AWSKeyDetector", "aws", "aws_key", "AKIA ASIA ABIA ACCA A3T aws AWS Aws"),
    ("AzureStorageKeyDetector", "azure_storage_key", "azure_key", "AccountKey="),
    ("BasicAuthDetector", "basic_auth", "password_in_url", "://"),
    ("DiscordBotTokenDetector", "discord", "discord_token", "."),
    ("GitHubTokenDetector", "github_token", "github_token", "ghp_ gho_ ghu_ ghs_ ghr_"),
    (
        "GitLabTokenDetector",
        "gitlab_token",
        "gitlab_token",
        "GR1348941 glpat- gldt- glft- glsoat- glrt- glcbt- glimt- glptt- glagent- gloas-",
    ),
    ("MailchimpDetector", "mailchimp", "mailchimp_key", "-us"),
    ("NpmDetector", "npm", "npm_token", ":_authToken"),
    ("OpenAIDetector", "openai", "openai_key", "T3BlbkFJ"),
    ("PypiTokenDetector", "pypi_token", "pypi_token", "pypi-Ag"),
    ("SendGridDetector", "sendgrid", "sendgrid_key", "SG."),
    ("SlackDetector", "slack", "slack_token", "xox hooks.slack"),
    ("SquareOAuthDetector", "square_oauth", "square_secret", "sq0csp-"),
    ("StripeDetector", "stripe", "stripe_key", "k_live_"),
    ("TelegramBotTokenDetector", "telegram_token", "telegram_token", ""),
    ("TwilioKeyDetector", "twilio", "twilio_key", "AC SK"),
)


def _library_rule(name: str, module: str, kind: str, hints: str) -> _Rule:
    from importlib import import_module

    detector = getattr(import_module(f"detect_secrets.plugins.{module}"), name)()
    patterns = tuple(detector.denylist)
    if kind == "artifactory_key":
        patterns = patterns[:1]  # its second pattern is any word that begins with AP
    return _Rule(kind, tuple(hints.split()), patterns, _not_a_placeholder)


def _not_a_placeholder(value: str) -> bool:
    """Examples in documentation ("user:password@host", "xxxx…") are nobody's secret."""
    low = value.lower()
    words = (
        "example",
        "password@",
        "pass@",
        "passwd@",
        "<",
        "{",
        "$",
        "your",
        "xxxx",
        "****",
        "...",
    )
    return not any(word in low for word in words)


def _web_token(value: str) -> bool:
    import base64
    import binascii

    head = value.split(".")[0]
    try:
        return isinstance(json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))), dict)
    except (ValueError, binascii.Error, RecursionError):
        return False


def _email(value: str) -> bool:
    domain = value.rpartition("@")[2].lower()
    reserved = (
        "example.com",
        "example.org",
        "example.net",
        "domain.com",
        "email.com",
        "yourdomain.com",
        "test.com",
    )
    local = value.partition("@")[0].lower()
    return domain not in reserved and not domain.endswith((".example", ".test", ".invalid", ".png", ".jpg")) and (
        local not in ("noreply", "no-reply", "git", "user", "username", "example", "your_email", "youremail")
    )  # fmt: skip


def _phone(value: str) -> bool:
    import phonenumbers

    try:
        number = phonenumbers.parse(value, None if value.startswith("+") else "US")
    except phonenumbers.NumberParseException:
        return False
    fictional = "555" in re.sub(r"\D", "", value)[-10:-4]
    return phonenumbers.is_valid_number(number) and not fictional


def _card(value: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", value)
    issued = re.match(
        r"4|5[1-5]|2[2-7]|3[47]|6(?:011|5)", digits
    )  # Visa, Mastercard, American Express, Discover
    return (
        bool(issued)
        and 13 <= len(digits) <= 19
        and len(set(digits)) > 3
        and bool(luhn.is_valid(digits))
    )


def _iban(value: str) -> bool:
    from stdnum import iban

    return bool(iban.is_valid(value))


def _ssn(value: str) -> bool:
    from stdnum.us import ssn

    return bool(ssn.is_valid(value)) and value != "123-45-6789"


def _ip(value: str) -> bool:
    try:
        address = ipaddress.IPv4Address(value)
    except ValueError:
        return False
    # Four small numbers are more often a version or a section; public resolvers are nobody's
    # address.
    return (
        address.is_global
        and int(value.split(".")[0]) > 9
        and value not in ("8.8.8.8", "8.8.4.4", "1.1.1.1")
    )
