"""Filters against saying the same thing twice in a dataset. They remember digests, never texts."""

from __future__ import annotations

from hashlib import blake2b

from hubkit.filters.chain import Drop, FilterFn, Verdict, register
from hubkit.schema import Conversation


@register
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
