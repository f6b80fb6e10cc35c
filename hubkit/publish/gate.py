"""What must not leave this machine: stands between a plan and the first byte."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hubkit.errors import PublishError
from hubkit.publish.facts import Kind
from hubkit.publish.lint import lint
from hubkit.publish.plan import Content, RepoPlan

_TEXT = (".md", ".json", ".jsonl", ".py", ".txt", ".yaml", ".yml", ".toml", ".jinja", ".cfg", ".env")
_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}")


def check(plan: RepoPlan, kind: Kind | None) -> None:
    """Raise `PublishError` naming every file of `plan` that must not leave, and why (never what it holds).

    `kind` says which card its README.md is; None for a Space.
    """
    problems = list(_problems(plan, kind))
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise PublishError(f"{plan.repo_type} {plan.repo_id} was not pushed: {shown}")


def _problems(plan: RepoPlan, kind: Kind | None) -> Iterator[str]:
    for path, content in plan.write.items():
        if not path.endswith(_TEXT):
            continue
        text = _text(content)
        if _SECRET.search(text) or _KEY_BLOCK.search(text):
            yield f"{path} holds something that looks like a secret"
        if path == "README.md" and kind is not None:
            yield from (f"{path}: {problem}" for problem in lint(text, kind))


def _text(content: Content) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    return data.decode("utf-8", "replace")
