"""Runs of words as numbers: how near-duplicates and contamination are found without a Python loop
over words.

A run of `words` words becomes one 64-bit number by a polynomial hash taken modulo 2**64: with
prefix sums of byte·B**position, the hash of any stretch is a difference times an inverse power of
B, so all runs of a text cost a few passes over an array. (Karp & Rabin 1987, with the modulus that
wraps by itself.)"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_KEEP = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789") | frozenset(range(128, 256))
_FOLD = bytes(
    b if b in _KEEP else b + 32 if chr(b).isascii() and chr(b).isupper() else 32 for b in range(256)
)
_PARTING = bytes(b for b in range(128) if _FOLD[b] == 32)  # ASCII that parts words


# Scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters; and
# the punctuation and spaces of full width that stand between them.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003134f]"
)
# First bytes in UTF-8 of characters that `_UNSPACED` may match; few texts have any.
_UNSPACED_STARTS = bytes((0xE0, 0xE1, *range(0xE3, 0xEA), 0xEF, 0xF0))
_OTHER_BYTES = bytes(sorted(set(range(256)) - set(_UNSPACED_STARTS)))
_WIDE_MARKS = re.compile(
    "[\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)


# English words of four letters and more that say nothing about a topic.
COMMON_WORDS = frozenset(
    b"""about after again also because been before being both could does doing done each even from
    give
    good have help here into just like make many more most much need only other over please same
    should some such tell than that their them then there these they thing things this those
    through very want well were what when where which while will with would your""".split()
)


def words_of(text: str) -> list[bytes]:
    """Words of `text`, ASCII lower-cased; whatever is neither letter nor digit parts them.

    Where a script puts no spaces between words, each character is a word."""
    encoded = text.encode("utf-8", "replace")
    if (
        len(encoded) > len(text)
        and encoded.translate(None, _OTHER_BYTES)
        and _UNSPACED.search(text)
    ):
        spaced = _UNSPACED.sub(r" \g<0> ", _WIDE_MARKS.sub(" ", text))
        encoded = spaced.encode("utf-8", "replace")
    return encoded.translate(_FOLD).split()


def letters_of(text: str) -> bytes:
    """What texts of the same words have in common, found faster than `words_of`: the letters and
    digits, one after another.
    """
    if text.isascii():
        return text.encode().translate(_FOLD, _PARTING)
    return b" ".join(words_of(text))


def is_unspaced(text: str) -> bool:
    """Whether `text` is mostly in a script that puts no spaces between words."""
    return not text.isascii() and 2 * len(_UNSPACED.findall(text)) > len(text)


def shingles(text: str, words: int) -> npt.NDArray[np.uint64]:
    """One number per run of `words` words in `text`, in order; a shorter text is one run; no words,
    none.
    """
    import numpy as np

    tokens = words_of(text)
    if not tokens:
        return np.empty(0, np.uint64)
    joined = np.frombuffer(b" ".join(tokens), np.uint8)
    powers, inverses = _powers(1 << max(16, len(joined).bit_length()))
    prefix = np.zeros(len(joined) + 1, np.uint64)
    np.cumsum((joined + np.uint64(1)) * powers[: len(joined)], out=prefix[1:])
    spaces = np.flatnonzero(joined == 32)
    starts = np.concatenate(([0], spaces + 1))
    ends = np.concatenate((spaces, [len(joined)]))
    run = min(words, len(tokens))
    first, last = starts[: len(tokens) - run + 1], ends[run - 1 :]
    return _mixed((prefix[last] - prefix[first]) * inverses[first])


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread every input bit over all output bits: the low bits of a polynomial hash know
    little.
    """
    import numpy as np

    values ^= values >> np.uint64(31)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(29)
    return values


@lru_cache(maxsize=4)
def _powers(size: int) -> tuple[Any, Any]:
    import numpy as np

    def row(base: int) -> npt.NDArray[np.uint64]:
        bases = np.full(size, base % 2**64, np.uint64)
        bases[0] = 1
        return np.cumprod(bases, dtype=np.uint64)

    return row(_BASE), row(pow(_BASE, -1, 2**64))
