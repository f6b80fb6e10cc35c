"""The judge of a stage: one model, asked one prompt, for the length of a block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubkit.evaluation.chat import JudgeChoice
from hubkit.evaluation.scorecard import TuringTest
from hubkit.evaluation.scorecard.turing import PROMPT
from hubkit.hub import Hub, Ref
from hubkit.hub.places import judge_replies
from hubkit.judging import PromptedJudge, check_judge, question_prompts, turing_prompts
from hubkit.judging.prompts import Prompts
from hubkit.pipeline.inputs import require
from hubkit.pipeline.stage import RunContext, StageDirs
from hubkit.progress import Progress
from hubkit.recipe import Judging
from hubkit.serving import serve, spec_of

JUDGE = "judge"


def judge_input(context: RunContext, block: Judging | None, progress: Progress) -> dict[str, Ref]:
    """The judge's commit, as an input of its stage; none where it answers at an address of its
    own. Raises `RecipeError` for settings with which it could not be asked.
    """
    if block is None:
        return {}
    at_address = block.judge.is_elsewhere
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
    with served_judge(
        context.hub,
        block,
        refs.get(JUDGE),
        (question_prompts(), prompt),
        run=hashlib.sha256(facts.encode()).hexdigest(),
        log=dirs.scratch,
        progress=dirs.progress,
    ) as judge:
        yield judge


@contextmanager
def served_judge(
    hub: Hub,
    block: Judging,
    ref: Ref | None,
    prompt: tuple[Prompts, str],
    *,
    run: str,
    log: Path,
    progress: Progress,
) -> Iterator[PromptedJudge]:
    """The judge of `block` where it answers, ready to be asked `prompt`, one of a set by its name.

    Args:
        hub: Where it is.
        block: Who judges, and what it may take.
        ref: Its commit; None where it answers at an address of its own.
        prompt: The set, and the name in it.
        run: Whose money it is: caps hold over all sessions of a run.
        log: A folder for its engine's log.
        progress: Told how far it is."""
    with serve(
        hub,
        {JUDGE: spec_of(block.judge, ref, named_by="judge")},
        log_dir=log,
        progress=progress,
        slots=block.in_flight,
        tokens=block.judge.context,
    ) as models:
        prompts, name = prompt
        yield PromptedJudge(
            block,
            models[JUDGE],
            prompts,
            name,
            identity=identity_of(block, ref),
            run=run,
            folder=judge_replies(),
        )


def identity_of(block: Judging, ref: Ref | None) -> str:
    """Who judges: a repo at its commit, or addresses and the model's name there."""
    if ref:
        return f"{ref.repo_id}@{ref.revision}"
    return " ".join([*sorted(block.judge.endpoints), block.judge.model])


def turing_test(
    hub: Hub, choice: JudgeChoice, *, pairs: int, log: Path, progress: Progress
) -> TuringTest:
    """A Turing judge for a scorecard: `choice`, asked about at most `pairs` pairs a player.

    Raises:
        RepoMissingError: The Hub has no such judge.
        RecipeError: A setting is not known, or a cap in dollars has no prices to count by."""
    block, ref = choice.block(), None
    if choice.hosted:
        url = choice.name.partition("#")[0]
        block = block.model_copy(
            update={"judge": block.judge.model_copy(update={"endpoints": [url]})}
        )
    else:
        ref = require(hub, hub.qualify(choice.name), progress=progress)
    facts = [identity_of(block, ref), block.budget_usd, block.budget_tokens]
    return TuringTest(
        lambda: served_judge(
            hub,
            block,
            ref,
            (turing_prompts(), PROMPT),
            run=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
            log=log,
            progress=progress,
        ),
        judge=identity_of(block, ref),
        pairs=pairs,
    )
