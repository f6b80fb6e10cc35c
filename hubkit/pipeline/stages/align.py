"""7. align, for recipes with a preference block: direct preference optimisation of the chat model.

It commits to a repo of its own: the chat model stays as it was, so the two can be compared."""

from __future__ import annotations

from hubkit import training
from hubkit.hub import Ref
from hubkit.pipeline.inputs import base_model
from hubkit.pipeline.stage import WEIGHTS, RunContext, Stage, StageDirs, parquet
from hubkit.pipeline.stage_cards import card
from hubkit.pipeline.stages.prefer import preference_block
from hubkit.progress import Progress
from hubkit.untrusted import JsonObject


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The pairs and the chat model (and its base, below an adapter)."""
    block = context.recipe.chat
    refs = {"preference": context.before("prefer"), "chat": context.before("chat")}
    if block.gives_adapter:
        refs["base"] = base_model(context, block, progress)
    return refs


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """The chat model, optimised on the pairs: the same adapter trained further, or a new one on the
    whole model.
    """
    base = refs.get("base", refs["chat"])
    report = training.train_dpo(
        preference_block(context.recipe),
        parquet(context.hub, refs["preference"], "train"),
        training.Policy(
            training.Base(
                context.hub.snapshot(base, allow_patterns=WEIGHTS), base.repo_id, base.revision
            ),
            context.hub.snapshot(refs["chat"], allow_patterns=WEIGHTS),
            system=context.recipe.chat.system,
            template=context.recipe.chat.template,
            thinking=context.recipe.chat.thinking or "off",
        ),
        dirs.out,
        seed=context.recipe.seed,
        work=dirs.scratch,
        launch=context.launch,
        progress=dirs.progress,
    )
    return report.to_dict()


STAGE = Stage(
    "align",
    "aligned",
    "model",
    inputs,
    build,
    card("aligned", "align", "aligned"),
    ("*.safetensors",),
    needs="preference",
    trains="preference",
)
