"""The conversations of a study: those whose openings all arms share, and those held out to measure
on, none of which any training set holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from hubkit.conversation import Conversation, Message, compact, fault
from hubkit.data.overlap import HeldOutIndex
from hubkit.data.parquet import ShardWriter, conversation_schema, read_batches
from hubkit.errors import RepoMissingError, StageError
from hubkit.hub import Hub, Ref
from hubkit.pipeline.stage import PROVENANCE, RunContext, Stage, StageDirs, parquet
from hubkit.pipeline.studies.study_card import card
from hubkit.progress import Progress
from hubkit.recipe import Study
from hubkit.recipe.study import OPENINGS
from hubkit.untrusted import JsonObject

SPLIT, HELD_OUT = "openings", "held-out"


def study_of(context: RunContext) -> Study:
    """The study of the run's recipe. Raises `StageError` for a recipe without one."""
    if context.recipe.study is None:
        raise StageError(f"recipe {context.recipe.name!r} has no study; load it with load_study")
    return context.recipe.study


def conversations(paths: list[Path]) -> Iterator[Conversation]:
    """Rows as conversations, their ``user`` and the ``origin`` of their opening in the meta."""
    for path in paths:
        for batch in read_batches(path):
            for row in batch.to_pylist():
                yield Conversation(
                    row["id"],
                    compact(row["messages"] or []),
                    row.get("source") or "",
                    {
                        "user": row.get("user"),
                        "origin": (row.get("opening") or {}).get("id"),
                        "index": row.get("index"),
                        "chat": row.get("chat"),
                        "sampling": row.get("sampling"),
                    },
                )


def load(hub: Hub, ref: Ref, split: str) -> list[Conversation]:
    """The conversations of one split of a study's dataset."""
    return list(conversations(parquet(hub, ref, split)))


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The corpus."""
    return {"corpus": context.before("corpus")}


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """Both sets; held-out conversations that overlap with what is trained on are passed over."""
    study, hub = study_of(context), context.hub
    passed: Counter[str] = Counter()
    openings = usable(study, load(hub, refs["corpus"], "openings"), passed)
    openings = openings[: study.dialogues]
    candidates = usable(study, load(hub, refs["corpus"], "test"), passed)
    index = HeldOutIndex(candidates, near_duplicate=study.near_duplicates)
    training_sets = {
        "the openings' conversations": openings,
        "the asker's training data": conversations(parquet(hub, refs["corpus"], "train")),
    }
    overlapping: dict[str, str] = {}
    for name, rows in training_sets.items():
        dirs.progress(0, None, f"looking for held-out conversations in {name}")
        for overlap in index.overlaps(name, rows):
            overlapping.setdefault(overlap.held_out, overlap.kind)
    passed.update(f"held out, but trained on: {kind}" for kind in overlapping.values())
    held_out = [c for c in candidates if c.id not in overlapping][: study.conversations]
    for split, rows, needed, key in (
        (SPLIT, openings, study.dialogues, "dialogues"),
        (HELD_OUT, held_out, study.conversations, "conversations"),
    ):
        if len(rows) < needed:
            raise StageError(
                f"study.{key} is {needed}, but only {len(rows)} conversations of the corpus's "
                f"{'openings' if split == SPLIT else 'test'} split have {study.turns} human turns "
                f"of at most {study.max_turn_chars} characters and are not trained on "
                f"({dict(passed)}); raise corpus.{'openings' if split == SPLIT else 'test'}, or "
                f"lower study.{key} or study.turns"
            )
        write_rows(dirs.out, split, rows, "user")
    return {
        "openings": len(openings),
        "held_out": len(held_out),
        "passed_over": dict(passed),
        "users_compared": index.has_users,
        "people_apart": people_apart(hub, refs["corpus"]),
    }


def people_apart(hub: Hub, corpus: Ref) -> int | None:
    """How many people the corpus's splits keep apart: none is in two of them; None where its
    sources do not say who wrote what."""
    try:
        record = json.loads(hub.read(corpus, f"{PROVENANCE}/corpus.json"))
    except (RepoMissingError, ValueError):
        return None
    return record.get("report", {}).get("people") or None


def usable(
    study: Study, candidates: list[Conversation], passed: Counter[str]
) -> list[Conversation]:
    """Conversations with enough human turns, cut to those; openings that two share are told apart
    by nothing, so the first stays."""
    usable, openings_so_far = [], set()
    for conversation in candidates:
        messages = [m for m in conversation.messages if m["role"] != "system"]
        messages = messages[: 2 * study.turns]
        human = [m["content"].strip() for m in messages if m["role"] == "user"]
        reason = _unusable(study, messages, human)
        opening = " ".join(human[0].split()) if human else ""
        if not reason and opening in openings_so_far:
            reason = "the same opening"
        if reason:
            passed[reason] += 1
            continue
        openings_so_far.add(opening)
        usable.append(
            Conversation(conversation.id, messages, conversation.source, conversation.meta)
        )
    return usable


def _unusable(study: Study, messages: list[Message], human: list[str]) -> str:
    if len(human) < study.turns:
        return "too few human turns"
    if fault(messages):
        return "not alternating"
    if max(map(len, human)) > study.max_turn_chars:
        return "a long human turn"
    if len({" ".join(text.casefold().split()) for text in human}) < len(human):
        return "a repeated human turn"
    return ""


def write_rows(
    out: Path, split: str, rows: Iterable[Conversation], column: str, *, of: str = ""
) -> None:
    """Write `rows` as a split below ``out``/data, with a further `column`: what they carry under
    that name, or under `of`."""
    import pyarrow as pa

    schema = conversation_schema([pa.field(column, pa.string())])
    with ShardWriter(out / "data", split, schema) as writer:
        for row in rows:
            writer.write(
                {
                    "id": row.id,
                    "messages": [
                        {"role": m["role"], "content": m["content"]} for m in row.messages
                    ],
                    "source": row.source,
                    column: row.meta.get(of or column),
                }
            )


STAGE = Stage(
    OPENINGS,
    "dialogues",
    "dataset",
    inputs,
    build,
    card(OPENINGS),
    (f"data/{SPLIT}-*", f"data/{HELD_OUT}-*"),
)
