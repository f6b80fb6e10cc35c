"""A scorecard for askers: how like people they play, on held-out real conversations, with people's
own row beside.

Takes a recipe's `Scorecard` block, held-out parquet files and players at their addresses; gives a
`Scorecard`: numbers with intervals, a table, a picture."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubkit.evaluation.scorecard.contexts import Context, Contexts, contexts
from hubkit.evaluation.scorecard.embedding import Embed
from hubkit.evaluation.scorecard.play import Played, Player, Turn, play, requests
from hubkit.evaluation.scorecard.score import rows, settings
from hubkit.evaluation.scorecard.turing import TuringTest
from hubkit.metrics.scorecards import Scorecard as Result
from hubkit.progress import Progress, silent
from hubkit.recipe import Scorecard
from hubkit.statistics import Bootstrap

__all__ = [
    "Context",
    "Contexts",
    "Embed",
    "HeldOutFiles",
    "Played",
    "Player",
    "TuringTest",
    "Turn",
    "contexts",
    "play",
    "requests",
    "scorecard",
]


@dataclass(frozen=True)
class HeldOutFiles:
    """Held-out conversations.

    Args:
        files: Parquet files.
        intent_column: Where what a conversation's human wants is.
        source: What the result says that they are.
        trained_on: Ids of those that an asker was trained on, which no asker is asked at, by asker;
            None of one of which it is not known.
    """

    files: Sequence[Path]
    intent_column: str | None = None
    source: Mapping[str, Any] | None = None
    trained_on: Mapping[str, Collection[str] | None] = field(default_factory=dict)

    @property
    def passed_over(self) -> set[str]:
        """Ids of those that no asker is asked at."""
        return {name for names in self.trained_on.values() for name in names or ()}


def scorecard(
    block: Scorecard,
    data: HeldOutFiles,
    players: Sequence[Player],
    *,
    seed: int,
    journal: Path,
    embed: Embed | None = None,
    turing: TuringTest | None = None,
    progress: Progress = silent,
) -> Result:
    """Let every player continue the same real contexts out of `data`, and compare what it says with
    what people said.

    Args:
        block: How many contexts, and how turns are sampled.
        data: Held-out conversations.
        players: Who plays, each at its address.
        seed: Draws contexts and turns.
        journal: A folder in which replies survive a kill: the same call resumes from there.
        embed: The encoder for measures in an embedding space; None: they are not taken.
        turing: A judge who tells turns from people's; None: no judge is asked.
        progress: Told how far it is.

    Raises:
        SourceError: Too few conversations can be used.
        EndpointError: An endpoint refuses everything or does not answer."""
    sampled = contexts(
        block,
        data.files,
        seed=seed,
        intent_column=data.intent_column,
        without=data.passed_over,
    )
    played = play(block, players, sampled, seed=seed, journal=journal, progress=progress)
    _keep(journal / "turns.jsonl", sampled, played)
    measured = rows(block, players, sampled, played, seed, embed)
    facts = settings(block, sampled, seed, data.source)
    facts["trained_on"] = {
        name: None if ids is None else len(ids) for name, ids in data.trained_on.items()
    }
    if turing:
        turns = {
            name: {number: turn.text for number, turn in result.next.items()}
            for name, result in played.items()
        }
        bootstrap = Bootstrap(block.resamples, seed=seed)
        measured = turing.judged(measured, sampled.next, turns, bootstrap, progress)
        facts["turing"] = turing.settings()
    return Result(measured, facts)


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
