"""Parts of one conversation, as pre-split ShareGPT exports hold them, put together again.

Such an export cuts long conversations into rows ``ID_0``, ``ID_7``, … where the number is the
index, in the original, of the row's first message; the answer at a cut often stands in both rows.
So the parts fit exactly where they overlap or meet, and anything else is left as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from hubkit.conversation import Conversation


def join(conversations: Iterable[Conversation]) -> Iterator[tuple[Conversation, int]]:
    """Join neighbouring parts that fit. Gives each conversation with the number of rows that it was
    made of.
    """
    whole: Conversation | None = None
    made_of = 0
    for part in conversations:
        joined = _fit(whole, part) if whole else None
        if joined:
            whole, made_of = joined, made_of + 1
            continue
        if whole:
            yield whole, made_of
        whole, made_of = part, 1
    if whole:
        yield whole, made_of


def _fit(whole: Conversation, part: Conversation) -> Conversation | None:
    """`whole` continued by `part`, or None where they are not of one conversation, gape or
    disagree.
    """
    if (
        "part" not in part.meta
        or "part" not in whole.meta
        or part.meta["group"] != whole.meta["group"]
    ):
        return None
    offset = part.meta["part"] - whole.meta["part"]
    overlap = whole.messages[offset:]
    if not 0 < offset <= len(whole.messages) or overlap != part.messages[: len(overlap)]:
        return None
    return replace(whole, messages=whole.messages + part.messages[len(overlap) :])
