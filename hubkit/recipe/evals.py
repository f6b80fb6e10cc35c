"""The block about the eval stage: what is measured on held-out conversations."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hubkit.recipe.against import Against
from hubkit.recipe.block import Block
from hubkit.recipe.identity import Content, Display
from hubkit.recipe.judgement import Published, Scorecard


class Evals(Block):
    """What is measured on held-out conversations."""

    conversations: Content[Annotated[int, Field(ge=2)]] = 200
    """How many held-out conversations."""
    max_tokens: Content[Annotated[int, Field(ge=16)]] = 2048
    """Longest of them, in tokens."""
    resamples: Content[Annotated[int, Field(ge=1)]] = 2000
    """Bootstrap resamples for the interval."""
    confidence: Content[Annotated[float, Field(gt=0, lt=1)]] = 0.95
    """Share of them that the interval covers."""
    prompted_base: Content[bool] = True
    """Also compare an asker with its base that is only told, by its system message, to play the
    user, and keeps its own seat."""
    scorecard: Content[Scorecard | None] = None
    """How like people the asker plays; null: not measured."""
    against: Content[Against | None] = None
    """Chat models in conversation with askers, as a table; null: not held."""
    published: Display[list[Published]] = Field(default_factory=list)
    """Tables of the papers, as published."""
