"""8. eval: held-out loss of each seat compared with its base, and the asker's scorecard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubkit import evaluation
from hubkit.evaluation.scorecard import scorecard
from hubkit.hub import Ref
from hubkit.metrics import scorecards
from hubkit.pipeline.askers import BASE, AskerSpec, serve_askers
from hubkit.pipeline.inputs import base_model, embedding
from hubkit.pipeline.stage import WEIGHTS, RunContext, Stage, StageDirs, parquet
from hubkit.pipeline.stage_cards import card
from hubkit.progress import Progress
from hubkit.publishing.metadata import is_adapter
from hubkit.publishing.scorecard import PICTURE
from hubkit.recipe import DEPLOY, Scorecard
from hubkit.serving import ModelSpec, spec_of, with_own_template

ASKER = "asker"
_ARMS = {ASKER: "trained", BASE: "prompted"}


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The held-out conversations, and every model with its base."""
    recipe = context.recipe
    refs = {
        "corpus": context.before("corpus"),
        "asker base": base_model(context, recipe.asker, progress),
        "asker": context.before("asker"),
        "chat base": base_model(context, recipe.chat, progress),
        "chat": context.before("chat"),
    }
    return refs | ({"aligned": context.before("align")} if recipe.preference else {})


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> dict[str, Any]:
    """``results.json``, and the scorecard's picture where the recipe wants one."""
    recipe = context.recipe
    held_out = parquet(context.hub, refs["corpus"], "test")
    results = evaluation.heldout(
        recipe.eval,
        held_out,
        _candidates(context, refs),
        seed=recipe.seed,
        progress=dirs.progress,
    )
    if block := recipe.eval.scorecard:
        results["scorecard"] = _scorecard(context, block, refs, held_out, results["asker"], dirs)
    (dirs.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    return results


def _candidates(context: RunContext, refs: Mapping[str, Ref]) -> dict[str, evaluation.Candidate]:
    recipe = context.recipe
    folders = {name: context.hub.snapshot(refs[name], allow_patterns=WEIGHTS) for name in refs
               if name != "corpus"}  # fmt: skip
    candidates = {
        name: evaluation.Candidate(
            training=block, base=folders[f"{name} base"], trained=folders[name]
        )
        for name, block in {"asker": recipe.asker, "chat": recipe.chat}.items()
    }
    if "aligned" in folders:
        base = folders["chat base"] if is_adapter(recipe.chat) else folders["chat"]
        candidates["aligned"] = evaluation.Candidate(
            recipe.chat, base, folders["aligned"], rivals={"chat": folders["chat"]}
        )
    return candidates


def _scorecard(
    context: RunContext,
    block: Scorecard,
    refs: Mapping[str, Ref],
    held_out: list[Path],
    losses: Mapping[str, Any],
    dirs: StageDirs,
) -> dict[str, Any]:
    """The scorecard of asker and base on the held-out conversations; its picture is built.

    `losses` are the asker's in the same results: its perplexity and the base's are taken from
    there."""
    recipe = context.recipe
    arms = {name: losses["arms"].get(arm) or {} for name, arm in _ARMS.items()}
    with serve_askers(
        context.hub,
        _askers(context, block, refs),
        dirs.scratch,
        dirs.progress,
        slots=block.in_flight,
        tokens=recipe.rollout.asker.context,
    ) as models:
        players = [spec.player(model, arms[spec.name].get("perplexity")) for spec, model in models]
        result = scorecard(
            block,
            held_out,
            players,
            seed=recipe.seed,
            journal=dirs.scratch / "scorecard",
            intent_column=recipe.asker.intent_column,
            source={**refs["corpus"].to_dict(), "split": "test"},
            embed=embedding(context.hub, block.embedder, progress=dirs.progress),
            progress=dirs.progress,
        )
    (dirs.out / PICTURE).write_bytes(scorecards.picture(result))
    return result.to_dict()


def _askers(context: RunContext, block: Scorecard, refs: Mapping[str, Ref]) -> list[AskerSpec]:
    """Asker and base, each where the recipe says: an asker that sits in the rollout's seat as it is
    there.
    """
    training, seat = context.recipe.asker, context.recipe.rollout.asker
    base = refs["asker base"]
    adapted = base if is_adapter(training) else None
    spec = (
        spec_of(seat, refs["asker"], adapted, named_by="rollout.asker")
        if seat.repo == "asker"
        else ModelSpec(refs["asker"], adapted)
    )
    spec = with_own_template(spec, context.hub, refs["asker"])
    base_seat = seat.model_copy(
        update={
            "endpoints": block.base_endpoints,
            "profile": "tgi",
            "model": "tgi",
            "token_env": None,
            "deploy": seat.deploy if DEPLOY in block.base_endpoints else None,
        }
    )
    return [
        AskerSpec(ASKER, refs["asker"], spec, adapted, training.system, training.end_mark),
        AskerSpec(BASE, base, spec_of(base_seat, base), None, training.system, prompted=True),
    ]


STAGE = Stage("eval", "results", "dataset", inputs, build, card("results", "eval", "results"))
