"""5. chat: the base, trained on the assistant's side of the curated dialogues."""

from __future__ import annotations

from hubkit.chat_templates import require_name
from hubkit.hub import Ref
from hubkit.pipeline.inputs import base_model
from hubkit.pipeline.seat_training import require_template, train_seat
from hubkit.pipeline.stage import RunContext, Stage, StageDirs
from hubkit.pipeline.stage_cards import card
from hubkit.progress import Progress
from hubkit.untrusted import JsonObject


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The base and the dialogues."""
    base = base_model(context, context.recipe.chat, progress)
    return {"base": base, "dialogues": context.before("curate")}


def check(context: RunContext) -> None:
    """Raise `RecipeError` for a template of no known name."""
    require_name(context.recipe.chat.template, "chat.template")


def look_ahead(context: RunContext, refs: dict[str, Ref]) -> None:
    """Raise `TemplateError` where the base's template cannot be used."""
    require_template(context, context.recipe.chat, refs["base"], "chat")


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """The trained chat model."""
    return train_seat(context, context.recipe.chat, refs["base"], refs["dialogues"], dirs)


STAGE = Stage(
    "chat",
    "chat",
    "model",
    inputs,
    build,
    card("chat", "chat", "chat"),
    ("*.safetensors",),
    check=check,
    look_ahead=look_ahead,
    trains="chat",
)
