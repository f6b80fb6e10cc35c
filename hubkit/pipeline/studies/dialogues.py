"""What the teacher says: several answers to each opening, its answers in every arm's dialogues, and
those to people's held-out follow-ups. All of them are rollouts; only who asks differs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import hubkit.rollout as rollouts
from hubkit.conversation import Conversation
from hubkit.data.curation import curate
from hubkit.data.filters import Context
from hubkit.data.parquet import ShardWriter
from hubkit.errors import StageError
from hubkit.hub import Ref
from hubkit.pipeline.inputs import base_model, require
from hubkit.pipeline.stage import RunContext, Stage, StageDirs, parquet
from hubkit.pipeline.studies import further
from hubkit.pipeline.studies import openings as study_openings
from hubkit.pipeline.studies.balance import role_of
from hubkit.pipeline.studies.openings import study_of
from hubkit.pipeline.studies.people import people_seat, served_people
from hubkit.pipeline.studies.study_card import card
from hubkit.progress import Progress
from hubkit.recipe import Arm, Curate, Rollout, SeatConfig, Turns
from hubkit.recipe.study import ANSWERS, ARM, HELD_OUT, OPENINGS
from hubkit.serving import ModelSpec, serve, spec_of
from hubkit.untrusted import JsonObject

SINGLE, ANSWERED_SPLIT = "single", "answered"
_NO_LIMIT = 1 << 20


@dataclass(frozen=True)
class Asking:
    """Who asks in a rollout: its seat, and what serves it (None: `people`, with what they said)."""

    seat: SeatConfig
    spec: ModelSpec | None = None
    source: Ref | None = None
    end_mark: str | None = None
    people: Sequence[Conversation] = ()


def _teacher(context: RunContext, progress: Progress) -> dict[str, Ref]:
    repo = study_of(context).teacher.repo
    return {"teacher": require(context.hub, repo, progress=progress)} if repo else {}


def drive(
    context: RunContext,
    refs: dict[str, Ref],
    dirs: StageDirs,
    split: str,
    opened: list[Conversation],
    asking: Asking,
    *,
    mode: str,
    turns: int,
) -> JsonObject:
    """Roll out one dialogue for each of `opened`; write those that pass the study's filters as
    ``data/SPLIT-*.parquet``, after those of an earlier round.

    The journal is in ``dirs.scratch``: a killed stage resumes from there."""
    study = study_of(context)
    block = Rollout(
        mode=mode,  # type: ignore[arg-type]
        dialogues=len(opened),
        turns=Turns(kind="fixed", value=turns),
        asker=asking.seat,
        chat=study.teacher,
        end_mark=asking.end_mark,
        in_flight=study.in_flight,
        max_opening_chars=_NO_LIMIT,
        retry_on=["empty", "role_leak"],
    )
    teacher = refs.get("teacher")
    provenance = {
        "asker": (asking.source or refs["openings"]).to_dict(),
        "chat": teacher.to_dict() if teacher else {"repo_id": None, "name": study.teacher.name},
    }
    with _seats(context, dirs, block, asking, teacher) as seats:
        report = rollouts.run(
            block,
            opened,
            dirs.scratch / "rollout",
            seats,
            rollouts.JournalSpec(dirs.scratch / "journal", context.recipe.seed, provenance),
            watch=rollouts.Watch(dirs.progress),
        )
    raw = [dirs.scratch / "rollout" / path for path in report.paths]
    kept_folder = dirs.scratch / "kept"
    kept_by = Curate(filters=study.filters, measure=None)
    context_of_marks = Context(turn_marks=tuple(report.turn_marks))
    curated = curate(kept_by, raw, kept_folder, context=context_of_marks)
    (dirs.out / "data").mkdir(exist_ok=True)
    shards = sorted((kept_folder / "data").glob("train-*.parquet"))
    reports = {"rollout": report.to_dict(), "curate": curated.to_dict()}
    if "earlier" in refs:
        earlier_shards = parquet(context.hub, refs["earlier"], split)
        rows = _write_all(dirs.out / "data", split, [*earlier_shards, *shards])
        return reports | {"kept": rows, "kept_before": rows - curated.kept}
    for shard in shards:
        shutil.move(shard, dirs.out / "data" / shard.name.replace("train-", f"{split}-", 1))
    return reports | {"kept": curated.kept}


def _write_all(folder: Path, split: str, shards: Sequence[Path]) -> int:
    """Write the rows of `shards` as one split; returns how many there are."""
    import pyarrow.parquet as pq

    with ShardWriter(folder, split, pq.read_schema(shards[0])) as writer:
        for shard in shards:
            writer.write_table(pq.read_table(shard))
    return writer.rows


def _opened(context: RunContext, refs: dict[str, Ref]) -> list[Conversation]:
    """The openings that this round rolls out."""
    openings = study_openings.load(context.hub, refs["openings"], study_openings.SPLIT)
    if "earlier openings" not in refs:
        return openings
    before = study_openings.load(context.hub, refs["earlier openings"], study_openings.SPLIT)
    ids_before = {opening.id for opening in before}
    return [opening for opening in openings if opening.id not in ids_before]


@contextmanager
def _seats(
    context: RunContext,
    dirs: StageDirs,
    block: Rollout,
    asking: Asking,
    teacher: Ref | None,
) -> Iterator[rollouts.Seats]:
    specs = {"chat": spec_of(block.chat, teacher, named_by="study.teacher")}
    if asking.spec is not None:
        specs["asker"] = asking.spec
    with ExitStack() as stack:
        models = dict(
            stack.enter_context(
                serve(
                    context.hub,
                    specs,
                    log_dir=dirs.scratch,
                    progress=dirs.progress,
                    slots=block.in_flight,
                    tokens=block.chat.context,
                )
            )
        )
        if asking.spec is None:
            models["asker"] = stack.enter_context(served_people(asking.people))
        yield rollouts.Seats(models["asker"], models["chat"])


def _with_openings(context: RunContext, progress: Progress) -> dict[str, Ref]:
    return {"openings": context.before(OPENINGS), **_teacher(context, progress)}


def _answers_inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    return _with_openings(context, progress) | further.earlier(context, ANSWERS)


def _answers(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """As many answers to each opening as the other arms' dialogues have: the arm ``single``."""
    opened = _opened(context, refs)
    asking = Asking(people_seat(refs["openings"].repo_id), people=opened)
    copies = opened * study_of(context).turns
    return drive(context, refs, dirs, SINGLE, copies, asking, mode="seeded", turns=1)


def _held_out(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """The teacher's answers to everything that people said in held-out conversations."""
    opened = study_openings.load(context.hub, refs["openings"], study_openings.HELD_OUT)
    asking = Asking(people_seat(refs["openings"].repo_id), people=opened)
    turns = study_of(context).turns
    return drive(context, refs, dirs, ANSWERED_SPLIT, opened, asking, mode="seeded", turns=turns)


def arm_of(context: RunContext) -> tuple[str, Arm]:
    """The one arm of a recipe that a study derived for it."""
    ((name, arm),) = study_of(context).arms.items()
    return name, arm


def _arm_inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    name, arm = arm_of(context)
    refs = _with_openings(context, progress) | {"answers": context.before(ANSWERS)}
    refs |= further.earlier(context, role_of(name))
    if arm.kind == "prompted":
        refs["base"] = base_model(context, context.recipe.asker, progress)
    elif arm.kind == "asker":
        refs["asker"] = context.before("asker")
        if arm.asker is not None and arm.asker.gives_adapter:
            refs["base"] = require(
                context.hub, arm.asker.base, revision=arm.asker.base_revision, progress=progress
            )
    return refs


def _asking(
    context: RunContext, arm: Arm, refs: dict[str, Ref], people: list[Conversation]
) -> Asking:
    seat = context.recipe.rollout.asker
    changes: dict[str, object] = {"sampling": arm.sampling} if arm.sampling else {}
    if arm.kind == "people":
        return Asking(people_seat(refs["openings"].repo_id), people=people)
    if arm.kind == "prompted":
        base = refs["base"]
        changes |= {"repo": base.repo_id, "system": arm.system, "endpoints": arm.endpoints}
        seat = seat.model_copy(update=changes)
        return Asking(seat, spec_of(seat, base), base)
    if arm.kind == "asker" and arm.asker is not None:
        seat = seat.model_copy(update=changes | {"system": arm.asker.system or seat.system})
        spec = spec_of(seat, refs["asker"], refs.get("base"), named_by="rollout.asker")
        return Asking(seat, spec, refs["asker"], arm.asker.end_mark)
    raise StageError(f"an arm of kind {arm.kind!r} asks nothing")


def _arm(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """One arm's dialogues, each continued from the same first exchange."""
    name, arm = arm_of(context)
    people = _opened(context, refs)
    return drive(
        context,
        refs,
        dirs,
        name,
        list(first_exchanges(people, study_openings.load(context.hub, refs["answers"], SINGLE))),
        _asking(context, arm, refs, people),
        mode="seeded_qa",
        turns=study_of(context).turns,
    )


def first_exchanges(
    openings: list[Conversation], answers: list[Conversation]
) -> Iterator[Conversation]:
    """Each opening with the first answer to it that passed the filters; those without one are left
    out, in every arm."""
    first: dict[str, Conversation] = {}
    for answer in sorted(answers, key=lambda row: row.meta["index"]):
        first.setdefault(answer.meta["origin"], answer)
    for opening in openings:
        if opening.id in first:
            yield Conversation(opening.id, first[opening.id].messages, opening.source)


ANSWERS_STAGE = Stage(
    ANSWERS, "dialogues", "dataset", _answers_inputs, _answers, card(ANSWERS), (f"data/{SINGLE}-*",)
)
HELD_OUT_STAGE = Stage(
    HELD_OUT,
    "dialogues",
    "dataset",
    _with_openings,
    _held_out,
    card(HELD_OUT),
    (f"data/{ANSWERED_SPLIT}-*",),
)


def arm_stage(name: str) -> Stage:
    """The stage that makes the dialogues of arm `name`."""
    return Stage(ARM, "dialogues", "dataset", _arm_inputs, _arm, card(ARM), (f"data/{name}-*",))
