"""2. asker: the base, trained on the human side of the corpus."""

from __future__ import annotations

from typing import Any

from hubkit.hub import Ref
from hubkit.pipeline.inputs import base_model
from hubkit.pipeline.seat_training import train_seat
from hubkit.pipeline.stage import RunContext, Stage, StageDirs
from hubkit.pipeline.stage_cards import card
from hubkit.progress import Progress


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The base and the corpus."""
    base = base_model(context, context.recipe.asker, progress)
    return {"base": base, "corpus": context.before("corpus")}


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> dict[str, Any]:
    """The trained asker."""
    return train_seat(context, context.recipe.asker, refs["base"], refs["corpus"], dirs)


STAGE = Stage(
    "asker",
    "asker",
    "model",
    inputs,
    build,
    card("asker", "asker", "asker"),
    ("*.safetensors",),
)
