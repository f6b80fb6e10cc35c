"""2. asker: the base, trained on the human side of the corpus."""

from __future__ import annotations

from dataclasses import replace

from hubkit.chat_templates import require_name
from hubkit.hub import Ref
from hubkit.pipeline.inputs import base_model
from hubkit.pipeline.seat_training import require_template, train_seat
from hubkit.pipeline.stage import WEIGHTS, RunContext, Stage, StageDirs
from hubkit.pipeline.stage_cards import card
from hubkit.pipeline.stages.people_preference import prefer_people
from hubkit.progress import Progress
from hubkit.untrusted import JsonObject


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The base and the corpus."""
    base = base_model(context, context.recipe.asker, progress)
    return {"base": base, "corpus": context.before("corpus")}


def check(context: RunContext) -> None:
    """Raise `RecipeError` for a template of no known name."""
    require_name(context.recipe.asker.template, "asker.template")


def look_ahead(context: RunContext, refs: dict[str, Ref]) -> None:
    """Raise `TemplateError` where the base's template cannot be used."""
    require_template(context, context.recipe.asker, refs["base"], "asker")


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """The trained asker; with a preference block, preferred towards people afterwards."""
    block = context.recipe.asker
    if block.preference is None:
        return train_seat(context, block, refs["base"], refs["corpus"], dirs)
    first = replace(dirs, out=dirs.scratch / "supervised")
    alone = block.model_copy(
        update={"preference": None}
    )  # its result does not depend on what follows
    report = train_seat(context, alone, refs["base"], refs["corpus"], first)
    base = context.hub.snapshot(refs["base"], allow_patterns=WEIGHTS)
    facts = prefer_people(context, block.preference, base, refs, dirs)
    return {**report, "preference": facts}


STAGE = Stage(
    "asker",
    "asker",
    "model",
    inputs,
    build,
    card("asker", "asker", "asker"),
    ("*.safetensors",),
    check=check,
    look_ahead=look_ahead,
    trains="asker",
)
