"""What the rollout of a recipe will take and cost, before it is run: its first dialogues, really
driven.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import hubkit.rollout as rollouts
from hubkit.hub import Hub
from hubkit.pipeline.runner import before
from hubkit.pipeline.stage import StageDirs
from hubkit.pipeline.stages import rollout_run
from hubkit.progress import Progress, silent
from hubkit.recipe import Recipe


def estimate(
    recipe: Recipe, hub: Hub, *, dialogues: int = 8, progress: Progress = silent
) -> rollouts.Estimate:
    """Drive the first `dialogues` dialogues and judge the rest by them; the rollout stage resumes
    from there.

    Raises `StageError` when the stages before it have not run, and what `rollouts.run` raises.
    """
    _, context, inputs = before(recipe, hub, "rollout", progress)
    with tempfile.TemporaryDirectory() as scratch:
        work = StageDirs(Path(scratch) / "out", Path(scratch), progress)
        return rollout_run.estimate(context, inputs, work, recipe.rollout, dialogues=dialogues)
