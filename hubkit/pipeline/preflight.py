"""What the rollout of a recipe will take and cost, before it is run: its first dialogues, really driven."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hubkit import rollout
from hubkit.hub import Hub
from hubkit.hub.places import runs
from hubkit.pipeline import seats
from hubkit.pipeline.stage import Context, Work
from hubkit.pipeline.stages import STAGES, _parquet
from hubkit.progress import Progress, silent
from hubkit.recipe import Recipe


def estimate(recipe: Recipe, hub: Hub, *, dialogues: int = 8, progress: Progress = silent) -> rollout.Estimate:
    """Drive the first `dialogues` dialogues and judge the rest by them; the rollout stage goes on from there.

    Raises `StageError` when the stages before it have not run, and what `rollout.run` raises.
    """
    context = Context(recipe, hub)
    for stage in STAGES:
        inputs = stage.inputs(context, progress)
        if stage.name == "rollout":
            break
        if made := stage.find(context, inputs):
            context.made[stage.name] = made.ref
    scratch = runs() / f"{recipe.name}-rollout-{stage.key(context, inputs)[:12]}" / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as out:
        work = Work(Path(out), scratch, progress)
        with seats.served(context, inputs, work) as (asker_urls, chat_urls):
            return rollout.estimate(
                recipe.rollout,
                seats.openings(_parquet(hub, inputs["openings"], "openings")),
                journal=scratch / "journal",
                dialogues=dialogues,
                asker_urls=asker_urls,
                chat_urls=chat_urls,
                seed=recipe.seed,
                provenance={"asker": inputs["asker"].to_dict(), "chat": inputs["chat"].to_dict()},
                progress=progress,
            )
