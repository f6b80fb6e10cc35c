"""Filters against saying the same thing twice in a dataset. They remember digests, never texts."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

from hubkit.filters.chain import Drop, FilterFn, Verdict, register_remembering
from hubkit.filters.shingles import shingles
from hubkit.schema import Conversation

_CHARS = 200_000  # of one conversation, this much is compared


@register_remembering
def exact_duplicates() -> FilterFn:
    """Drop conversations whose turns, word for word, were seen before; the first one stays. 16 bytes each."""
    seen: set[bytes] = set()

    def judge(conversation: Conversation) -> Verdict:
        digest = blake2b(digest_size=16)
        for message in conversation.messages:
            digest.update(f"{message['role']}\x1f{message['content'].strip()}\x1e".encode("utf-8", "surrogatepass"))
        key = digest.digest()
        if key in seen:
            return Drop("exact_duplicate")
        seen.add(key)
        return None

    return judge


@register_remembering
def near_duplicates(
    threshold: float = 0.8,
    words: int = 5,
    seat: Literal["user", "assistant", "both"] = "both",
    permutations: int = 128,
    seed: int = 42,
) -> FilterFn:
    """Drop conversations whose runs of `words` words are similar to a kept one's: estimated Jaccard ≥ `threshold`.

    MinHash with `permutations` values behind a locality-sensitive index, both rensa's; about 1 KB a kept row. `seat`
    says whose turns are compared. Conversations without words are kept: there is nothing to compare.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie above 0 and at most 1, not {threshold}")
    from rensa import RMinHash, RMinHashDeduplicator

    kept = RMinHashDeduplicator(threshold, permutations, True, seed=seed)

    def judge(conversation: Conversation) -> Verdict:
        said = (m["content"] for m in conversation.messages if seat in ("both", m["role"]))
        runs = shingles("\n".join(said)[:_CHARS], words)
        if not len(runs):
            return None
        packed = runs.tobytes()
        sketch = RMinHash(permutations, seed)
        sketch.update([packed[at : at + 8] for at in range(0, len(packed), 8)])
        return None if kept.add(str(kept.len()), sketch) else Drop("near_duplicate")

    return judge
