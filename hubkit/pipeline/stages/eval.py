"""8. eval: held-out loss of each seat compared with its base, the asker's scorecard, and chat
models in conversation with askers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hubkit import evaluation
from hubkit.errors import SourceError
from hubkit.evaluation.scorecard import HeldOutFiles, scorecard
from hubkit.hub import Hub, Ref
from hubkit.metrics import scorecards
from hubkit.metrics.cross_table import picture
from hubkit.metrics.picture_cache import drawn_once
from hubkit.metrics.scorecards import BASE
from hubkit.pipeline import against, askers
from hubkit.pipeline.against import ChatSpec, CrossTableRun, held_out_openings
from hubkit.pipeline.askers import AskerSpec, serve_askers
from hubkit.pipeline.inputs import base_model, embedding, require, require_encoder
from hubkit.pipeline.rewarding import judge_refs, judges_of, likelihood_of
from hubkit.pipeline.stage import WEIGHTS, RunContext, Stage, StageDirs, parquet
from hubkit.pipeline.stage_cards import card
from hubkit.progress import Progress
from hubkit.publishing import results_table
from hubkit.publishing.scorecard import PICTURE
from hubkit.recipe import DEPLOY, Against, Scorecard
from hubkit.serving import ModelSpec, spec_of, with_own_template
from hubkit.statistics import Bootstrap, Number
from hubkit.untrusted import JsonObject, object_in

ASKER = "asker"
_MODELS = ("asker base", "asker", "chat base", "chat", "aligned")
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
    refs |= {"aligned": context.before("align")} if recipe.preference else {}
    refs |= {"reinforced": context.before("reinforce")} if recipe.reinforce else {}
    return refs | _table_inputs(context, recipe.eval.against, progress)


def check(context: RunContext) -> None:
    """Raise `RepoMissingError` where the scorecard's encoder is not there."""
    block = context.recipe.eval.scorecard
    if block is not None and block.embedder:
        require_encoder(context.hub, block.embedder)


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
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
    if recipe.asker.end_mark:
        results["ending"] = _ending(context, refs, held_out, dirs)
    if block := recipe.eval.scorecard:
        results["scorecard"] = _scorecard(
            context, block, refs, held_out, object_in(results, "asker"), dirs
        )
    if table := recipe.eval.against:
        results["against"] = _against(context, table, refs, held_out, dirs)
    if "reinforced" in refs:
        _copy_conversations(context.hub, refs["reinforced"], dirs.out / "data")
    (dirs.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    (dirs.out / "data").mkdir(exist_ok=True)
    (dirs.out / results_table.PATH).write_bytes(results_table.render(results))
    return results


def _candidates(context: RunContext, refs: Mapping[str, Ref]) -> dict[str, evaluation.Candidate]:
    recipe = context.recipe
    names = [name for name in _MODELS if name in refs]
    folders = {name: context.hub.snapshot(refs[name], allow_patterns=WEIGHTS) for name in names}
    candidates = {
        name: evaluation.Candidate(
            training=block, base=folders[f"{name} base"], trained=folders[name]
        )
        for name, block in {"asker": recipe.asker, "chat": recipe.chat}.items()
    }
    if "aligned" in folders:
        base = folders["chat base"] if recipe.chat.gives_adapter else folders["chat"]
        candidates["aligned"] = evaluation.Candidate(
            recipe.chat, base, folders["aligned"], rivals={"chat": folders["chat"]}
        )
    return candidates


def _ending(
    context: RunContext, refs: Mapping[str, Ref], held_out: list[Path], dirs: StageDirs
) -> JsonObject:
    """How likely the asker ends where people did, and where they went on; ``missing`` says why that
    is not known."""
    recipe = context.recipe
    base, trained = (
        context.hub.snapshot(refs[name], allow_patterns=WEIGHTS) for name in ("asker base", "asker")
    )
    try:
        return evaluation.termination(
            recipe.eval, recipe.asker, base, trained, held_out, progress=dirs.progress
        ).to_dict()
    except SourceError as error:
        return {"missing": str(error)}


def _scorecard(
    context: RunContext,
    block: Scorecard,
    refs: Mapping[str, Ref],
    held_out: list[Path],
    losses: Mapping[str, Any],
    dirs: StageDirs,
) -> JsonObject:
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
        players = [
            spec.player(model, _perplexity(arms[spec.name], block, recipe.seed))
            for spec, model in models
        ]
        result = scorecard(
            block,
            HeldOutFiles(
                held_out,
                recipe.asker.intent_column,
                {**refs["corpus"].to_dict(), "split": "test"},
            ),
            players,
            seed=recipe.seed,
            journal=dirs.scratch / "scorecard",
            embed=embedding(context.hub, block.embedder, progress=dirs.progress),
            progress=dirs.progress,
        )
    result = askers.with_kinds(result, [spec for spec, _ in models])
    (dirs.out / PICTURE).write_bytes(drawn_once(scorecards.picture, result))
    return result.to_dict()


def _perplexity(losses: Mapping[str, Any], block: Scorecard, seed: int) -> Number | None:
    if not losses:
        return None
    bootstrap = Bootstrap(block.resamples, seed=seed)
    return evaluation.perplexity(losses["nats"], losses["tokens"], bootstrap)


def _askers(context: RunContext, block: Scorecard, refs: Mapping[str, Ref]) -> list[AskerSpec]:
    """Asker and base, each where the recipe says: an asker that sits in the rollout's seat as it is
    there.
    """
    training, seat = context.recipe.asker, context.recipe.rollout.asker
    base = refs["asker base"]
    adapted = base if training.gives_adapter else None
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


def _table_inputs(context: RunContext, block: Against | None, progress: Progress) -> dict[str, Ref]:
    """The further models of the cross-simulator table: askers, judges, the reinforced model."""
    if block is None:
        return {}
    refs = {}
    for name, seat in block.askers.items():
        if seat.repo is not None:
            refs[f"asker {name}"] = require(
                context.hub, context.hub.qualify(seat.repo), progress=progress
            )
    judges = judge_refs(context.hub, block.rewards, progress)
    return refs | {f"judge {i} {k}": ref for (i, k), ref in judges.items()}


def _against(
    context: RunContext,
    block: Against,
    refs: Mapping[str, Ref],
    held_out: list[Path],
    dirs: StageDirs,
) -> JsonObject:
    """The cross-simulator table; its heat map is built."""
    recipe, hub = context.recipe, context.hub
    asker, base = _askers(context, recipe.eval.scorecard or Scorecard(), refs)
    specs = [asker, *([base] if block.prompted else [])]
    for name, seat in block.askers.items():
        ref = refs[f"asker {name}"]
        repo = f"{ref.repo_id}@{ref.revision}"
        speaks_user = {repo: seat.end_token} if seat.speaks else None
        asker_spec = askers.find(hub, repo, system=seat.system, speaks_user=speaks_user)
        model = spec_of(seat, ref, asker_spec.base, named_by=f"eval.against.askers.{name}")
        specs.append(replace(asker_spec, name=name, model=model))
    adapted = refs["chat base"] if recipe.chat.gives_adapter else None
    chats = {
        "base": ModelSpec(refs["chat base"]),
        "chat": ModelSpec(refs["chat"], adapted),
    }
    if "aligned" in refs:
        chats["aligned"] = ModelSpec(refs["aligned"], adapted or refs["chat"])
    if (reinforce := recipe.reinforce) and "reinforced" in refs:
        whole = reinforce.merge_adapter or (adapted is None and reinforce.lora is None)
        chats["reinforced"] = ModelSpec(
            refs["reinforced"], None if whole else adapted or refs["chat"]
        )
    run = CrossTableRun(
        block,
        specs,
        [
            ChatSpec(name, str(spec.source), spec)
            for name in dict.fromkeys(block.chats)
            if (spec := chats.get(name))
        ],
        held_out_openings(
            held_out, block, seed=recipe.seed, intent_column=recipe.asker.intent_column
        ),
        {**refs["corpus"].to_dict(), "split": "test"},
        recipe.seed,
        {
            position: refs[role]
            for position in judges_of(block.rewards)
            if (role := f"judge {position[0]} {position[1]}") in refs
        },
        likelihood_of(hub, refs["asker"]),
    )
    result, scored = run.run(hub, progress=dirs.progress)
    against.write_conversations(scored, dirs.out / "data")
    (dirs.out / against.PICTURE).write_bytes(picture(result))
    return result.to_dict()


def _copy_conversations(hub: Hub, ref: Ref, folder: Path) -> None:
    """The conversations of the reinforcement with their rewards, as the split ``reinforced``: a
    repo of weights is no dataset that clients load."""
    folder.mkdir(exist_ok=True)
    shards = hub.snapshot(ref, allow_patterns=["conversations/*.parquet"]) / "conversations"
    for shard in sorted(shards.glob("train-*.parquet")):
        shutil.copyfile(shard, folder / shard.name.replace("train", "reinforced", 1))


STAGE = Stage(
    "eval",
    "results",
    "dataset",
    inputs,
    build,
    card("results", "eval", "results"),
    ("data/*",),
    check=check,
)
