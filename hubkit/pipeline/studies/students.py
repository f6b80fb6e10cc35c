"""Students: one an arm and seed, trained on exactly as many loss-bearing tokens as all others, and
scored on the held-out dialogues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hubkit import training
from hubkit.errors import StageError
from hubkit.evaluation import utility
from hubkit.hub import Hub, Ref
from hubkit.pipeline.inputs import base_model
from hubkit.pipeline.stage import PROVENANCE, WEIGHTS, RunContext, Stage, StageDirs, parquet
from hubkit.pipeline.studies.balance import split_of
from hubkit.pipeline.studies.dialogues import arm_of
from hubkit.pipeline.studies.openings import study_of
from hubkit.pipeline.studies.study_card import card
from hubkit.progress import Progress
from hubkit.recipe import Training
from hubkit.recipe.study import BALANCE, SCORE, STUDENT
from hubkit.untrusted import JsonObject

BASE = "base"


def _inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    base = base_model(context, study_of(context).student, progress)
    return {"base": base, "dialogues": context.before(BALANCE)}


def _train(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    name, _ = arm_of(context)
    balance = json.loads(context.hub.read(refs["dialogues"], f"{PROVENANCE}/{BALANCE}.json"))
    tokens = balance["report"]["loss_tokens"]
    report = training.train(
        equal_training(study_of(context).student, balance["report"], name),
        parquet(context.hub, refs["dialogues"], split_of(name)),
        training.Base(
            context.hub.snapshot(refs["base"], allow_patterns=WEIGHTS),
            refs["base"].repo_id,
            refs["base"].revision,
        ),
        dirs.out,
        seed=context.recipe.seed,
        work=dirs.scratch,
        launch=context.launch,
        progress=dirs.progress,
    ).to_dict()
    if report["loss_tokens"] != tokens:
        raise StageError(
            f"the student of arm {name!r} was trained on {report['loss_tokens']} loss-bearing "
            f"tokens, the others on {tokens}; look at study.student.sft.max_length"
        )
    return report | {"arm": name}


def equal_training(block: Training, balance: Mapping[str, Any], arm: str) -> Training:
    """`block` for the student of `arm`: the arms' common number of loss-bearing tokens, in as many
    steps.

    An arm that says the same in more and shorter rows takes more of them at a step; otherwise it
    would also be given more steps, and what is compared would be the optimiser."""
    rows_per_opening = round(balance["arms"][arm]["rows"] / balance["openings"])
    accumulation = int(block.sft.get("gradient_accumulation_steps", 1)) * max(1, rows_per_opening)
    return block.model_copy(
        update={
            "max_loss_tokens": balance["loss_tokens"],
            "sft": {**block.sft, "gradient_accumulation_steps": accumulation},
        }
    )


def _score_inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    refs = {
        "base": base_model(context, study_of(context).student, progress),
        "held-out": context.before("study-held-out"),
    }
    student = context.commits.get(STUDENT)
    return refs | ({"student": student} if student else {})


def score_path(arm: str, seed: int | None) -> str:
    """Where a student's scores are in the results."""
    return f"scores/{arm}.json" if seed is None else f"scores/{arm}-{seed}.json"


def _score(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    hub, study = context.hub, study_of(context)
    student = refs.get("student")
    losses = utility.turn_losses(
        study.student,
        hub.snapshot(refs["base"], allow_patterns=WEIGHTS),
        hub.snapshot(student, allow_patterns=WEIGHTS) if student else None,
        parquet(hub, refs["held-out"], "answered"),
        max_tokens=study.max_tokens,
        progress=dirs.progress,
    )
    path = dirs.out / score_path(_scored(context), context.recipe.seed if student else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(losses.to_dict()), "utf-8")
    return {"file": path.relative_to(dirs.out).as_posix(), "dialogues": len(losses.ids)}


def _scored(context: RunContext) -> str:
    return arm_of(context)[0] if context.commits.get(STUDENT) else BASE


def scores(hub: Hub, ref: Ref) -> utility.TurnLosses:
    """The scores of one student's commit."""
    report = json.loads(hub.read(ref, f"{PROVENANCE}/{SCORE}.json"))["report"]
    return utility.TurnLosses(**json.loads(hub.read(ref, report["file"])))


STUDENT_STAGE = Stage(
    STUDENT, "chat", "model", _inputs, _train, card(STUDENT, "model"), ("*.safetensors",)
)
SCORE_STAGE = Stage(SCORE, "results", "dataset", _score_inputs, _score, card(SCORE))
