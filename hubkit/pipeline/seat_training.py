"""One fine-tuning of a seat as a stage: the same for the asker and the chat model."""

from __future__ import annotations

from hubkit import training
from hubkit.hub import Ref
from hubkit.pipeline.stage import WEIGHTS, RunContext, StageDirs, parquet
from hubkit.recipe import Training
from hubkit.untrusted import JsonObject


def train_seat(
    context: RunContext, block: Training, base: Ref, data: Ref, dirs: StageDirs
) -> JsonObject:
    """Train `block` from `base` on the training split of `data`; give the report."""
    report = training.train(
        block,
        parquet(context.hub, data, "train"),
        training.Base(
            context.hub.snapshot(base, allow_patterns=WEIGHTS), base.repo_id, base.revision
        ),
        dirs.out,
        seed=context.recipe.seed,
        work=dirs.scratch,
        launch=context.launch,
        progress=dirs.progress,
    )
    return report.to_dict()
