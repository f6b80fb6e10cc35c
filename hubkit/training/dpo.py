"""Direct preference optimisation of a chat model, on TRL: pairs in, a model folder that can be
pushed out.

Takes a recipe's `Preference` block, parquet files with ``prompt``, ``chosen`` and ``rejected``
(TRL's conversational format), the base and the chat model to start from; gives the same folder as
supervised training does. A chat model that is an adapter is trained further as that adapter,
with a frozen copy of it as the reference; a whole one is its own base, below a new adapter (`lora`)
or as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hubkit import chat_templates
from hubkit.conversation import Seat
from hubkit.progress import Progress
from hubkit.recipe import Preference
from hubkit.training.config import dpo_config, lora_config, model_options
from hubkit.training.identity import Base
from hubkit.training.loading import (
    ChatWeights,
    require_context,
)
from hubkit.training.pairs import PairEncoder, fit
from hubkit.training.process import Rows
from hubkit.training.trainer import NoTelemetry
from hubkit.training.trial import check_training
from hubkit.untrusted import JsonObject


@dataclass(frozen=True)
class Policy:
    """The chat model that preferences are trained into, and how its conversations are printed.

    Attributes:
        base: The model below an adapter.
        folder: The chat model: an adapter of `base`, or a whole model.
        system: The message under which it was trained: prompts without one of their own get it.
        template: As in the chat model's own block.
        thinking: As in the chat model's own block.
        seat: Whose turns the pairs are; ``user`` for an asker, whose view they hold.
    """

    base: Base
    folder: Path
    system: str | None = None
    template: str | None = None
    thinking: chat_templates.Thinking = "off"
    seat: Seat = "assistant"


@dataclass
class DPOTask(ChatWeights):
    """`block` on the chat model in `chat`, an adapter of `base` or a whole model. A
    `hubkit.training.process.Task`.

    `printed_as` and `thinking` are what the chat model's own block says of its template. An asker
    is trained like a chat model, in the other `seat`."""

    block: Preference
    base: Path
    chat: Path
    system: str | None = None
    printed_as: str | None = None
    thinking: chat_templates.Thinking = "off"
    seat: Seat = "assistant"

    @cached_property
    def identity(self) -> str:
        """Which chat model it is, and what it is told."""
        return f"{self.weights_id} {self.system} "

    @property
    def settings(self) -> JsonObject:
        """What went to TRL."""
        return self.block.dpo

    def configure(self, work: Path, *, seed: int) -> tuple[Any, list[str]]:
        """A ``DPOConfig``, and notes."""
        config, notes = dpo_config(self.block, work, seed=seed)
        require_context("dpo.max_length", self.start, config.max_length, "the chat model")
        lora_config(self.block)  # its mistakes are told before anything is loaded
        self.templates.require(self.seat)
        options = model_options(self.block)
        findings = check_training(self.block, self.start, config, options=options)
        findings.require()
        return config, [*notes, *findings.notes]

    def rows(self, data: Sequence[Path], config: Any, work: Path, progress: Progress) -> Rows:
        """Pairs that fit; every process fits its own, to the same end."""
        progress(0, None, "fitting pairs")
        share = self.block.max_drop_share
        encoder = PairEncoder(self.templates, self.tokenizer, self.seat)
        ready, stats = fit(data, encoder, config.max_length, share, system=self.system)
        return Rows(ready, stats.to_dict(), stats.tokens, stats.answer_tokens)

    def trainer(self, config: Any, rows: Rows, watch: Any) -> Any:
        """TRL's ``DPOTrainer`` over `rows`; below an adapter, a frozen copy of itself is the
        reference.
        """
        from datasets import Dataset
        from transformers.trainer_callback import PrinterCallback
        from trl import DPOTrainer

        class PreferenceTrainer(NoTelemetry, DPOTrainer):  # type: ignore[misc]
            """TRL's own, `NoTelemetry`, over pairs that are token ids already."""

            def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
                return dataset

        model, lora = self.trainable(self.block)
        trainer = PreferenceTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows.ready),
            processing_class=self.tokenizer,
            peft_config=lora,
            callbacks=[watch] if watch else None,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer
