"""How much an asker learns from how much data: held-out loss of askers trained on ever more tokens,
each compared with its base."""

from __future__ import annotations

import json
from pathlib import Path

from hubkit import evaluation
from hubkit.evaluation import HeldOut
from hubkit.files import write_whole
from hubkit.hub import Ref
from hubkit.metrics import plots
from hubkit.pipeline.inputs import base_model
from hubkit.pipeline.stage import PROVENANCE, WEIGHTS, RunContext, Stage, StageDirs, parquet
from hubkit.pipeline.studies.openings import study_of
from hubkit.pipeline.studies.study_card import card
from hubkit.progress import Progress
from hubkit.recipe import Evals, Recipe
from hubkit.recipe.study import CURVE
from hubkit.untrusted import JsonObject

PICTURE = "learning_curve.png"
_ROLE = "curve "


def role(tokens: int) -> str:
    """What the asker that was trained on `tokens` tokens is called among a study's commits."""
    return f"{_ROLE}{tokens}"


def recipe_of(recipe: Recipe, tokens: int) -> Recipe:
    """The recipe that trains the asker on `tokens` tokens: `recipe` itself at its own size, else
    one whose asker goes to a repo of its own."""
    if tokens == recipe.asker.max_tokens:
        return recipe
    repos = recipe.repos.model_copy(update={"asker": f"{recipe.repos.asker}-curve"})
    block = recipe.asker.model_copy(update={"max_tokens": tokens})
    return recipe.model_copy(update={"asker": block, "repos": repos})


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The held-out conversations, the base, and an asker a size."""
    sizes = {name: ref for name, ref in context.commits.items() if name.startswith(_ROLE)}
    base = base_model(context, context.recipe.asker, progress)
    return {"corpus": context.before("corpus"), "base": base, **sizes}


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """``learning_curve.json`` and its plot; each size is scored once, also when it is killed."""
    study, hub = study_of(context), context.hub
    scored: dict[int, HeldOut] = {}
    for name, ref in {role(0): None, **_sizes(refs)}.items():
        tokens = int(name.removeprefix(_ROLE))
        cache_path = dirs.scratch / f"{tokens}.json"
        if cache_path.exists():
            scored[tokens] = HeldOut(**json.loads(cache_path.read_text("utf-8")))
            continue
        scored[tokens] = evaluation.heldout_loss(
            Evals(conversations=study.curve_conversations, max_tokens=study.max_tokens),
            hub.snapshot(refs["base"], allow_patterns=WEIGHTS),
            hub.snapshot(ref, allow_patterns=WEIGHTS) if ref else None,
            parquet(hub, refs["corpus"], "test"),
            evaluation.Seating.of(context.recipe.asker),
            progress=dirs.progress,
        )
        _keep(cache_path, scored[tokens])
    points = [_point(context, refs, tokens, scored) for tokens in sorted(scored)]
    (dirs.out / "learning_curve.json").write_text(json.dumps(points, indent=1) + "\n", "utf-8")
    plots.learning_curve(dirs.out / PICTURE, points)
    return {"points": points}


def _sizes(refs: dict[str, Ref]) -> dict[str, Ref]:
    return {name: ref for name, ref in refs.items() if name.startswith(_ROLE)}


def _keep(path: Path, losses: HeldOut) -> None:
    facts = losses.to_dict()
    whole = {key: facts[key] for key in ("seat", "ids", "nats", "tokens", "skipped")}
    write_whole(path, json.dumps(whole))


def _point(
    context: RunContext, refs: dict[str, Ref], tokens: int, scored: dict[int, HeldOut]
) -> JsonObject:
    """One size: what it was trained on, its loss, and the paired difference from the base."""
    losses = scored[tokens]
    point: JsonObject = {"loss": losses.loss, "conversations": len(losses.ids)}
    if not tokens:
        return {"tokens": 0, "loss_tokens": 0, **point}
    record = json.loads(context.hub.read(refs[role(tokens)], f"{PROVENANCE}/asker.json"))
    comparison = evaluation.compare(
        losses,
        scored[0],
        resamples=context.recipe.eval.resamples,
        confidence=context.recipe.eval.confidence,
        seed=context.recipe.seed,
    )
    return {
        "tokens": record["report"]["tokens"],
        "loss_tokens": record["report"]["loss_tokens"],
        **point,
        "against_base": comparison.to_dict(),
    }


STAGE = Stage(CURVE, "results", "dataset", inputs, build, card(CURVE))
