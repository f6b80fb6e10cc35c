"""Filters against saying the same thing twice in a dataset. They remember digests, never texts.

What they remember is all that a chain keeps in memory of the rows that have passed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Literal

from hubkit.conversation import Conversation
from hubkit.data.filters.chain import Drop, StatefulFilter, Verdict, register
from hubkit.data.filters.shingles import shingles

_CHARS = 200_000  # of one conversation, this much is compared
Seat = Literal["user", "assistant", "both"]
_COMPARED = ("thinking", "tool_calls", "name")  # in addition to role and content


def _without_ids(value: Any) -> Any:
    """Tool calls by their functions; any other value as it is."""
    if not isinstance(value, list):
        return value
    return [call.get("function") if isinstance(call, dict) else call for call in value]


@register(stateful=True)
def exact_duplicates() -> StatefulFilter:
    """Drop conversations whose turns, word for word, were seen before; the first one stays. Tool
    calls (without their ids, which are drawn at random) and thinking are compared too. About 100
    bytes each.
    """
    return _Exact()


@register(stateful=True)
def near_duplicates(
    threshold: float = 0.8,
    words: int = 5,
    seat: Seat = "both",
    permutations: int = 128,
    seed: int = 42,
) -> StatefulFilter:
    """Drop conversations whose runs of `words` words are similar to a kept one's: estimated Jaccard
    ≥ `threshold`.

    MinHash with `permutations` values in a locality-sensitive index, both rensa's; about 2 KB a
    kept row. `seat` says whose turns are compared. Conversations without words are kept: there is
    nothing to compare."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie above 0 and at most 1, not {threshold}")
    return _Near(threshold, words, seat, permutations, seed)


class _Exact(StatefulFilter):
    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def key(self, conversation: Conversation) -> bytes:
        digest = blake2b(digest_size=16)
        for message in conversation.messages:
            digest.update(
                f"{message['role']}\x1f{message['content'].strip()}\x1e".encode(
                    "utf-8", "surrogatepass"
                )
            )
        turns = digest.digest()
        fields = [
            (i, name, _without_ids(value))
            for i, message in enumerate(conversation.messages)
            if len(message) > 2
            for name, value in message.items()
            if name in _COMPARED and value
        ]
        if not fields:
            return turns
        text = json.dumps(sorted(fields, key=lambda f: f[:2]), sort_keys=True, default=str)
        return blake2b(turns + text.encode(), digest_size=16, person=b"fields").digest()

    def decide(self, key: bytes) -> Verdict:
        if key in self._seen:
            return Drop("exact_duplicate")
        self._seen.add(key)
        return None


class _Near(StatefulFilter):
    def __init__(
        self, threshold: float, words: int, seat: Seat, permutations: int, seed: int
    ) -> None:
        from rensa import RMinHash, RMinHashDeduplicator

        self._words, self._seat = words, seat
        self._sketch: Callable[[], Any] = lambda: RMinHash(permutations, seed)
        self._kept = RMinHashDeduplicator(threshold, permutations, True, seed=seed)

    def key(self, conversation: Conversation) -> bytes:
        turns = (m["content"] for m in conversation.messages if self._seat in ("both", m["role"]))
        runs = shingles("\n".join(turns)[:_CHARS], self._words)
        if not len(runs):
            return b""
        sketch = self._sketch()
        sketch.update(runs.view("V8").tolist())
        state: bytes = (
            sketch.__getstate__()
        )  # rensa's own form; holds the sketch and nothing that could run
        return state

    def decide(self, key: bytes) -> Verdict:
        if not key:
            return None
        sketch = self._sketch()
        sketch.__setstate__(key)
        return None if self._kept.add(str(self._kept.len()), sketch) else Drop("near_duplicate")
