"""What must not leave this machine: stands between a plan and the first byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from hubkit.data import sensitive_data
from hubkit.errors import PublishError
from hubkit.publishing.card_data import Kind
from hubkit.publishing.lint import lint
from hubkit.publishing.plan import Content, RepoPlan


def check(plan: RepoPlan, kind: Kind | None, *, personal: bool) -> None:
    """Raise `PublishError` naming every file of `plan` that must not leave, and why: kinds and
    counts, never values.

    Secrets are looked for in every text and table; with `personal`, personal data in the rows under
    ``data/`` too. `kind` says which card its README.md is; None for a Space."""
    problems = list(_problems(plan, kind, personal))
    if problems:
        shown = "; ".join(problems[:5]) + (
            f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        )
        raise PublishError(f"{plan.repo_type} {plan.repo_id} was not pushed: {shown}")


def _problems(plan: RepoPlan, kind: Kind | None, personal: bool) -> Iterator[str]:
    for path, content in plan.write.items():
        kinds = (
            sensitive_data.KINDS
            if personal and path.startswith("data/")
            else sensitive_data.SECRETS
        )
        found = _found(content, kinds)
        if found:
            listed = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in found.items())
            advice = (
                ""
                if sensitive_data.SECRETS & found.keys()
                else "; mask it with a filter of the recipe, or allow it by name"
            )
            yield f"{path} holds {listed}{advice}"
        if path == "README.md" and kind is not None:
            yield from (f"{path}: {problem}" for problem in lint(_text(content), kind, plan.files))


def _found(content: Content, kinds: frozenset[str]) -> Mapping[str, int]:
    if isinstance(content, bytes):
        return dict(
            sorted(
                Counter(
                    finding.kind for finding in sensitive_data.scan_text(_text(content), kinds)
                ).items()
            )
        )
    return sensitive_data.scan_folder(content, kinds)


def _text(content: Content) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    return data.decode("utf-8", "replace")
