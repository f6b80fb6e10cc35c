"""3. rollout: the asker questions the chat model."""

from __future__ import annotations

from hubkit.hub import Ref
from hubkit.pipeline.stage import RunContext, Stage, StageDirs
from hubkit.pipeline.stage_cards import card
from hubkit.pipeline.stages import baseline, rollout_run
from hubkit.progress import Progress
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
    report = rollout_run.drive(context, refs, dirs, context.recipe.rollout, shared=True).to_dict()
    baseline_report = baseline.drive(context, refs, dirs)
    return report | ({"baseline": baseline_report} if baseline_report else {})


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
)
