"""The stages, in order: the table of contents of a run."""

from __future__ import annotations

from hubkit.pipeline.stage import Stage
from hubkit.pipeline.stages import (
    align,
    asker,
    chat,
    corpus,
    curate,
    eval,
    prefer,
    reinforce,
    rollout,
)
from hubkit.recipe import Recipe

STAGES: tuple[Stage, ...] = (
    corpus.STAGE,
    asker.STAGE,
    rollout.STAGE,
    curate.STAGE,
    chat.STAGE,
    prefer.STAGE,
    align.STAGE,
    reinforce.STAGE,
    eval.STAGE,
)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of `recipe`, in order: without those whose block it does not have."""
    return tuple(s for s in STAGES if not s.needs or getattr(recipe, s.needs) is not None)
