"""A conversation as token ids and labels: exactly the seat's turns and their end tokens carry loss.

Takes a tokenizer, a training template and messages in the seat's view; gives ids and labels. The
mask is the one that TRL's `assistant_only_loss` uses (transformers'
``return_assistant_tokens_mask``), so both give the same labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hubkit.conversation import Message

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids and, position by position, the id again where it carries loss and -100 where
    not.
    """

    input_ids: list[int]
    labels: list[int]

    @property
    def loss_tokens(self) -> int:
        """How many tokens are predicted with loss: the first token of a text is never predicted."""
        return sum(label != IGNORE for label in self.labels[1:])

    def upto(self, loss_tokens: int) -> Encoded:
        """The front part that holds the first `loss_tokens` loss-bearing tokens."""
        places = [i for i, label in enumerate(self.labels) if i and label != IGNORE][:loss_tokens]
        keep = places[-1] + 1 if places else 0
        return Encoded(self.input_ids[:keep], self.labels[:keep])


def encode(
    tokenizer: Any,
    template: str,
    messages: Sequence[Message],
    *,
    max_length: int | None = None,
    trim: bool = True,
) -> Encoded:
    """Encode `messages` (own turns ``assistant``) with `template` (`for_training`), cut to
    `max_length` tokens.

    With `trim`, tokens behind the last loss-bearing one are left out: in a causal model they change
    no loss and no gradient, and for an asker the answer to its last question is the longest part of
    a conversation."""
    out = tokenizer.apply_chat_template(
        list(messages),
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, mask = list(out["input_ids"])[:max_length], list(out["assistant_masks"])[:max_length]
    labels = [token if own else IGNORE for token, own in zip(ids, mask, strict=True)]
    if trim:
        keep = max((i + 1 for i, label in enumerate(labels) if label != IGNORE), default=0)
        ids, labels = ids[:keep], labels[:keep]
    return Encoded(ids, labels)
