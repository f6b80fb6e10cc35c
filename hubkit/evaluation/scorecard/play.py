"""Players at their endpoints: each is asked for first turns, and for the next human turn at every
context.

Takes addresses and contexts; gives turns. An asker sits in the human's seat (`swap_roles`). A base
that is only told to play the user is sent the same messages at its own address, where its own
template prints them under its own labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubkit.conversation import Message
from hubkit.errors import EvalError
from hubkit.evaluation.scorecard.contexts import Contexts
from hubkit.progress import Progress, silent
from hubkit.recipe import Scorecard
from hubkit.rollout.dialogue import split_end_mark
from hubkit.serving import ServedModel
from hubkit.serving.client import ClientLimits, Endpoint, ask_all
from hubkit.serving.reply_journal import Journal
from hubkit.statistics import Number
from hubkit.training.rows import seat_view
from hubkit.untrusted import JsonObject


@dataclass(frozen=True, slots=True)
class Player:
    """Who plays the human: where it is `served`, its system message, its end mark if it has one.

    `model` is what the results say that it is (``repo_id``, ``revision``). `perplexity` is that of
    people's turns, where it was measured."""

    name: str
    served: ServedModel | None
    system: str | None = None
    end_mark: str | None = None
    model: Mapping[str, Any] | None = None
    perplexity: Number | None = None

    @property
    def served_model(self) -> ServedModel:
        """Where it answers. Raises `EvalError` for one that is only planned with."""
        if self.served is None:
            raise EvalError(f"{self.name} is not served; serve it before it plays")
        return self.served


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn as it was made: its text without end mark, whether it held the mark, and whether it
    was cut off.
    """

    text: str
    ended: bool
    cut_off: bool


@dataclass
class Played:
    """A player's turns: at `Contexts.next` and `Contexts.ends` by position there, first turns; and
    how many requests failed, of how many."""

    next: dict[int, Turn] = field(default_factory=dict)
    ends: dict[int, Turn] = field(default_factory=dict)
    first: list[Turn] = field(default_factory=list)
    requests: int = 0
    failed: int = 0


def play(
    block: Scorecard,
    players: Sequence[Player],
    sampled: Contexts,
    *,
    seed: int,
    journal: Path,
    progress: Progress = silent,
) -> dict[str, Played]:
    """Ask every player for its turns, ``block.in_flight`` at a time; `journal` is a folder that
    survives a kill.

    What is in the journal is not asked for again. A request that its endpoint refuses is counted as
    failed. Raises `EndpointUnreachableError` or `MisconfiguredEndpointError` for what concerns all
    of them."""
    played: dict[str, Played] = {}
    total = sum(len(_jobs(block, player, sampled)) for player in players)
    completed = 0
    for number, player in enumerate(players):
        jobs = _jobs(block, player, sampled)
        with Journal(journal / str(number), _identity(block, player, jobs, seed)) as replies:
            waiting = {key: messages for key, messages in jobs.items() if key not in replies}
            completed += len(jobs) - len(waiting)

            def step(player: Player = player) -> None:
                nonlocal completed
                completed += 1
                progress(completed, total, f"turns for the scorecard · {player.name}")

            ask_all(
                _endpoint(block, player),
                waiting,
                replies,
                refused=lambda error: (json.dumps({"status": error.status}), "failed"),
                seed=seed,
                in_flight=block.in_flight,
                step=step,
            )
            played[player.name] = _gather(player, jobs, replies)
    return played


def requests(block: Scorecard, player: Player, sampled: Contexts) -> int:
    """How many requests `player` will be sent."""
    return len(_jobs(block, player, sampled))


def _jobs(block: Scorecard, player: Player, sampled: Contexts) -> dict[str, list[Message]]:
    """Key → what is sent. Without a system message there is nothing to open from; without an end
    mark nothing ends.
    """
    jobs: dict[str, list[Message]] = {}
    if player.system:
        for number in range(block.openings):
            context = sampled.next[number % len(sampled.next)]
            jobs[f"first/{number}"] = seat_view([], "user", player.system, intent=context.intent)
    for kind, contexts in (
        ("next", sampled.next),
        ("ends", sampled.ends if player.end_mark else []),
    ):
        for number, context in enumerate(contexts):
            jobs[f"{kind}/{number}"] = seat_view(
                context.messages, "user", player.system, intent=context.intent
            )
    return jobs


def _identity(
    block: Scorecard, player: Player, jobs: Mapping[str, list[Message]], seed: int
) -> JsonObject:
    """What makes earlier replies worth keeping: the same model, asked for the same in the same
    way.
    """
    digest = hashlib.sha256(json.dumps(jobs, sort_keys=True).encode()).hexdigest()
    model = dict(player.model) if player.model else list(player.served_model.urls)
    return {"model": model, "sampling": block.sampling.model_dump(), "seed": seed, "asked": digest}


def _endpoint(block: Scorecard, player: Player) -> Endpoint:
    return player.served_model.endpoint(
        sampling=block.sampling,
        limits=ClientLimits(block.in_flight, block.request_timeout_s),
        name=player.name,
    )


def _gather(player: Player, jobs: Iterable[str], replies: Journal) -> Played:
    played = Played()
    for key in jobs:
        content, finish = replies[key]
        played.requests += 1
        if finish == "failed":
            played.failed += 1
            continue
        text, ended = split_end_mark(content, player.end_mark)
        turn = Turn(text, ended, finish == "length")
        kind, _, number = key.partition("/")
        if kind == "first":
            played.first.append(turn)
        else:
            (played.next if kind == "next" else played.ends)[int(number)] = turn
    return played
