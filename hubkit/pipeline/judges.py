"""The judge of a stage: one model, asked one prompt, for the length of a block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

from hubkit.hub import Ref
from hubkit.hub.places import judge_replies
from hubkit.judging import PromptedJudge, check_judge, question_prompts
from hubkit.pipeline.inputs import require
from hubkit.pipeline.stage import RunContext, StageDirs
from hubkit.progress import Progress
from hubkit.recipe import DEPLOY, EMBEDDED, Judging
from hubkit.serving import serve, spec_of

JUDGE = "judge"


def judge_input(context: RunContext, block: Judging | None, progress: Progress) -> dict[str, Ref]:
    """The judge's commit, as an input of its stage; none where it answers at an address of its
    own. Raises `RecipeError` for settings with which it could not be asked.
    """
    if block is None:
        return {}
    at_address = not {DEPLOY, EMBEDDED} & set(block.judge.endpoints)
    check_judge(block, at_address=at_address)
    if at_address:
        return {}
    return {
        JUDGE: require(context.hub, context.hub.qualify(block.judge.repo or ""), progress=progress)
    }


@contextmanager
def prompted_judge(
    context: RunContext,
    stage: str,
    block: Judging,
    refs: dict[str, Ref],
    dirs: StageDirs,
    prompt: str,
) -> Iterator[PromptedJudge]:
    """The judge of `block`, ready to be asked `prompt`; caps hold over all sessions of `stage` on
    `refs`.
    """
    inputs = {role: ref.to_dict() for role, ref in sorted(refs.items())}
    facts = json.dumps([context.recipe.name, stage, inputs], sort_keys=True)
    ref = refs.get(JUDGE)
    identity = (
        f"{ref.repo_id}@{ref.revision}"
        if ref
        else " ".join([*sorted(block.judge.endpoints), block.judge.model])
    )
    with serve(
        context.hub,
        {JUDGE: spec_of(block.judge, ref, named_by="judge")},
        log_dir=dirs.scratch,
        progress=dirs.progress,
        slots=block.in_flight,
        tokens=block.judge.context,
    ) as models:
        yield PromptedJudge(
            block,
            models[JUDGE],
            question_prompts(),
            prompt,
            identity=identity,
            run=hashlib.sha256(facts.encode()).hexdigest(),
            folder=judge_replies(),
        )
