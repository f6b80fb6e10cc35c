"""One reinforcement run: a model folder that can be pushed, with its conversations and their
rewards next to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hubkit.data.parquet import ShardWriter
from hubkit.progress import Progress, silent
from hubkit.reinforcement.grpo import GRPOTask
from hubkit.training.config import quiet_environment
from hubkit.training.identity import Base
from hubkit.training.process import run_in_process
from hubkit.untrusted import JsonObject

FOLDER = "conversations"


def reinforce(
    task: GRPOTask,
    data: Sequence[Path],
    base: Base,
    out: Path,
    *,
    seed: int,
    work: Path,
    progress: Progress = silent,
) -> JsonObject:
    """Reinforce the chat model of `task`; write a pushable model folder to `out`.

    `work` keeps checkpoints and survives a kill, as the journal in ``task.folder`` does: the same
    call resumes where the last one stopped.

    Args:
        task: What is done.
        data: The files that the openings are from: they identify the run.
        base: The model below, which the adapter will name as its base.
        out: The model folder, with ``conversations/train-*.parquet``.
        seed: Of all that is drawn.
        work: Keeps checkpoints.
        progress: Called with how far the run is.

    Returns:
        The report: that of the training, and under ``reinforcement`` what was rewarded.

    Raises:
        RecipeError: A key or value that TRL or PEFT refuse, or a batch that cannot be made.
        TrainingError: Nothing can be learned, or a cap was reached before the first step.
        EndpointError: An asker cannot be asked at all.
    """
    quiet_environment()
    report = run_in_process(task, data, base, out, seed=seed, work=work, progress=progress)
    write_conversations(task.records, out / FOLDER)
    findings: JsonObject = {"conversations": len(task.records), **task.findings}
    return {**report.to_dict(), "reinforcement": findings}


def write_conversations(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write finished conversations with their rewards as the parquet files of a dataset."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("group", "asker", "intent", "end_reason")]
    fields = [*texts, ("sampled_tokens", pa.int32())]
    with ShardWriter(folder, "train", rewarded_schema(fields)) as shards:
        for record in records:
            shards.write(_row(record))


def _row(record: Mapping[str, Any]) -> JsonObject:
    episode, outcome = record["episode"], record["outcome"]
    group = record["key"].split("/", 1)[0]
    return {
        "id": record["key"],
        "messages": [{"role": m["role"], "content": m["content"]} for m in episode["messages"]],
        "group": group,
        "asker": episode["asker"],
        "intent": episode["intent"],
        "end_reason": episode["end_reason"],
        "reward": outcome["total"],
        "rewards": [{"name": k, "value": v} for k, v in outcome["parts"].items()],
        "masked": "; ".join(f"{k}: {v}" for k, v in outcome["masks"].items()),
        "sampled_tokens": record["tokens"],
    }


def rewarded_schema(fields: Sequence[tuple[str, Any]]) -> Any:
    """The Arrow schema of conversations with their rewards: ``id``, ``messages``, `fields`,
    ``reward`` (the sum), ``rewards`` (each one's value) and ``masked`` (why there is no reward)."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    reward = pa.struct([("name", pa.string()), ("value", pa.float64())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("messages", pa.list_(message)),
            *fields,
            ("reward", pa.float64()),
            ("rewards", pa.list_(reward)),
            ("masked", pa.string()),
        ]
    )
