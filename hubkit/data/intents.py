"""What a person wants from a conversation, where no source says it and no judge can be asked.

Stated heuristics that work offline. Either copies words of the person, which an intent in a judge's
words would not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from hubkit.conversation import Message
from hubkit.data.filters.shingles import COMMON_WORDS, is_unspaced

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])")
_FEWEST_WORDS, _MOST_WORDS = 3, 24  # shorter sentences greet
_MOST_CHARS = 200  # of scripts that put no spaces between words
_READ_CHARS = 10_000  # of a turn: pasted documents say what it is about early
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_KEYWORDS = 8


def first_sentence(messages: Sequence[Message]) -> str:
    """The first sentence of the person's first turn that is not a greeting, on one line.

    It is cut after 24 words or 200 characters. Empty where the person says nothing. It reads how
    the conversation opens, so it misses what the person came to want later; and it is a turn
    already, so an asker that is told it tends to repeat it.

    >>> first_sentence([{"role": "user", "content": "Hi there! How do I bake rye? No oven here."}])
    'How do I bake rye?'
    """
    opening = next((m["content"] for m in messages if m["role"] == "user"), "")
    text = " ".join(opening[:_READ_CHARS].split())
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


def keywords(messages: Sequence[Message]) -> str:
    """What all of the person's turns are about: their eight foremost content words, in alphabetical
    order.

    Words of several turns come first, then frequent ones, then long ones. A content word has four
    letters or more and is not common in English; where a script puts no spaces between words, each
    pair of characters stands for one. Empty where the person uses none. Being a list, it is no turn
    that an asker could repeat.

    >>> keywords([{"role": "user", "content": "How do I bake rye bread?"},
    ...           {"role": "user", "content": "Which flour makes the bread rise?"}])
    'bake, bread, flour, makes, rise'
    """
    turns: Counter[str] = Counter()
    uses: Counter[str] = Counter()
    for message in messages:
        if message["role"] == "user":
            words = _content_words(message["content"][:_READ_CHARS])
            turns.update(set(words))
            uses.update(words)
    foremost = sorted(uses, key=lambda word: (-turns[word], -uses[word], -len(word), word))
    return ", ".join(sorted(foremost[:_KEYWORDS]))


def _content_words(text: str) -> list[str]:
    words = [word.casefold() for word in _WORD.findall(text)]
    if is_unspaced(text):
        return [word[at : at + 2] for word in words for at in range(len(word) - 1)]
    return [
        word
        for word in words
        if len(word) > 3 and word.isalpha() and word.encode() not in COMMON_WORDS
    ]


HEURISTICS: dict[str, Callable[[Sequence[Message]], str]] = {
    "keywords": keywords,
    "first_sentence": first_sentence,
}
