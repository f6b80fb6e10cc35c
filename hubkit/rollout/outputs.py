"""A run's dialogues in its output folder, and its report."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from hubkit.errors import EmptyRolloutError
from hubkit.recipe import Rollout
from hubkit.rollout import shards
from hubkit.rollout.report import RolloutReport
from hubkit.rollout.session import Session
from hubkit.rollout.state import State


def report(
    block: Rollout,
    state: State,
    rows: shards.Rows,
    out: Path,
    session: Session,
    *,
    turn_marks: Collection[str] = (),
) -> RolloutReport:
    """Put the run's dialogues into `out`, and report what they are and what they took, also in
    ``out/report.json``; `turn_marks` are those of the seats' templates.

    Raises `EmptyRolloutError` when there are none.
    """
    paths = deliver(block, state, rows, out, cap=session.stopped)
    if not paths:
        raise EmptyRolloutError(
            "the rollout made no dialogue (openings that could not be used: "
            f"{session.skipped or 'none given'}); check the openings, "
            "rollout.max_opening_chars and the caps"
        )
    dialogues, ends, human, generated = shards.totals(paths)
    seats = {"asker": state.spent.tokens["user"], "chat": state.spent.tokens["assistant"]}
    kinds = {
        prefix: {
            k.removeprefix(prefix): v
            for k, v in sorted(state.counts.items())
            if k.startswith(prefix)
        }
        for prefix in ("retry_", "refused_", "thinking_", "model_asker:", "model_chat:")
    }
    whole = RolloutReport(
        dialogues=dialogues,
        wanted=block.dialogues,
        unfinished=len(state.open_below(block.dialogues)),
        stopped=session.stopped,
        human_turns=human,
        generated_turns=generated,
        end_reasons=ends,
        openings_skipped=session.skipped,
        retries=kinds["retry_"],
        refused=kinds["refused_"],
        errors=session.errors,
        thinking=kinds["thinking_"],
        models={"asker": kinds["model_asker:"], "chat": kinds["model_chat:"]},
        requests=state.spent.requests,
        tokens={
            seat: {"prompt": count[0], "completion": count[1]} for seat, count in seats.items()
        },
        cached_tokens=state.spent.cached_total,
        usd=round(state.spent.usd(block.seats), 6),
        seconds=round(state.spent.seconds, 3),
        session=session.facts,
        damaged_records=state.damaged_records,
        turn_marks=sorted(turn_marks),
        shards=[f"data/{path.name}" for path in paths],
        digest=state.digest,
    )
    (out / "report.json").write_text(json.dumps(whole.to_dict(), indent=1, sort_keys=True), "utf-8")
    return whole


def deliver(block: Rollout, state: State, rows: shards.Rows, out: Path, *, cap: str) -> list[Path]:
    """Put the run's dialogues into ``out/data/raw-*.parquet``: what its shards hold, and those that
    `cap` has ended.

    A run whose journal knows a larger one gives its own dialogues alone.
    """
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    for stale in data.glob("raw-*.parquet"):
        stale.unlink()
    paths: list[Path] = []
    for path in state.shard_paths:
        to = data / f"raw-{len(paths):05d}.parquet"
        if shards.copy(path, to, leave=lambda index, reason: index >= block.dialogues):
            paths.append(to)
    open_dialogues = [
        d
        for d in state.open_below(block.dialogues)
        if any(turn.seat == "assistant" for turn in d.turns)
    ]
    if cap and open_dialogues:
        open_dialogues = [
            replace(dialogue, end_reason=cap, ended_at=time.time()) for dialogue in open_dialogues
        ]
        paths.append(data / f"raw-{len(paths):05d}.parquet")
        shards.write([rows.row(dialogue) for dialogue in open_dialogues], paths[-1], state.ledger())
    return paths
