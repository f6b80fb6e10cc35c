"""One part of a run that a cluster drives: what it is told, what it does on its node, what it comes
to.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from hubkit.conversation import Conversation
from hubkit.errors import RunInterruptedError, RunLockedError
from hubkit.hub.places import runs
from hubkit.recipe import Rollout
from hubkit.rollout import shards
from hubkit.rollout.dialogue import Dialogue
from hubkit.rollout.report import Status
from hubkit.rollout.session import Seats, Session, Watch, drive
from hubkit.rollout.state import State, load, locked


@dataclass(frozen=True, slots=True)
class Job:
    """What all parts share."""

    block: Rollout
    digest: str
    seed: int
    provenance: Mapping[str, Any]
    seats: Seats

    def folder(self, number: int, of: int) -> Path:
        """Where part `number` of `of` keeps its journal, on the machine that asks."""
        return runs() / f"parts-{self.digest[:12]}" / f"{number}-of-{of}"


class Caps(TypedDict, total=False):
    """What one part may take, of the block's keys."""

    in_flight: int
    budget_tokens: int
    budget_usd: float
    max_hours: float


@dataclass(frozen=True, slots=True)
class PartStatus:
    """How a part is doing, and with how many dialogues its worker began."""

    status: Status
    began_with: int


@dataclass(frozen=True, slots=True)
class Part:
    """One part's dialogues: every `of`-th, but for those that are `known` (finished) already.

    `live` are dialogues that another driver has begun. `caps` are the part's own.
    """

    number: int
    of: int
    attempt: int
    known: frozenset[int]
    live: tuple[Dialogue, ...]
    caps: Caps

    def wants(self, index: int) -> bool:
        """Whether dialogue `index` is this part's to begin."""
        return index % self.of == self.number and index not in self.known


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a part came to; `session` is None when it was asked to stop."""

    number: int
    ledger: dict[str, dict[str, float]]
    live: list[Dialogue]
    damaged_records: int
    session: Session | None


def look(job: Job, number: int, of: int) -> dict[str, dict[str, float]]:
    """What a part has spent so far, read from its journal."""
    folder = job.folder(number, of)
    if not folder.is_dir():
        return {}
    with locked(folder):
        return load(folder, job.digest).ledger()


def clear(job: Job, number: int, of: int) -> None:
    """Remove a part's folder: the driver has all that it held."""
    shutil.rmtree(job.folder(number, of), ignore_errors=True)


def work(job: Job, openings: list[Conversation], part: Part, collector: Any) -> Outcome:
    """One part, from its journal to its end."""
    import ray

    folder = job.folder(part.number, part.of)
    with locked(folder):
        state = load(folder, job.digest)
        for dialogue in part.live:
            if not state.knows(dialogue.plan.index):
                state.live[dialogue.plan.index] = dialogue
        for index in part.known.intersection(state.live):
            del state.live[index]
        block = _with_caps(job.block, part.caps, state)
        began_with = len(state.sharded) + len(state.ended)

        def offer(path: Path) -> None:
            is_taken = ray.get(collector.take.remote(part.number, part.attempt, path.read_bytes()))
            if not is_taken:
                raise RunLockedError(
                    f"part {part.number} was begun again elsewhere; this worker is not needed"
                )

        def tell(status: Status) -> None:
            message = PartStatus(status, began_with)
            if not ray.get(collector.note.remote(part.number, part.attempt, message)):
                raise RunInterruptedError("asked to stop")

        rows = shards.Rows(job.block, seed=job.seed, digest=job.digest, provenance=job.provenance)
        session: Session | None = None
        with suppress(RunInterruptedError):
            watch = Watch(on_status=tell, on_shard=offer)
            session = drive(
                block, openings, state, rows, folder, job.seats, watch, wants=part.wants
            )
        return Outcome(
            part.number, state.ledger(), list(state.live.values()), state.damaged_records, session
        )


def _with_caps(block: Rollout, caps: Caps, state: State) -> Rollout:
    """The block with a part's share: what it may spend in addition to what its journal says it has
    spent."""
    spent, changes = state.spent, caps.copy()
    if "budget_tokens" in caps:
        changes["budget_tokens"] += spent.total
    if "budget_usd" in caps:
        changes["budget_usd"] += spent.usd(block.seats)
    if "max_hours" in caps:
        changes["max_hours"] += spent.seconds / 3600
    return block.model_copy(update=dict(changes))
