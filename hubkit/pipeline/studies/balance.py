"""What makes arms comparable: the same openings, the same teacher, the same number of loss-bearing
tokens, and nothing of the evaluation in any of them. An arm that is not comparable is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hubkit.chat_templates import for_base
from hubkit.conversation import Conversation
from hubkit.data.overlap import HeldOutIndex
from hubkit.errors import StageError
from hubkit.hub import Hub, Ref
from hubkit.pipeline.inputs import base_model
from hubkit.pipeline.stage import WEIGHTS, RunContext, Stage, StageDirs
from hubkit.pipeline.studies import openings as study_openings
from hubkit.pipeline.studies.openings import study_of
from hubkit.pipeline.studies.study_card import card
from hubkit.progress import Progress
from hubkit.recipe import Study, Training
from hubkit.recipe.study import BALANCE, HELD_OUT, OPENINGS
from hubkit.tokenization import load_tokenizer
from hubkit.training.rows import RowMaker
from hubkit.untrusted import JsonObject

Arms = Mapping[str, Sequence[Conversation]]
_MOST_NAMED = 3
_ROLE = "arm "


def split_of(arm: str) -> str:
    """The split that arm `arm` is trained on."""
    return f"train_{arm}"


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """Openings, the answered held-out conversations, every arm, and the students' base."""
    arms = {
        role: ref
        for role, ref in context.commits.items()
        if role.startswith(_ROLE) or role in (OPENINGS, HELD_OUT)
    }
    base = base_model(context, study_of(context).student, progress)
    return {**arms, "base": base}


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """One training split an arm, of the same openings; and the number of tokens that each student
    is trained on."""
    study, hub = study_of(context), context.hub
    openings = study_openings.load(hub, refs[OPENINGS], study_openings.SPLIT)
    held_out = study_openings.load(hub, refs[OPENINGS], study_openings.HELD_OUT)
    evaluation_rows = study_openings.load(hub, refs[HELD_OUT], "answered")
    arms = arms_of(hub, refs)
    require_same_teacher({**arms, "the evaluation": evaluation_rows})
    require_nothing_held_out(study, held_out, arms, openings)
    common = common_openings(study, openings, arms)
    arms = {name: [r for r in rows if r.meta["origin"] in common] for name, rows in arms.items()}
    base = hub.snapshot(refs["base"], allow_patterns=WEIGHTS[1:])
    tokens = {name: loss_tokens(study.student, base, rows) for name, rows in arms.items()}
    budget = equal_budget(study, tokens)
    for name, rows in arms.items():
        study_openings.write_rows(dirs.out, split_of(name), rows, "opening", of="origin")
    return {
        "openings": len(common),
        "openings_asked_for": len(openings),
        "loss_tokens": budget,
        "arms": {
            name: {"rows": len(rows), "loss_tokens": tokens[name]} for name, rows in arms.items()
        },
        "held_out": len(evaluation_rows),
    }


def arms_of(hub: Hub, refs: Mapping[str, Ref]) -> dict[str, list[Conversation]]:
    """The dialogues of every arm in `refs`."""
    return {
        role.removeprefix(_ROLE): study_openings.load(hub, ref, role.removeprefix(_ROLE))
        for role, ref in refs.items()
        if role.startswith(_ROLE)
    }


def role_of(arm: str) -> str:
    """What the dialogues of `arm` are called among a study's commits."""
    return f"{_ROLE}{arm}"


def require_same_teacher(arms: Arms) -> None:
    """Raise `StageError` unless one model with one sampling gave every answer."""
    teachers: dict[str, str] = {}
    for name, rows in arms.items():
        for row in rows:
            sampling = json.loads(row.meta["sampling"])["chat"]
            teacher = json.dumps([row.meta["chat"], sampling], sort_keys=True)
            teachers.setdefault(teacher, name)
    if len(teachers) > 1:
        first, second = list(teachers.values())[:2]
        raise StageError(
            f"{first} and {second} were answered by different teachers: "
            f"{' and '.join(list(teachers)[:2])}; arms can only be compared under one teacher"
        )


def require_nothing_held_out(
    study: Study,
    held_out: Sequence[Conversation],
    arms: Arms,
    openings: Sequence[Conversation],
) -> None:
    """Raise `StageError` where a training set holds a held-out conversation, a near-duplicate, or
    another one of its user."""
    index = HeldOutIndex(held_out, near_duplicate=study.near_duplicates)
    users = {opening.id: opening.meta.get("user") for opening in openings}
    overlaps = []
    for name, rows in arms.items():
        with_users = (
            Conversation(
                row.id,
                row.messages,
                row.source,
                {**row.meta, "user": row.meta.get("user") or users.get(row.meta["origin"])},
            )
            for row in rows
        )
        overlaps += list(index.overlaps(f"arm {name}", with_users))
    if overlaps:
        raise StageError(
            f"{len(overlaps)} training dialogues hold what is evaluated on: "
            f"{'; '.join(map(str, overlaps[:_MOST_NAMED]))}"
            f"{'; …' if len(overlaps) > _MOST_NAMED else ''}. Nothing that is measured on may be "
            "trained on; remove them from the arm, or hold other conversations out"
        )


def common_openings(study: Study, openings: Sequence[Conversation], arms: Arms) -> set[str]:
    """The openings of which every arm has a dialogue.

    Raises `StageError` for an arm with other openings, and where too few are left."""
    opening_ids = {opening.id for opening in openings}
    common = set(opening_ids)
    for name, rows in arms.items():
        origins = {str(row.meta["origin"]) for row in rows}
        if foreign := sorted(origins - opening_ids):
            raise StageError(
                f"arm {name!r} has dialogues of openings that are not the study's "
                f"({', '.join(foreign[:_MOST_NAMED])}): arms must continue the same openings"
            )
        common &= origins
    if len(common) < study.min_openings * len(opening_ids):
        counts = {name: len({row.meta["origin"] for row in rows}) for name, rows in arms.items()}
        raise StageError(
            f"only {len(common)} of {len(opening_ids)} openings have a dialogue in every arm "
            f"that passed study.filters ({counts}), fewer than "
            f"study.min_openings {study.min_openings:.0%}; "
            "look at what was dropped, or change the filters or the teacher's max_tokens"
        )
    return common


def loss_tokens(block: Training, base: Path, rows: Sequence[Conversation]) -> int:
    """How many loss-bearing tokens a student of `block` on the model in `base` would find in
    `rows`."""
    maker = RowMaker(
        block,
        load_tokenizer(base),
        for_base(base, template=block.template, thinking=block.thinking or "off"),
        max_length=block.sft.get("max_length"),
    )
    total = 0
    for row in rows:
        encoded = maker({"id": row.id, "messages": row.messages})
        if not isinstance(encoded, str):
            total += sum(example.loss_tokens for example in encoded.examples)
    return total


def equal_budget(study: Study, tokens: Mapping[str, int]) -> int:
    """The number of loss-bearing tokens that every arm has.

    Raises `StageError` where an arm has so few that the others would lose most of theirs."""
    smallest = min(tokens, key=lambda name: tokens[name])
    largest = max(tokens, key=lambda name: tokens[name])
    if tokens[smallest] < study.min_tokens * tokens[largest] or not tokens[smallest]:
        raise StageError(
            f"arm {smallest!r} has {tokens[smallest]:,} loss-bearing tokens and arm {largest!r} "
            f"{tokens[largest]:,}: cut to the smaller, less than study.min_tokens "
            f"{study.min_tokens:.0%} of the larger would be left, and the arms would not be "
            "compared on the same openings; look at the dialogues of the smaller"
        )
    return tokens[smallest]


STAGE = Stage(BALANCE, "dialogues", "dataset", inputs, build, card(BALANCE), ("data/train_*",))
