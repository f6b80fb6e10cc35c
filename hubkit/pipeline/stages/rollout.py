"""3. rollout: the asker questions the chat model."""

from __future__ import annotations

from dataclasses import replace

import hubkit.rollout as rollouts
from hubkit.chat_templates import require_name
from hubkit.hub import Ref
from hubkit.pipeline.stage import RunContext, Stage, StageDirs
from hubkit.pipeline.stage_cards import card
from hubkit.pipeline.stages import baseline, rollout_run
from hubkit.progress import Progress, stretch
from hubkit.untrusted import JsonObject


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The openings and who sits in both seats."""
    block = context.recipe.rollout
    refs = {"openings": context.before("corpus")}
    for name, seat in (("asker", block.asker), ("chat", block.chat)):
        if seat.repo is not None:
            refs[name] = rollout_run.seat_model(context, seat.repo, progress)
    return refs


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """The raw dialogues, and the baseline's where the recipe has one."""
    block = context.recipe.rollout
    extra = block.baseline.dialogues if block.baseline else 0
    share = block.dialogues / (block.dialogues + extra)
    first, second = (
        replace(dirs, progress=stretch(dirs.progress, *ends))
        for ends in ((0.0, share, ""), (share, 1.0, "baseline"))
    )
    report = rollout_run.drive(context, refs, first, block, shared=True).to_dict()
    baseline_report = baseline.drive(context, refs, second)
    return report | ({"baseline": baseline_report} if baseline_report else {})


def check(context: RunContext) -> None:
    """Raise `RecipeError` for a rollout that would not begin: its block, and templates of no known
    name."""
    block = context.recipe.rollout
    rollouts.check(block)
    for name, seat in (("asker", block.asker), ("chat", block.chat)):
        require_name(seat.template, f"rollout.{name}.template")


STAGE = Stage(
    "rollout",
    "dialogues",
    "dataset",
    inputs,
    build,
    card("dialogues", "rollout", "dialogues"),
    ("data/raw-*", "data/baseline-*"),
    settle=rollout_run.settle,
    outgrown=rollout_run.outgrown,
    check=check,
)
