"""One model that is asked something for the length of a block: an address, the embedded engine, or
an endpoint.

Takes a `SeatConfig` and what sits there; gives addresses, and how they are spoken to. And the judge
in such a seat."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

from hubkit.hub import Hub, Ref
from hubkit.hub.places import asked
from hubkit.judging import PromptedJudge, question_prompts
from hubkit.pipeline.inputs import require
from hubkit.pipeline.serving import Model, Reached, serving
from hubkit.pipeline.stage import Context, Work
from hubkit.progress import Progress
from hubkit.recipe import DEPLOY, EMBEDDED, Deploy, Judging, SeatConfig
from hubkit.serving.client import key_in

JUDGE = "judge"


@contextmanager
def answering(
    hub: Hub, config: SeatConfig, ref: Ref | None, base: Ref | None, work: Work, *, slots: int
) -> Iterator[tuple[Reached, SeatConfig]]:
    """Where `ref` (an adapter of `base`, or whole) answers, and `config` with what is spoken there;
    without a `ref`, who is at the addresses of `config`.

    An embedded engine runs, and an endpoint that is deployed is held, for the length of the block.
    """
    if ref is None or not {DEPLOY, EMBEDDED} & set(config.endpoints):
        yield (
            Reached(
                tuple(config.endpoints), config.profile, config.model, key_in(config.token_env)
            ),
            config,
        )
        return
    terms = (config.deploy or Deploy()) if DEPLOY in config.endpoints else None
    models = {ref.repo_id: Model(ref, base, terms)}
    with serving(
        hub, models, work.scratch, work.progress, slots=slots, tokens=config.context
    ) as found:
        reached = found[ref.repo_id]
        yield (
            reached,
            config.model_copy(update={"profile": reached.profile, "model": reached.served_as}),
        )


def judge_input(context: Context, block: Judging | None, progress: Progress) -> dict[str, Ref]:
    """The judge's commit, as an input of its stage; none where it answers at an address of its
    own.
    """
    if block is None or not {DEPLOY, EMBEDDED} & set(block.judge.endpoints):
        return {}
    return {
        JUDGE: require(context.hub, context.hub.qualify(block.judge.repo or ""), progress=progress)
    }


@contextmanager
def questioner(
    context: Context, stage: str, block: Judging, inputs: dict[str, Ref], work: Work, name: str
) -> Iterator[PromptedJudge]:
    """The judge of `block`, ready to be asked the prompt `name`; caps hold over all sessions of
    `stage` on `inputs`.
    """
    read = {role: ref.to_dict() for role, ref in sorted(inputs.items())}
    run = hashlib.sha256(
        json.dumps([context.recipe.name, stage, read], sort_keys=True).encode()
    ).hexdigest()
    ref = inputs.get(JUDGE)
    who = (
        f"{ref.repo_id}@{ref.revision}"
        if ref
        else " ".join([*sorted(block.judge.endpoints), block.judge.model])
    )
    with answering(context.hub, block.judge, ref, None, work, slots=block.in_flight) as (
        at,
        spoken,
    ):
        yield PromptedJudge(
            block.model_copy(update={"judge": spoken}),
            at.urls,
            question_prompts(),
            name,
            identity=who,
            run=run,
            folder=asked(),
            token=at.token,
            template=at.template,
        )
