"""A scorecard for askers: how like people they play, on held-out real conversations, with people's
own row beside.

Takes a recipe's `Scorecard` block, held-out parquet files and players at their addresses; gives a
`Scorecard`: numbers with intervals, a table, a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hubkit.evaluation.scorecard.contexts import Context, Contexts, contexts
from hubkit.evaluation.scorecard.play import Played, Player, Turn, play, requests
from hubkit.evaluation.scorecard.score import rows, settings
from hubkit.metrics.scorecards import Scorecard as Result
from hubkit.progress import Progress, silent
from hubkit.recipe import Scorecard

__all__ = [
    "Context",
    "Contexts",
    "Played",
    "Player",
    "Turn",
    "contexts",
    "play",
    "requests",
    "scorecard",
]


def scorecard(
    block: Scorecard,
    data: Sequence[Path],
    players: Sequence[Player],
    *,
    seed: int,
    journal: Path,
    intent_column: str | None = None,
    source: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Result:
    """Let every player go on at the same real contexts out of `data`, and measure what it says
    beside what people said.

    `journal` is a folder in which replies survive a kill: the same call resumes from there.
    `source` says in the result what `data` is. Raises `SourceError` when too few conversations can
    be used, and what an endpoint raises that refuses everything or does not answer."""
    sampled = contexts(block, data, seed=seed, intent_column=intent_column)
    played = play(block, players, sampled, seed=seed, journal=journal, progress=progress)
    _keep(journal / "turns.jsonl", sampled, played)
    return Result(
        rows(block, players, sampled, played, seed), settings(block, sampled, seed, source)
    )


def _keep(path: Path, sampled: Contexts, played: Mapping[str, Played]) -> None:
    """Every context's last answer, what people said and what each player said, for a reader."""
    with path.open("w", encoding="utf-8") as out:
        for number, context in enumerate(sampled.next):
            turns = {
                name: turn.text
                for name, result in played.items()
                if (turn := result.next.get(number))
            }
            row = {
                "id": context.id,
                "answer": context.messages[-1]["content"],
                "people": context.real,
                **turns,
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
