"""Blocks about training: one run of fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hubkit.recipe.block import Block


class Expected(Block):
    """What a training run is planned by while its data, or the machine that it is meant for, is not
    there.
    """

    conversations: Annotated[int, Field(ge=1)]
    """How many, as a source reports them."""
    tokens: Annotated[int, Field(ge=1)]
    """Mean in each, before truncation."""
    device: str | None = None
    """Part of a GPU's name."""
    device_gib: Annotated[float, Field(gt=0)] | None = None
    """Its memory."""
    processes: Annotated[int, Field(ge=1)] = 1
    """How many of them."""
    launch: Literal["ddp", "fsdp2", "deepspeed"] | None = None
    """How the run is spread over them."""


class Training(Block):
    """One SFT run over one seat's turns."""

    base: str
    """Model repo to train."""
    base_revision: str = "main"
    """Branch, tag or commit of it."""
    seat: Literal["user", "assistant"]
    """Whose tokens carry loss."""
    system: str | None = None
    """The seat's system message."""
    end_mark: str | None = None
    """Text that the seat learns to say when a conversation is over."""
    intent_column: str | None = None
    """Column that says what this conversation's human wants: it goes into the system message, in
    place of ``{intent}`` or behind it."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of rows kept for evaluation during training."""
    early_stopping: Annotated[int, Field(ge=1)] | None = None
    """Evaluations without a better one that end the run."""
    quantize: Literal["4bit"] | None = None
    """Load the base in 4 bits below the adapter (QLoRA; needs a CUDA GPU)."""
    max_conversations: int | None = None
    """Bound on one epoch."""
    max_tokens: int | None = None
    """Bound on one epoch, in tokens after truncation."""
    max_drop_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A run that would drop more of its rows refuses to start."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 15.0
    """The longest time that a kill can cost, unless ``sft.save_strategy`` says otherwise."""
    merge_adapter: bool = False
    """Push the merged weights instead of the adapter."""
    lora: dict[str, Any] | None = None
    """Goes to PEFT's LoraConfig; none means all weights are trained."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Goes as it is to TRL's SFTConfig."""
    expected: Expected | None = None
    """For plans alone: it changes nothing of what is trained."""
