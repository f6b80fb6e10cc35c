"""SFTTask fine-tuning of one seat, on TRL: the task that `hubkit.training.process` carries out.

Takes a recipe's `Training` block and a base model's folder; gives TRL's trainer over prepared rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hubkit import chat_templates
from hubkit.conversation import Seat
from hubkit.progress import Progress
from hubkit.recipe import Training
from hubkit.tokenization import load_tokenizer
from hubkit.training import rows as rows_
from hubkit.training.config import lora_config, model_options, sft_config
from hubkit.training.loading import (
    load_base,
    require_context,
    require_pad_token,
)
from hubkit.training.process import Rows
from hubkit.training.trainer import trainer_class
from hubkit.training.trial import check_training
from hubkit.untrusted import JsonObject


@dataclass
class SFTTask:
    """`block` on the model in the folder `start`. A `hubkit.training.process.Task`."""

    block: Training
    start: Path
    identity: str = ""

    @property
    def seat(self) -> Seat:
        """Whose turns carry loss."""
        return self.block.seat

    @property
    def system(self) -> str | None:
        """The seat's system message."""
        return self.block.system

    @property
    def settings(self) -> JsonObject:
        """What went to TRL."""
        return self.block.sft

    @cached_property
    def templates(self) -> chat_templates.SeatTemplates:
        """How the base prints conversations."""
        return chat_templates.for_base(
            self.start, template=self.block.template, thinking=self.block.thinking or "off"
        )

    @property
    def template(self) -> str:
        """The training template, with its marks."""
        return self.templates.source(self.block.seat, marks=True)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        tokenizer = load_tokenizer(self.start)
        require_pad_token(tokenizer)
        return tokenizer

    def configure(self, work: Path, *, seed: int) -> tuple[Any, list[str]]:
        """An ``SFTConfig``, and notes."""
        config, notes = sft_config(self.block, work, seed=seed)
        require_context("sft.max_length", self.start, config.max_length, self.block.base)
        lora_config(self.block)  # its mistakes are told before anything is loaded
        self.templates.require(self.seat)
        alone = config.world_size == 1  # of several processes none makes a trainer by itself
        findings = check_training(
            self.block,
            self.start,
            config,
            options=model_options(self.block),
            templates=self.templates,
            tokenizer=self.tokenizer if alone else None,
        )
        findings.require()
        return config, [*notes, *findings.notes]

    def rows(self, data: Sequence[Path], config: Any, work: Path, progress: Progress) -> Rows:
        """Conversations as token rows, memory-mapped; of several processes the first one encodes
        them.
        """
        progress(0, None, "tokenising")
        maker = rows_.RowMaker(
            self.block, self.tokenizer, self.templates, max_length=config.max_length
        )
        with config.main_process_first(local=False, desc="tokenising"):
            prepare = rows_.prepare if config.process_index == 0 else rows_.prepared
            arrow, stats = prepare(
                self.block, data, maker, work, seed=config.seed, progress=progress
            )
        return Rows(arrow, stats.to_dict(), stats.tokens, stats.loss_tokens)

    def trainer(self, config: Any, rows: Rows, watch: Any) -> Any:
        """TRL's ``SFTTrainer`` over `rows`, some of them held out where the block says so."""
        from datasets import Dataset
        from transformers import EarlyStoppingCallback
        from transformers.trainer_callback import PrinterCallback

        if config.dataset_kwargs is None and not config.packing:
            config.dataset_kwargs = {"skip_prepare_dataset": True}  # the rows are ready as they are
        model = load_base(
            self.start,
            adapter=self.block.lora is not None,
            quantize=self.block.quantize,
            options=model_options(self.block),
        )
        parts = {"train": Dataset.from_file(str(rows.ready)), "test": None}
        if self.block.holdout:
            parts = parts["train"].train_test_split(self.block.holdout, seed=config.seed)
        trainer = trainer_class()(
            model=model,
            args=config,
            train_dataset=parts["train"],
            eval_dataset=parts["test"],
            processing_class=self.tokenizer,
            peft_config=lora_config(self.block, model),
            callbacks=[watch] if watch else None,
        )
        if self.block.early_stopping:
            trainer.add_callback(EarlyStoppingCallback(self.block.early_stopping))
        trainer.remove_callback(PrinterCallback)
        return trainer
