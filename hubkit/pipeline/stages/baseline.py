"""The baseline of a rollout: the same openings, with no trained model in the asker's seat.

The chat model itself plays the user, from its own seat, because a system message tells it to. It
continues the very exchanges with which the asker's dialogues open, so both are asked to continue
the same. What comes out says what training an asker is good for, and is a config of the dialogues'
dataset."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import hubkit.rollout as rollouts
from hubkit.conversation import Conversation
from hubkit.data.parquet import read_batches
from hubkit.hub import Ref
from hubkit.pipeline.stage import RunContext, StageDirs
from hubkit.pipeline.stages.rollout_run import provenance_of, serve_seats
from hubkit.recipe import Rollout
from hubkit.untrusted import JsonObject

SPLIT = "baseline"


def drive(context: RunContext, inputs: dict[str, Ref], dirs: StageDirs) -> JsonObject | None:
    """Write ``dirs.out/data/baseline-*.parquet`` and give its report; None for a recipe without a
    baseline.

    Reads the asker's dialogues, ``raw-*.parquet`` in the same folder. Its journal is its own, below
    ``dirs.scratch``. Raises what `hubkit.rollouts.run` raises."""
    block = _block(context.recipe.rollout)
    if block is None:
        return None
    data, scratch = dirs.out / "data", dirs.scratch / SPLIT
    chat = inputs.get("chat")
    both = {**inputs, "asker": chat} if chat else dict(inputs)
    model = provenance_of(inputs, block)["chat"]
    with serve_seats(context, both, StageDirs(scratch, scratch, dirs.progress), block) as seats:
        report = rollouts.run(
            block,
            _openings(sorted(data.glob("raw-*.parquet")), block),
            scratch / "out",
            seats,
            rollouts.JournalSpec(
                scratch / "journal", context.recipe.seed, {"asker": model, "chat": model}
            ),
            watch=rollouts.Watch(dirs.progress),
        )
    for shard in report.paths:
        shutil.move(scratch / "out" / shard, data / shard.name.replace("raw-", f"{SPLIT}-", 1))
    return report.to_dict()


def _block(block: Rollout) -> Rollout | None:
    """The recipe's rollout with the chat model in both seats, opened by what was said in the
    asker's dialogues.
    """
    if block.baseline is None:
        return None
    user = block.chat.model_copy(
        update={"system": block.baseline.system, "sampling": block.asker.sampling}
    )
    changed: dict[str, object] = {
        "asker": user,
        "dialogues": block.baseline.dialogues,
        "baseline": None,
    }
    if block.mode in ("seeded", "seeded_qa"):
        # An answer may be longer than an opening; it is here because the asker's dialogue holds it.
        changed |= {"mode": "seeded_qa", "max_opening_chars": 1 << 20}
    return block.model_copy(update=changed)


def _openings(shards: list[Path], block: Rollout) -> Iterator[Conversation]:
    """The first exchange of each of the asker's dialogues, in the order of the rollout; none in its
    own modes.
    """
    if block.mode != "seeded_qa":
        return
    for shard in shards:
        for batch in read_batches(shard):
            for row in batch.select(["opening", "source", "messages"]).to_pylist():
                if len(row["messages"]) > 1:
                    yield Conversation(
                        row["opening"]["id"] or "", row["messages"][:2], row["source"] or ""
                    )
