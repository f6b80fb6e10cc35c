"""What a plan must pass before its first byte leaves: the scanner, and the card's own checks."""

from __future__ import annotations

from hubkit.errors import PublishError
from hubkit.hub import Hub, gate
from hubkit.publishing.card_data import Kind
from hubkit.publishing.lint import lint
from hubkit.publishing.plan import RepoPlan
from hubkit.sensitive_data import KINDS, SECRETS


def check(plan: RepoPlan, kind: Kind | None, target: Hub) -> None:
    """Raise `PublishError` for a file that must not leave, and for a card that misleads.

    Secrets go to no Hub; personal data goes to this machine's own Hub alone. What `target` allows
    by kind passes. `kind` says which card the README.md is; None for a Space."""
    action = f"{plan.repo_type} {plan.repo_id} was not pushed"
    kinds = SECRETS if target.embedded else KINDS
    gate.check(action, plan.write, [plan.repo_id], allowed=target.allowed, kinds=kinds)
    card = plan.write.get("README.md")
    if card is not None and kind is not None:
        text = (card if isinstance(card, bytes) else card.read_bytes()).decode("utf-8", "replace")
        if problems := list(lint(text, kind, plan.files)):
            listed = "; ".join(f"README.md: {problem}" for problem in problems[:5])
            unlisted = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise PublishError(f"{action}: {listed}{unlisted}")
