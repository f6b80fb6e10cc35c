"""What a person wants from a conversation, where no source says it and no judge can be asked.

A stated heuristic that works offline: it reads how the conversation opens, so it misses what the
person came to want later, and it copies words that an intent in a judge's words would not."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hubkit.conversation import Message

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])")
_FEWEST_WORDS, _MOST_WORDS = 3, 24  # shorter sentences greet
_MOST_CHARS = 200  # of scripts that put no spaces between words


def first_sentence(messages: Sequence[Message]) -> str:
    """The first sentence of the person's first turn that is not a greeting, on one line.

    It is cut after 24 words or 200 characters. Empty where the person says nothing.

    >>> first_sentence([{"role": "user", "content": "Hi there! How do I bake rye? No oven here."}])
    'How do I bake rye?'
    """
    opening = next((m["content"] for m in messages if m["role"] == "user"), "")
    text = " ".join(opening[:10_000].split())
    sentences = [sentence.split() for sentence in _SENTENCE_END.split(text)]
    words = next(
        (s for s in sentences if len(s) >= _FEWEST_WORDS),
        [word for sentence in sentences for word in sentence],
    )
    line = " ".join(words[:_MOST_WORDS])
    return (
        line
        if len(line) <= _MOST_CHARS and len(words) <= _MOST_WORDS
        else f"{line[:_MOST_CHARS]} …"
    )
