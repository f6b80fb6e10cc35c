"""One conversation as the token ids that the policy reads, writes and is trained on.

The ids that were sampled are the ids that carry loss: nothing is decoded and encoded again. What
stands between two answers (the end of a turn that was cut off, the asker's turn, the next header)
is printed by the proven template, and carries none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hubkit.chat_templates import SeatTemplates
from hubkit.chat_templates.text_tokenizer import text_tokenizer
from hubkit.conversation import Message
from hubkit.errors import TemplateError

_ANSWER = "x"  # stands for the answer before what is printed after it


@dataclass
class Transcript:
    """`prompt` is what the first answer was written after; of each id of `completion`, `mask` says
    1 where the policy sampled it and 0 where it did not."""

    prompt: list[int]
    completion: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """What the next answer is written after."""
        return [*self.prompt, *self.completion]

    @property
    def sampled(self) -> int:
        """Tokens that the policy wrote."""
        return sum(self.mask)

    def answer(self, ids: Sequence[int]) -> None:
        """Add an answer as it was sampled, its end token included."""
        self.completion += ids
        self.mask += [1] * len(ids)

    def between(self, ids: Sequence[int]) -> None:
        """Add what the policy did not write."""
        self.completion += ids
        self.mask += [0] * len(ids)


class TranscriptPrinter:
    """Prints conversations for the chat model's seat.

    Args:
        templates: How its base prints conversations.
        tokenizer: Its tokenizer.
        system: The chat model's system message.

    Attributes:
        turn_marks: The control tokens that open turns of the template.

    Raises:
        TemplateError: The template prints earlier answers differently from the last one, so no one
            sequence of tokens is what every answer was written after.
    """

    def __init__(self, templates: SeatTemplates, tokenizer: Any, system: str | None) -> None:
        templates.require("assistant")
        if not templates.layout.extends("assistant", system=bool(system)):
            raise TemplateError(
                "this base prints an earlier answer differently from the last one, so a "
                "conversation is no single sequence of tokens that GRPO could train on; write "
                "chat.template: NAME of a template without thinking, or train another base"
            )
        self._templates, self._tokenizer = templates, tokenizer
        self.turn_marks = templates.turn_marks
        self._head: list[Message] = [{"role": "system", "content": system}] if system else []

    def open(self, messages: Sequence[Message]) -> Transcript:
        """The transcript of a conversation that the chat model is to continue."""
        view = [*self._head, *messages]
        return Transcript(self._templates.encode_prompt(self._tokenizer, view, "assistant"))

    def text(self, ids: Sequence[int]) -> str:
        """An answer as it is recorded: without control tokens, trimmed."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def after_answer(self, answer: Sequence[int], turn: str) -> list[int]:
        """What is read between an answer and the next one: what the answer lacks of its end, the
        asker's `turn`, and the header of the next answer."""
        view: list[Message] = [
            {"role": "user", "content": _ANSWER},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": turn},
        ]
        segments = self._templates.segments(view, "assistant", add_generation_prompt=True)
        content = max(
            i for i, segment in enumerate(segments) if segment.has_loss and not segment.is_mark
        )
        ids = text_tokenizer(self._tokenizer).encode(segments[content + 1 :]).ids
        return ids[1:] if answer and ids and answer[-1] == ids[0] else ids
