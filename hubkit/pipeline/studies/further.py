"""Further openings, where filters left too few of which every arm has a dialogue: what was rolled
out stays, and every arm takes the new ones too."""

from __future__ import annotations

import math
from collections import Counter

from hubkit.conversation import Conversation
from hubkit.data.overlap import HeldOutIndex
from hubkit.errors import StageError
from hubkit.hub import Ref
from hubkit.pipeline.stage import RunContext, Stage, StageDirs
from hubkit.pipeline.studies import openings as study_openings
from hubkit.pipeline.studies.balance import arms_of, common_openings, role_of
from hubkit.pipeline.studies.openings import study_of
from hubkit.pipeline.studies.study_card import card
from hubkit.progress import Progress
from hubkit.recipe import Study
from hubkit.recipe.study import ANSWERS, FURTHER, OPENINGS
from hubkit.untrusted import JsonObject

EARLIER = "earlier "
_SPARE = 1.25  # times as many as the share that was kept so far would need


def are_needed(context: RunContext) -> bool:
    """Whether every arm has a dialogue of fewer openings than the study is to have.

    Raises `StageError` for arms that cannot be compared."""
    study = study_of(context)
    if study.at_least is None:
        return False
    openings = study_openings.load(context.hub, context.before(OPENINGS), study_openings.SPLIT)
    arms = arms_of(context.hub, context.commits)
    return len(common_openings(study, openings, arms)) < study.at_least


def set_aside(commits: dict[str, Ref], study: Study) -> None:
    """Let the openings and dialogues in `commits` be those that the next round adds to."""
    for role in (OPENINGS, ANSWERS, *map(role_of, study.arms)):
        commits[f"{EARLIER}{role}"] = commits[role]


def earlier(context: RunContext, role: str) -> dict[str, Ref]:
    """What a round adds to: the openings before it, and what was made of them; empty in the
    first."""
    dialogues = context.commits.get(f"{EARLIER}{role}")
    if dialogues is None:
        return {}
    return {"earlier": dialogues, "earlier openings": context.before(f"{EARLIER}{OPENINGS}")}


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The corpus, the openings so far, and every arm's dialogues of them."""
    arms = {role: context.before(role) for role in map(role_of, study_of(context).arms)}
    return {"corpus": context.before("corpus"), OPENINGS: context.before(OPENINGS), **arms}


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """The openings so far and the next ones, and the same held-out conversations.

    Openings that overlap with what is held out are passed over."""
    study, hub = study_of(context), context.hub
    assert study.at_least is not None
    before = study_openings.load(hub, refs[OPENINGS], study_openings.SPLIT)
    held_out = study_openings.load(hub, refs[OPENINGS], study_openings.HELD_OUT)
    common = len(common_openings(study, before, arms_of(hub, refs)))
    number_to_take = math.ceil((study.at_least - common) * len(before) / common * _SPARE)
    passed_over: Counter[str] = Counter()
    ids_before = {opening.id for opening in before}
    index = HeldOutIndex(held_out, near_duplicate=study.near_duplicates)
    additions: list[Conversation] = []
    candidates = study_openings.load(hub, refs["corpus"], study_openings.SPLIT)
    for opening in study_openings.usable(study, candidates, passed_over):
        if opening.id in ids_before or len(additions) == number_to_take:
            continue
        if overlap := next(index.overlaps("the openings' conversations", [opening]), None):
            passed_over[f"held out: {overlap.kind}"] += 1
            continue
        additions.append(opening)
    if not additions:
        raise StageError(
            f"study.at_least is {study.at_least}, but every arm has a dialogue of only {common} of "
            f"{len(before)} openings, and the corpus's openings split has no further one that can "
            f"be used ({dict(passed_over)}); raise corpus.openings, or lower study.at_least"
        )
    study_openings.write_rows(dirs.out, study_openings.SPLIT, [*before, *additions], "user")
    study_openings.write_rows(dirs.out, study_openings.HELD_OUT, held_out, "user")
    return {
        "openings": len(before) + len(additions),
        "further": len(additions),
        "in_every_arm_before": common,
        "held_out": len(held_out),
        "passed_over": dict(passed_over),
        "users_compared": index.has_users,
        "people_apart": study_openings.people_apart(hub, refs["corpus"]),
    }


STAGE = Stage(
    FURTHER,
    "dialogues",
    "dataset",
    inputs,
    build,
    card(FURTHER),
    (f"data/{study_openings.SPLIT}-*", f"data/{study_openings.HELD_OUT}-*"),
)
