"""Filters against secrets and personal data: masked or dropped, counted by kind, never shown (see
`hubkit.sensitive_data`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from itertools import accumulate
from typing import Any, Literal

from hubkit.conversation import Conversation
from hubkit.data.filters.chain import Drop, Edit, FilterFn, Spec, Verdict, register
from hubkit.sensitive_data import KINDS, PERSONAL, SECRETS, Masker, scan_text

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


def masked_kinds(specs: Iterable[Spec]) -> frozenset[str]:
    """The kinds that the filters of `specs` mask; those that they drop for are not among them."""
    kinds: set[str] = set()
    for spec in specs:
        if spec.name in _GROUPS and spec.args.get("action", "mask") == "mask":
            kinds.update(spec.args.get("kinds", _GROUPS[spec.name]))
    return frozenset(kinds)


_GROUPS = {"secrets": SECRETS, "personal_data": PERSONAL}


def _findings(action: str, kinds: frozenset[str], group: str) -> FilterFn:
    if action not in ("mask", "drop"):
        raise ValueError(f"action must be mask or drop, not {action!r}")
    if unknown := kinds - KINDS:
        raise ValueError(
            f"unknown kinds {', '.join(sorted(unknown))}; known: {', '.join(sorted(KINDS))}"
        )

    def decide(conversation: Conversation) -> Verdict:
        fields = [conversation.id, conversation.messages, conversation.meta]
        # Nearly all are clean, and one long text is cheaper to scan than many short ones.
        affected = _affected(list(_texts(fields)), kinds)
        if not affected:
            return None
        masker = Masker(kinds)

        def mask(text: str) -> str:
            return masker(text) if text in affected else text

        messages, meta = (_mapped(value, mask) for value in fields[1:])
        name = mask(conversation.id)
        if not masker.counts:
            return None
        if action == "drop":
            return Drop(f"{group}_{min(masker.counts)}")
        if name != conversation.id:  # two ids must not become one
            name += "-" + blake2b(conversation.id.encode(), digest_size=8).hexdigest()
        return Edit(
            [replace(conversation, id=name, messages=messages, meta=meta)],
            tuple(f"masked_{kind}" for kind in sorted(masker.counts)),
        )

    return decide


def _affected(texts: list[str], kinds: frozenset[str]) -> set[str]:
    """Those of `texts` that hold a part of a finding, scanned as one text."""
    findings = scan_text(_PARTING.join(texts), kinds)
    if not findings:
        return set()
    starts = [0, *accumulate(len(text) + len(_PARTING) for text in texts)]
    return {
        text
        for finding in findings
        for text in texts[
            bisect_right(starts, finding.start) - 1 : bisect_left(starts, finding.end)
        ]
    }


_PARTING = "\n\n"


def _texts(value: Any) -> Iterator[str]:
    """Every text inside lists and mappings, names of roles left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key != "role":
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to every text that `_texts` gives."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            key: item if key == "role" else _mapped(item, change) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
