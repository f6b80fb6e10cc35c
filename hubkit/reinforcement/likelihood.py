"""How likely the frozen asker finds a turn, computed by the model itself in this process.

It is exact and needs no server that gives log-probabilities of prompts. The asker is held in memory
once more for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hubkit import chat_templates
from hubkit.chat_templates.encode import encode_segments
from hubkit.conversation import Message
from hubkit.errors import RecipeError
from hubkit.recipe import Training
from hubkit.tokenization import load_tokenizer
from hubkit.training.likelihood import load_model, score
from hubkit.training.rows import seat_view


class AskerLikelihood:
    """The asker in `folder` (an adapter of `base`, or a whole model), as `block` trained it."""

    def __init__(self, block: Training, base: Path, folder: Path) -> None:
        self._block, self._base, self._folder = block, base, folder

    async def of_turn(self, history: Sequence[Message], turn: str, intent: str) -> float:
        """Mean log-probability of the tokens of `turn` and its end."""
        messages: list[Message] = [*history, {"role": "user", "content": turn}]
        return await asyncio.to_thread(self._mean, messages, intent)

    async def of_end(self, history: Sequence[Message], intent: str) -> float:
        """Mean log-probability of the tokens of its end mark, as its next turn."""
        if not self._block.end_mark:
            raise RecipeError(
                "reinforce.rewards: next_turn of: end, but the asker was trained without an "
                "end_mark; reward of: turn"
            )
        return await self.of_turn(history, self._block.end_mark, intent)

    def _mean(self, messages: Sequence[Message], intent: str) -> float:
        view = seat_view(messages, "user", self._block.system, intent=intent or None)
        segments = self._templates.layout.segments(view, "user", loss_from=len(view) - 1)
        encoded = encode_segments(self._tokenizer, segments)
        return -score(self._model, encoded) / max(encoded.loss_tokens, 1)

    @cached_property
    def _templates(self) -> chat_templates.SeatTemplates:
        thinking = self._block.thinking or "off"
        return chat_templates.for_base(self._base, template=self._block.template, thinking=thinking)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._folder)

    @cached_property
    def _model(self) -> Any:
        return load_model(self._base, self._folder)
