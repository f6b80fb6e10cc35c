"""Filters against secrets and personal data: masked or dropped, counted by kind, never shown (see
`hubkit.sensitive_data`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from hubkit.conversation import Conversation, Message
from hubkit.data.filters.chain import Drop, Edit, FilterFn, Verdict, register
from hubkit.sensitive_data import KINDS, PERSONAL, SECRETS, masked, scan_text

Action = Literal["mask", "drop"]


@register
def secrets(action: Action = "mask", kinds: Iterable[str] = SECRETS) -> FilterFn:
    """Mask keys, tokens and passwords (``[AWS_KEY]``), or drop conversations that hold one; counted
    by kind.
    """
    return _findings(action, frozenset(kinds), "secret")


@register
def personal_data(action: Action = "mask", kinds: Iterable[str] = PERSONAL) -> FilterFn:
    """Mask e-mail addresses, phone numbers, card numbers and such (``[EMAIL]``), or drop; counted
    by kind.
    """
    return _findings(action, frozenset(kinds), "personal")


def _findings(action: str, kinds: frozenset[str], group: str) -> FilterFn:
    if action not in ("mask", "drop"):
        raise ValueError(f"action must be mask or drop, not {action!r}")
    if unknown := kinds - KINDS:
        raise ValueError(
            f"unknown kinds {', '.join(sorted(unknown))}; known: {', '.join(sorted(KINDS))}"
        )

    def decide(conversation: Conversation) -> Verdict:
        if not scan_text("\n\n".join(m["content"] for m in conversation.messages), kinds):
            return None  # nearly all are clean, and one long text is cheaper to scan than many short ones
        found_kinds: set[str] = set()
        messages: list[Message] = []
        for message in conversation.messages:
            findings = scan_text(message["content"], kinds)
            found_kinds.update(finding.kind for finding in findings)
            messages.append({**message, "content": masked(message["content"], findings)})
        if not found_kinds:
            return None
        if action == "drop":
            return Drop(f"{group}_{min(found_kinds)}")
        return Edit(
            [replace(conversation, messages=messages)],
            tuple(f"masked_{kind}" for kind in sorted(found_kinds)),
        )

    return decide
