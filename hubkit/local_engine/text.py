"""Text ↔ token ids with the repo's own tokenizer, and the incremental decoding that streaming
needs.
"""

from __future__ import annotations

import bisect
import functools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import DecodeStream

from hubkit.errors import EngineError
from hubkit.untrusted import require_tokenizer_size

# Prompt tokens that decide how the first generated token is spelt (leading space or not).
_CONTEXT_IDS = 6


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenized text: an id and a half-open character range per token."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class TextCodec:
    """A tokenizer, and what it says about its special tokens."""

    def __init__(self, folder: Path) -> None:
        """Read `folder`/tokenizer.json. Raises `EngineError` when there is none or it is
        malformed.
        """
        path = folder / "tokenizer.json"
        if not path.exists():
            raise EngineError(f"{folder} has no tokenizer.json; push the tokenizer with the model")
        try:
            require_tokenizer_size(path)
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the wheel raises a bare Exception
            raise EngineError(
                f"{path} is not a tokenizer ({error}); push the tokenizer again"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self.control_tokens = tuple(added[i].content for i in self._special)
        self.size = self._tokenizer.get_vocab_size()
        self.longest_token_chars = max(len(token) for token in self._tokenizer.get_vocab())

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        typed_spans: Sequence[tuple[int, int]] = (),
    ) -> Tokens:
        """Tokenize `text`. A control token spelt out in it is recognised, unless it overlaps one
        of the `typed_spans` (half-open character ranges that people wrote).
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        tokens = Tokens(encoding.ids, encoding.offsets)
        control = [
            (i, start, stop)
            for i, (start, stop) in zip(tokens.ids, tokens.offsets, strict=True)
            if i in self._special and start < stop
        ]
        trusted = [
            token
            for token in control
            if not any(a < token[2] and token[1] < b for a, b in typed_spans)
        ]
        if len(trusted) == len(control):
            return tokens
        return self._encode_trusted(text, trusted, add_special_tokens)

    def _encode_trusted(
        self, text: str, trusted: list[tuple[int, int, int]], add_special_tokens: bool
    ) -> Tokens:
        """Tokenize `text` with only the `trusted` control tokens (id, start, stop) recognised.

        They are replaced by stand-ins that cannot be guessed, in a tokenizer that takes the control
        tokens' own spelling for ordinary text; so every other token is cut as it would be."""
        pieces, at = [], 0
        anchors = [(0, 0)]  # (offset in the replaced text, offset in `text`)
        for i, start, stop in trusted:
            pieces += [text[at:start], self._stand_ins[i]]
            at = stop
            anchors.append((sum(map(len, pieces)), stop))
        encoding = self._literal_tokenizer.encode(
            "".join([*pieces, text[at:]]), add_special_tokens=add_special_tokens
        )
        ids, offsets, control = [], [], iter(trusted)
        for i, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            original = self._original_ids.get(i)
            if original is None:
                replaced, fallback = anchors[bisect.bisect(anchors, (start, len(text))) - 1]
                ids.append(i)
                offsets.append((start - replaced + fallback, stop - replaced + fallback))
            else:
                ids.append(original)
                offsets.append(next(control)[1:])
        return Tokens(ids, offsets)

    @functools.cached_property
    def _stand_ins(self) -> dict[int, str]:
        nonce = secrets.token_hex(8)
        return {i: f"\U000f0000{nonce}.{i}\U000f0000" for i in self._special}

    @functools.cached_property
    def _literal_tokenizer(self) -> Tokenizer:
        """The tokenizer that reads stand-ins as control tokens, and these as text."""
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        added = self._tokenizer.get_added_tokens_decoder()
        tokenizer.add_tokens(
            [
                AddedToken(text, lstrip=added[i].lstrip, rstrip=added[i].rstrip, normalized=False)
                for i, text in self._stand_ins.items()
            ]
        )
        tokenizer.encode_special_tokens = True
        return tokenizer

    @functools.cached_property
    def _original_ids(self) -> dict[int, int]:
        """Id of a stand-in → id of the control token."""
        ids = {s: self._literal_tokenizer.token_to_id(s) for s in self._stand_ins.values()}
        return {ids[s] or -1: i for i, s in self._stand_ins.items()}

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself."""
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text

    def is_special(self, token_id: int) -> bool:
        """Whether the token marks structure instead of being text."""
        return token_id in self._special

    def stream(self, prompt_ids: list[int]) -> TextStream:
        """A decoder for what is generated after `prompt_ids`."""
        return TextStream(self._tokenizer, prompt_ids)


class TextStream:
    """Token by token: the text that became whole with this token, "" while a character is still in
    pieces.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=prompt_ids[-_CONTEXT_IDS:], skip_special_tokens=False)

    def push(self, token_id: int) -> str:
        """The new text."""
        return self._stream.step(self._tokenizer, token_id) or ""
