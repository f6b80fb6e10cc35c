"""Measures that only need the words: lengths, lexical diversity, repetition, what leans on what was
said before.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MTLD_THRESHOLD = 0.72
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
_ROUGE_WORDS = 200  # of a turn, this much is compared
_ANAPHORA = re.compile(
    r"\b(?:its?|they|them|theirs?|these|those|he|him|his|she|hers?|this|that|above|"
    r"previous(?:ly)?|the (?:former|latter|same|(?:first|second|third|last|other) one)|"
    r"you (?:said|mentioned|wrote|gave|listed|suggested))\b",
    re.IGNORECASE,
)
_EXPLETIVE = re.compile(r"\bis it (?:possible|true|necessary|ok|okay|safe|normal)\b", re.IGNORECASE)
_ELLIPSIS = re.compile(
    r"\W*(?:and|but|or|so|then|also|what about|how about|why|how so|how come|more|another|again|"
    r"continue|go on|next|keep going|elaborate|for example|what else|anything else|shorter|longer|"
    r"simpler|yes|no|ok|okay)\b",
    re.IGNORECASE,
)
_ELLIPSIS_WORDS = 6


def words(text: str) -> list[str]:
    """Words of `text` in lower case: runs of letters and digits, apostrophes inside kept."""
    return [word.lower() for word in _WORD.findall(text)]


def mtld(tokens: Sequence[str], threshold: float = MTLD_THRESHOLD) -> float | None:
    """Measure of textual lexical diversity: mean length of runs whose type-token ratio stays above
    `threshold`.

    Read forwards and backwards and averaged; the unfinished run at the end counts by how far its
    ratio has fallen. None for texts that never begin to repeat a word (there is no factor to divide
    by) and for empty ones. Source: McCarthy & Jarvis 2010, doi 10.3758/BRM.42.2.381."""
    values = [_mtld_one_way(direction, threshold) for direction in (tokens, tokens[::-1])]
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def _mtld_one_way(tokens: Sequence[str], threshold: float) -> float | None:
    factors, types, length, ratio = 0.0, set[str](), 0, 1.0
    for token in tokens:
        length += 1
        types.add(token)
        ratio = len(types) / length
        if ratio <= threshold:
            factors, types, length, ratio = factors + 1, set(), 0, 1.0
    if length:
        factors += (1 - ratio) / (1 - threshold)
    return len(tokens) / factors if factors else None


def mtld_released(text: str, threshold: float = MTLD_THRESHOLD) -> float | None:
    """MTLD as the code released with arXiv 2308.11534 has it: ``lexicalrichness`` 0.5.1's.

    It differs from `mtld` in its words (digits and hyphens deleted, other ASCII punctuation turned
    into spaces) and in texts that never repeat a word, which count as their length instead of being
    left out. None for a text without words."""
    plain = re.sub(r"[0-9–—-]+", "", text.lower())
    tokens = plain.translate(_PUNCTUATION).split()
    if not tokens:
        return None

    def one_way(direction: Sequence[str]) -> float:
        return _mtld_one_way(direction, threshold) or float(len(direction))

    return fmean((one_way(tokens), one_way(tokens[::-1])))


def distinct(texts: Iterable[str], size: int, budget: int = 20_000) -> float | None:
    """Distinct runs of `size` words ÷ all runs, over the first `budget` runs of `texts`.

    The budget exists because the ratio falls with length: only equal amounts of text compare.
    None below the budget's tenth. Source: Li et al. 2016, arXiv 1510.03055."""
    types: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        tokens = words(text)
        for at in range(len(tokens) - size + 1):
            types.add(tuple(tokens[at : at + size]))
            total += 1
            if total == budget:
                return len(types) / total
    return len(types) / total if total >= budget // 10 else None


def self_rouge(turns: Sequence[str]) -> float | None:
    """Mean ROUGE-L F1 (0–100) over all pairs of a dialogue's human turns; None for fewer than two.

    High means that the human keeps saying the same. ROUGE-L: Lin 2004, W04-1013, on words, first
    200 of a turn."""
    from rapidfuzz.distance import LCSseq

    tokens = [words(turn)[:_ROUGE_WORDS] for turn in turns]
    tokens = [turn for turn in tokens if turn]
    scores = [
        200 * LCSseq.similarity(first, second) / (len(first) + len(second))
        for at, first in enumerate(tokens)
        for second in tokens[at + 1 :]
    ]
    return fmean(scores) if scores else None


def leans_on_context(turn: str) -> bool:
    """Whether a human turn seems to need what was said before it: a heuristic, named as one
    wherever it is shown.

    True for turns of at most six words that begin as ellipses do ("and", "what about", "why",
    "more" …), and for turns whose first hundred words hold a pronoun or phrase that points back
    ("it", "those", "the above", "you said" …), common expletives aside. It reads no context, so it
    errs both ways."""
    head = " ".join(turn.split()[:100])
    if _ELLIPSIS.match(head) and len(words(head)) <= _ELLIPSIS_WORDS:
        return True
    return bool(_ANAPHORA.search(_EXPLETIVE.sub(" ", head)))


def repeated_share(turns: Sequence[str]) -> float | None:
    """Share of `turns` that say, case and punctuation aside, what an earlier one said."""
    if not turns:
        return None
    return 1 - len({" ".join(words(turn)) or turn.strip() for turn in turns}) / len(turns)


def shuffled(texts: Sequence[str], seed: int) -> list[str]:
    """`texts` in a seeded order, so that a budget takes from everywhere."""
    order = list(texts)
    random.Random(seed).shuffle(order)
    return order


def token_counter(tokenizer: object | None) -> Callable[[list[str]], list[int]]:
    """Lengths of texts in tokens of `tokenizer` (a ``tokenizers.Tokenizer``), or in words without
    one.
    """
    if tokenizer is None:
        return lambda texts: [len(words(text)) for text in texts]
    encode = tokenizer.encode_batch_fast  # type: ignore[attr-defined]
    return lambda texts: [len(encoded) for encoded in encode(texts, add_special_tokens=False)]
