"""A printed conversation as token ids and labels: the seat's turns and their ends carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hubkit.chat_templates.layout import Segment
from hubkit.chat_templates.text_tokenizer import text_tokenizer

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids and, for each, its label: the id again where it carries loss, -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]

    @property
    def loss_tokens(self) -> int:
        """How many tokens are predicted with loss: the first token of a text is never predicted."""
        return sum(label != IGNORE for label in self.labels[1:])

    def upto(self, loss_tokens: int) -> Encoded:
        """The part that holds the first `loss_tokens` loss-bearing tokens."""
        places = [i for i, label in enumerate(self.labels) if i and label != IGNORE][:loss_tokens]
        size = places[-1] + 1 if places else 0
        return Encoded(self.input_ids[:size], self.labels[:size])


def encode_segments(
    tokenizer: Any,
    segments: Sequence[Segment],
    *,
    max_length: int | None = None,
    trim: bool = True,
) -> Encoded:
    """Tokenize `segments`: marks as control tokens, contents as text.

    Args:
        tokenizer: The base's.
        segments: A printed conversation.
        max_length: Tokens after which the rest is cut off.
        trim: Whether tokens after the last loss-bearing one are left out: in a causal model they
            change no loss and no gradient, and for an asker the answer to its last question is the
            longest part of a conversation."""
    text = text_tokenizer(tokenizer).encode(segments)
    ids = text.ids[:max_length]
    labels = [token if loss else IGNORE for token, loss in zip(ids, text.has_loss, strict=False)]
    if trim:
        size = max((i + 1 for i, label in enumerate(labels) if label != IGNORE), default=0)
        ids, labels = ids[:size], labels[:size]
    return Encoded(ids, labels)
