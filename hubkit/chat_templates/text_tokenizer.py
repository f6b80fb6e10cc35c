"""Tokenization in which only a template's own marks become control tokens, never typed text.

A person may write ``<|im_end|>``. A tokenizer reads that as the token that ends a turn, wherever it
stands. Here the tokenizer is copied with each of its added tokens under an alias that no text
holds; marks are printed with the aliases and contents as they are, so the copy splits the marks as
the tokenizer would and reads the contents as plain text, in one pass over the whole text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hubkit.chat_templates.layout import Segment
from hubkit.errors import TemplateError
from hubkit.untrusted import parse_json

# Unicode noncharacters (section 23.7): for use inside a program, never in text that is exchanged.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_NONCHARACTERS = re.compile("[\ufdd0\ufdd1]")


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """Token ids, and for each whether any of its characters carries loss."""

    ids: list[int]
    has_loss: list[bool]


class TextTokenizer:
    """A tokenizer's copy that reads control tokens in marks alone.

    Args:
        tokenizer: A transformers tokenizer, or a ``tokenizers.Tokenizer``.

    Raises:
        TemplateError: It is written in Python alone, without a ``tokenizer.json``."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not hasattr(backend, "to_str"):
            raise TemplateError(
                f"{type(tokenizer).__name__} has no tokenizer.json, so typed control tokens cannot "
                "be told from real ones; convert it with transformers' convert_slow_tokenizer"
            )
        from tokenizers import Tokenizer

        data, self._aliases = _with_aliases(parse_json(backend.to_str()))
        self._copy = Tokenizer.from_str(json.dumps(data))
        self._copy.no_truncation()
        self._copy.no_padding()
        self._ids = {
            self._copy.token_to_id(alias): backend.token_to_id(token)
            for token, alias in self._aliases.items()
        }
        self._tokens = re.compile(
            "|".join(re.escape(t) for t in sorted(self._aliases, key=len, reverse=True)) or r"(?!)"
        )

    def encode(self, segments: Sequence[Segment]) -> TokenizedText:
        """Tokenize printed text. Noncharacters in contents are left out."""
        pieces: list[str] = []
        borders: list[tuple[int, bool]] = []
        size = 0
        for segment in segments:
            text = _NONCHARACTERS.sub("", segment.text)
            if segment.is_mark:
                text = self._tokens.sub(lambda match: self._aliases[match[0]], text)
            size += len(text)
            pieces.append(text)
            borders.append((size, segment.has_loss))
        encoding = self._copy.encode("".join(pieces), add_special_tokens=False)
        ids = [self._ids.get(token, token) for token in encoding.ids]
        return TokenizedText(ids, _loss_of(encoding.offsets, borders))


def _loss_of(offsets: Sequence[tuple[int, int]], borders: list[tuple[int, bool]]) -> list[bool]:
    """Whether each token touches a segment with loss; both lists are in the order of the text."""
    has_loss, position, start_of = [], 0, 0
    for start, end in offsets:
        while position < len(borders) - 1 and borders[position][0] <= start:
            start_of = borders[position][0]
            position += 1
        index, touched = position, False
        begin = start_of
        while index < len(borders) and begin < max(end, start + 1):
            touched |= borders[index][1] and borders[index][0] > start
            begin = borders[index][0]
            index += 1
        has_loss.append(touched)
    return has_loss


def _with_aliases(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A tokenizer's JSON with its added tokens renamed, and the new names."""
    aliases = {
        token["content"]: f"{_OPEN}{index}{_CLOSE}"
        for index, token in enumerate(data.get("added_tokens") or [])
        if token["content"]
    }
    for token in data.get("added_tokens") or []:
        token["content"] = aliases.get(token["content"], token["content"])
    model = data["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        # An added token must keep its place in the vocabulary, or text could still be read as it.
        model["vocab"] = {aliases.get(text, text): number for text, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[aliases.get(text, text), score] for text, score in vocabulary]
    if unknown := model.get("unk_token"):
        model["unk_token"] = aliases.get(unknown, unknown)
    if merges := model.get("merges"):
        model["merges"] = [pair for pair in merges if _keeps(pair, aliases)]
    data["post_processor"] = None
    return data, aliases


def _keeps(pair: Any, aliases: dict[str, str]) -> bool:
    first, second = pair if isinstance(pair, list) else pair.split(" ", 1)
    return not {first, second, first + second} & aliases.keys()


def text_tokenizer(tokenizer: Any) -> TextTokenizer:
    """The `TextTokenizer` of `tokenizer`, made once."""
    wrapper = getattr(tokenizer, "_hubkit_text_tokenizer", None)
    if wrapper is None:
        wrapper = TextTokenizer(tokenizer)
        tokenizer._hubkit_text_tokenizer = wrapper
    return wrapper
