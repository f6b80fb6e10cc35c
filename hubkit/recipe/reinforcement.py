"""The block about reinforcement: who a chat model talks with, what is rewarded, the GRPO run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from hubkit.recipe.block import Block
from hubkit.recipe.dialogue import SeatConfig
from hubkit.recipe.identity import Content, Display, Execution, Narrowed
from hubkit.recipe.judgement import Judging
from hubkit.recipe.training import Expected, trainer_content


class RewardTerm(Block):
    """One reward of several, which are added up by their weights."""

    @field_validator("rubric")
    @classmethod
    def _read_rubric(cls, value: str | None) -> str | None:
        """A file becomes its text: what decides the result is what it says."""
        if value is None or "\n" in value or not value.endswith((".md", ".txt")):
            return value
        try:
            return Path(value).expanduser().read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{value} cannot be read ({type(error).__name__})") from None

    name: Content[str]
    """A built-in one (``judges``, ``next_turn``, ``length``, ``format``), or a plug-in's."""
    weight: Content[float] = 1.0
    """What its values are multiplied by before they are added."""
    args: Content[dict[str, Any]] = Field(default_factory=dict)
    """Keyword arguments of its factory."""
    judges: Content[list[Judging]] = Field(default_factory=list)
    """Who judges, for ``judges``; their ratings are averaged."""
    rubric: Content[str | None] = None
    """What judges are told, or the path of a file (``.md``, ``.txt``) that says it; null: the
    rubric that ships.
    """
    timeout_s: Execution[Annotated[float, Field(gt=0)]] = 900.0
    """Longest wait for the values of one batch; what is late is masked."""


class Reinforce(Block):
    """The chat model in conversation with frozen askers, and the GRPO run over what comes out."""

    askers: Content[dict[str, SeatConfig]] = Field(default_factory=dict)
    """Who asks, by name; one is drawn for each group of conversations with the same opening, so
    that a group compares answers, not askers. Empty: the rollout's asker alone."""
    end_mark: Content[str | None] = None
    """Text with which an asker ends a conversation; null: the rollout's."""
    answers: Content[Annotated[int, Field(ge=1)]] = 5
    """Most answers of a conversation: the turn cap."""
    openings: Content[Annotated[int, Field(ge=1)]] = 64
    """Held-out first turns to train on."""
    held_out: Content[Annotated[int, Field(ge=0)]] = 32
    """Further ones, on which the rewards are measured before and after; 0: not measured."""
    max_opening_chars: Content[Annotated[int, Field(ge=1)]] = 4000
    """Longer first turns are passed over."""
    context: Content[Annotated[int, Field(ge=16)]] = 4096
    """Most tokens of a conversation; one that has no room for another answer ends."""
    rewards: Content[list[RewardTerm]] = Field(
        default_factory=lambda: [RewardTerm(name="next_turn")], min_length=1
    )
    """What is rewarded. A conversation that one of them cannot score carries no loss."""
    flat_batches: Execution[Annotated[int, Field(ge=1)]] = 3
    """So many batches in a row of which nothing can be learned (every group has equal rewards, or
    none) end the run; a batch whose conversations are all masked ends it at once."""
    resamples: Content[Annotated[int, Field(ge=10)]] = 2000
    """Bootstrap resamples for the interval of the measured difference."""
    in_flight: Execution[Annotated[int, Field(ge=1)]] = 64
    """Most requests to askers at once."""
    request_timeout_s: Execution[Annotated[float, Field(gt=0)]] = 300.0
    """Longest wait for one turn of an asker."""
    patience_s: Execution[Annotated[float, Field(gt=0)]] = 900.0
    """How long to wait while none of an asker's addresses answers."""
    checkpoint_minutes: Execution[Annotated[float, Field(gt=0)]] = 15.0
    """The longest time between checkpoints of the weights; what was said since is in a journal."""
    budget_usd: Execution[Annotated[float, Field(ge=0)] | None] = None
    """Cap on money for the askers, over all sessions; each judge has its own."""
    budget_tokens: Execution[Annotated[int, Field(ge=1)] | None] = None
    """Cap on the askers' tokens, in and out."""
    max_hours: Execution[Annotated[float, Field(ge=0)] | None] = None
    """Cap on hours; the weights of the last whole step are the result."""
    lora: Content[dict[str, Any] | None] = None
    """For chat models that are whole; one that is an adapter is trained further as one, with
    itself as the reference."""
    merge_adapter: Content[bool] = False
    """Push the merged weights instead of the adapter."""
    grpo: Content[Annotated[dict[str, Any], Narrowed(trainer_content)]] = Field(
        default_factory=dict
    )
    """Goes as it is to TRL's GRPOConfig."""
    expected: Display[Expected | None] = None
    """For plans alone: how many conversations in all, and tokens in each."""

    @model_validator(mode="after")
    def _no_batches(self) -> Reinforce:
        judges = [judge.judge for term in self.rewards for judge in term.judges]
        if any(seat.batch for seat in [*judges, *self.askers.values()]):
            raise ValueError(
                "batch: true answers within a day, and training waits for each answer of an asker "
                "or a judge; leave batch out"
            )
        return self
