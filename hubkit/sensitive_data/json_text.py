"""Masking of JSON in a text, such as a tool call's arguments: it stays JSON, whatever is masked.

Each string is masked by itself, as it reads without escapes, JSON inside it likewise; a number that
must go becomes a string. All else stays as it was written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from hubkit.sensitive_data.rules import Finding
from hubkit.untrusted import parse_json

Scan = Callable[[str], list[Finding]]
Mask = Callable[[str, Sequence[Finding]], str]
_TOKEN = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"|-?[0-9][0-9.eE+-]*|[{}\[\],:]|true|false|null', re.DOTALL
)
_DEEPEST = 6  # JSON inside strings of JSON


def is_json(text: str) -> bool:
    """Whether `text` is a JSON object, array or string."""
    bare = text.strip()
    if bare[:1] + bare[-1:] not in ("{}", "[]", '""') or len(bare) < 2:
        return False
    try:
        parse_json(bare)
    except ValueError:
        return False
    return True


def documents(text: str) -> list[str] | None:
    """`text` as the JSON that it is made of: all of it, or each of its lines; None: it is none."""
    if is_json(text):
        return [text]
    lines = text.splitlines(keepends=True)
    if len(lines) > 1 and all(not line.strip() or is_json(line) for line in lines):
        return lines
    return None


class JsonMask:
    """Masks JSON documents.

    Args:
        scan: Finds what is to be masked.
        mask: Puts kinds in place of findings."""

    def __init__(self, scan: Scan, mask: Mask) -> None:
        self._scan, self._mask = scan, mask

    def __call__(self, document: str, depth: int = 0) -> str:
        """`document`, which is JSON, with what is found in its strings and numbers masked."""
        masked = self._walk(document, depth)
        findings = self._scan(masked)
        return self._whole_values(masked, findings) if findings else masked

    def _walk(self, document: str, depth: int) -> str:
        parts: list[str] = []
        at = 0
        # For each object and array around: the name of what comes next, None where a name comes.
        names: list[str | None] = [""]
        objects: list[bool] = [False]
        for match in _TOKEN.finditer(document):
            token, name = match[0], names[-1]
            parts.append(document[at : match.start()])
            at = match.end()
            if token in "{[":
                objects.append(token == "{")
                names.append(None if token == "{" else name or "")
            elif token in "}]":
                objects.pop()
                names.pop()
            elif token == "," and objects[-1]:
                names[-1] = None
            elif token[0] == '"' and objects[-1] and name is None:
                names[-1] = str(json.loads(token))
                token = self._string(token, "", depth)
            elif token[0] == '"':
                token = self._string(token, name or "", depth)
            elif token[0] in "-0123456789":
                masked = self._value(token, name or "", depth)
                token = token if masked == token else json.dumps(masked)
            parts.append(token)
        return "".join((*parts, document[at:]))

    def _string(self, token: str, name: str, depth: int) -> str:
        value = str(json.loads(token))
        masked = self._value(value, name, depth)
        return token if masked == value else _dumped(masked, token)

    def _value(self, value: str, name: str, depth: int) -> str:
        if depth < _DEEPEST and value[:1] in '{["' and is_json(value):
            return self(value, depth + 1)
        findings = self._scan(value)
        lead = f"{name}: "
        for kind, start, end in self._scan(lead + value) if name else ():
            named = Finding(kind, max(start - len(lead), 0), end - len(lead))
            if named.end <= 0 or any(_overlap(named, other) for other in findings):
                continue
            if not findings and len(value.split()) == 1:  # its name says what all of it is
                named = Finding(kind, 0, len(value))
            findings.append(named)
        return self._mask(value, sorted(findings, key=lambda finding: finding.start))

    def _whole_values(self, document: str, findings: list[Finding]) -> str:
        """`document` without the values that hold a part of a finding that goes over several."""
        parts: list[str] = []
        at = 0
        for match in _TOKEN.finditer(document):
            kind = next(
                (f.kind for f in findings if f.start < match.end() and match.start() < f.end), None
            )
            following = document[match.end() : match.end() + 64].lstrip()[:1]
            if kind and match[0][0] in '"-0123456789' and following != ":":
                masked = self._mask("-", [Finding(kind, 0, 1)])
                parts += (document[at : match.start()], json.dumps(masked))
                at = match.end()
        return "".join((*parts, document[at:]))


def _overlap(one: Finding, other: Finding) -> bool:
    return one.start < other.end and other.start < one.end


def _dumped(value: str, token: str) -> str:
    """`value` as a JSON string, in ASCII where `token` was or UTF-8 cannot hold it."""
    half = any("\ud800" <= c <= "\udfff" for c in value)
    return json.dumps(value, ensure_ascii=token.isascii() or half)
