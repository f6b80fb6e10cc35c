"""Text ↔ token ids with the repo's own tokenizer, and the incremental half that streaming needs."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Encoding, Tokenizer
from tokenizers.decoders import DecodeStream

from hubkit.errors import EngineError

_CONTEXT_IDS = (
    6  # prompt tokens that decide how the first generated token is spelt (leading space or not)
)


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
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the wheel raises a bare Exception
            raise EngineError(
                f"{path} is not a tokenizer ({error}); push the tokenizer again"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self.longest_token_chars = max(len(token) for token in self._tokenizer.get_vocab())

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        """Token ids and character offsets; special tokens spelt out in `text` are recognised."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

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
