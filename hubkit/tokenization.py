"""Tokenizers, loaded in one way; and how many tokens a text has where no tokenizer counts them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hubkit.errors import SourceError, refusing_remote_code
from hubkit.untrusted import require_tokenizer_size

_CHARS_PER_TOKEN = 4  # of prose, about
_FEWEST_CHARS_PER_TOKEN = 3  # so that an estimate is rather too long than too short
TOKENS_PER_MESSAGE = 6  # headers of a turn, at most, in the usual templates


def likely_tokens(chars: int) -> int:
    """Estimate the tokens of `chars` characters: for prices, and for what a server did not count.

    >>> likely_tokens(len("How do I bake bread?"))
    5
    """
    return chars // _CHARS_PER_TOKEN


def most_tokens(chars: int) -> int:
    """Estimate the most tokens that `chars` characters usually have: for limits and caps."""
    return chars // _FEWEST_CHARS_PER_TOKEN


def prompt_estimate(texts: Iterable[str]) -> int:
    """Estimate the most tokens of a prompt whose messages hold `texts`."""
    return sum(most_tokens(len(text)) + TOKENS_PER_MESSAGE for text in texts)


def load_tokenizer(folder: Path, *, gguf_file: str | None = None) -> Any:
    """Load the tokenizer in `folder` as transformers reads it.

    Args:
        folder: A model's folder.
        gguf_file: The name of a GGUF file in it that holds the tokenizer.

    Raises:
        SourceError: It holds none that can be read.
    """
    from transformers import AutoTokenizer

    options = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        require_tokenizer_size(folder / "tokenizer.json")
        with refusing_remote_code(str(folder)):
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{folder} holds no tokenizer that transformers reads "
            f"({' '.join(str(error).split())[:300]}); fetch the model again"
        ) from None


def load_fast_tokenizer(path: Path) -> Any:
    """Load a ``tokenizer.json`` alone, without transformers, to count with.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        SourceError: It cannot be read.
    """
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        require_tokenizer_size(file)
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower class
        raise SourceError(
            f"{file} cannot be read as a tokenizer: {error}; give a folder with a tokenizer.json"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
