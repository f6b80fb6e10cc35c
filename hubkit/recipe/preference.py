"""The block about preferences: what a chat model gets wrong on purpose, and the training that
follows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hubkit.recipe.block import Block
from hubkit.recipe.dialogue import SeatConfig
from hubkit.recipe.identity import Content, Display, Execution, Narrowed, ReadBy
from hubkit.recipe.judgement import Judging
from hubkit.recipe.training import Expected, trainer_content


class Preference(Block):
    """Pairs of a dialogue's own answer and one that loses the context, and the DPO run over
    them.
    """

    strategies: Content[list[str]] = Field(
        default_factory=lambda: ["neglect", "hallucination", "misunderstanding"]
    )
    """One rejected answer each per question."""
    pairs: Content[Annotated[int, Field(ge=1)] | None] = None
    """At most this many pairs."""
    judging: Content[Judging | None] = None
    """A model that says which questions need their context; null: the heuristic of
    `hubkit.preference.context`.
    """
    chat: Content[SeatConfig]
    """Who writes the rejected answers; its `repo` is ``chat``, what this recipe trained, or a
    repo.
    """
    cut_off: Content[Literal["drop", "whole_sentences"]] = "drop"
    """An answer that ran into its token limit is dropped, or cut back to its last whole
    sentence.
    """
    in_flight: Execution[Annotated[int, Field(ge=1)]] = 64
    """Most requests at once."""
    request_timeout_s: Execution[Annotated[float, Field(gt=0)]] = 300.0
    """Longest wait for one answer."""
    max_drop_share: Execution[Annotated[float, Field(ge=0, le=1), ReadBy("align")]] = 0.5
    """A run that would drop more of its rows refuses to start."""
    checkpoint_minutes: Execution[Annotated[float, Field(gt=0), ReadBy("align")]] = 15.0
    """The longest time that a kill can cost."""
    lora: Content[Annotated[dict[str, Any] | None, ReadBy("align")]] = None
    """For chat models that are whole; one that is an adapter is trained further as one, with
    itself as the reference."""
    merge_adapter: Content[Annotated[bool, ReadBy("align")]] = False
    """Push the merged weights instead of the adapter."""
    dpo: Content[Annotated[dict[str, Any], Narrowed(trainer_content), ReadBy("align")]] = Field(
        default_factory=dict
    )
    """Goes as it is to TRL's DPOConfig."""
    expected: Display[Expected | None] = None
    """For plans alone: how many pairs, and tokens in both sequences of one."""
