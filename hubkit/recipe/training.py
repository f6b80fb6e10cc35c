"""Blocks about training: one run of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from hubkit.conversation import FieldPolicy
from hubkit.recipe.block import Block
from hubkit.recipe.dialogue import Sampling
from hubkit.recipe.identity import Content, Display, Execution, Narrowed
from hubkit.recipe.template_source import TemplateSource

_PACE_ARGUMENTS = {
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "dataset_num_proc", "disable_tqdm", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "logging_dir", "logging_first_step", "logging_nan_inf_filter",
    "logging_steps", "logging_strategy", "project", "report_to", "run_name", "trackio_space_id",
    "trackio_static_space_id",
}  # fmt: skip
_CHECKPOINT_ARGUMENTS = {"save_only_model", "save_steps", "save_strategy", "save_total_limit"}


def trainer_content(block: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's `arguments` that decide what is trained: without logging, data loading and
    checkpoints, which count only where the best checkpoint becomes the result."""
    ignored = _PACE_ARGUMENTS
    if not (block.get("early_stopping") or arguments.get("load_best_model_at_end")):
        ignored = ignored | _CHECKPOINT_ARGUMENTS
    return {name: value for name, value in arguments.items() if name not in ignored}


class Expected(Block):
    """What a training run is planned by while its data, or the machine that it is meant for, is not
    there.
    """

    conversations: Display[Annotated[int, Field(ge=1)]]
    """How many, as a source reports them."""
    tokens: Display[Annotated[int, Field(ge=1)]]
    """Mean in each, before truncation."""
    device: Display[str | None] = None
    """Part of a GPU's name."""
    device_gib: Display[Annotated[float, Field(gt=0)] | None] = None
    """Its memory."""
    processes: Display[Annotated[int, Field(ge=1)]] = 1
    """How many of them."""
    launch: Display[Literal["ddp", "fsdp2", "deepspeed"] | None] = None
    """How the run is spread over them."""


class PeoplePairs(Block):
    """Pairs of what a person said next and what the asker says in the same place, and the DPO run
    over them after the asker's training. The scorecard of ``eval.scorecard`` is taken before and
    after. Needs the asker to be served by the local engine."""

    contexts: Content[Annotated[int, Field(ge=1)]] = 2000
    """Places in the asker's training conversations, one each at most."""
    samples: Content[Annotated[int, Field(ge=1)]] = 4
    """Turns that are sampled in each; the one nearest in length to the person's is rejected."""
    max_length_ratio: Content[Annotated[float, Field(gt=1)]] = 1.5
    """A pair whose longer turn is more than so many times as long is dropped."""
    max_unknown_words: Content[Annotated[float, Field(ge=0, le=1)]] = 0.2
    """A pair is dropped whose person's turn has a greater share of words that no other conversation
    holds: mostly typos."""
    context_chars: Content[Annotated[int, Field(ge=100)]] = 6000
    """Most characters before the turn."""
    sampling: Content[Sampling] = Sampling()
    """How the asker's turns are sampled."""
    in_flight: Execution[Annotated[int, Field(ge=1)]] = 16
    """Most requests at once."""
    request_timeout_s: Execution[Annotated[float, Field(gt=0)]] = 300.0
    """Longest wait for one answer."""
    max_drop_share: Execution[Annotated[float, Field(ge=0, le=1)]] = 0.5
    """A run that would drop more of its pairs as too long refuses to start."""
    checkpoint_minutes: Execution[Annotated[float, Field(gt=0)]] = 15.0
    """The longest time that a kill can cost."""
    dpo: Content[Annotated[dict[str, Any], Narrowed(trainer_content)]] = Field(default_factory=dict)
    """Goes as it is to TRL's DPOConfig."""


class Training(Block):
    """One SFT run over one seat's turns."""

    base: Content[str]
    """Model repo to train."""
    base_revision: Content[str] = "main"
    """Branch, tag or commit of it."""
    seat: Content[Literal["user", "assistant"]]
    """Whose tokens carry loss."""
    system: Content[str | None] = None
    """The seat's system message."""
    template: Content[TemplateSource] = None
    """How conversations are printed; null: as the base's own chat template does, or its family's
    where it has none. ``base``, a family's name, ``plain``, or the path of a Jinja file."""
    thinking: Content[Literal["off", "keep"] | None] = None
    """Whether answers are trained on with their thinking; null: ``off``."""
    tools: Content[FieldPolicy | None] = None
    """What is done with tool calls and results; null: ``keep``."""
    end_mark: Content[str | None] = None
    """Text that the seat learns to say when a conversation is over."""
    preference: Content[PeoplePairs | None] = None
    """Of the asker: preference training on people's own next turns, after this run; null: none."""
    intent_column: Content[str | None] = None
    """Column that says what this conversation's human wants: it goes into the system message, in
    place of ``{intent}`` or after it."""
    holdout: Content[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    """Share of rows kept for evaluation during training."""
    early_stopping: Content[Annotated[int, Field(ge=1)] | None] = None
    """Evaluations without a better one that end the run."""
    quantize: Content[Literal["4bit"] | None] = None
    """Load the base in 4 bits below the adapter (QLoRA; needs a CUDA GPU)."""
    max_conversations: Content[Annotated[int, Field(ge=1)] | None] = None
    """Bound on one epoch."""
    max_tokens: Content[Annotated[int, Field(ge=1)] | None] = None
    """Bound on one epoch, in tokens after truncation."""
    max_loss_tokens: Content[Annotated[int, Field(ge=1)] | None] = None
    """Bound on one epoch, in tokens that carry loss; met exactly, by cutting the last row."""
    max_drop_share: Execution[Annotated[float, Field(ge=0, le=1)]] = 0.5
    """A run that would drop more of its rows refuses to start."""
    checkpoint_minutes: Execution[Annotated[float, Field(gt=0)]] = 15.0
    """The longest time that a kill can cost, unless ``sft.save_strategy`` says otherwise."""
    merge_adapter: Content[bool] = False
    """Push the merged weights instead of the adapter."""
    lora: Content[dict[str, Any] | None] = None
    """Goes to PEFT's LoraConfig; none means all weights are trained."""
    sft: Content[Annotated[dict[str, Any], Narrowed(trainer_content)]] = Field(default_factory=dict)
    """Goes as it is to TRL's SFTConfig."""
    expected: Display[Expected | None] = None
    """For plans alone: it changes nothing of what is trained."""

    @property
    def gives_adapter(self) -> bool:
        """Whether what is trained is an adapter (LoRA, not merged), not whole weights."""
        return self.lora is not None and not self.merge_adapter
