"""Rollout: an asker and a chat model in conversation, over any two endpoints, thousands at once,
none lost.

Takes the recipe's rollout block, openings and the two seats' addresses; gives parquet shards of
dialogues, each with everything that says where it came from, and a report. Every acknowledged turn
is on disk before its dialogue continues, so a run may be stopped, killed, or moved: the same call
resumes where it was and asks for nothing twice."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from hubkit.conversation import Conversation
from hubkit.errors import StageError
from hubkit.recipe import Rollout
from hubkit.rollout import ray_driver, shards
from hubkit.rollout.outputs import report
from hubkit.rollout.plan import check, run_digest, run_digest_of_0_1
from hubkit.rollout.preflight import Estimate, extrapolate
from hubkit.rollout.report import RolloutReport, Status
from hubkit.rollout.session import Seats, Watch, drive
from hubkit.rollout.state import PARTS, load, locked, written_by
from hubkit.serving.reply_journal import JournalSpec

__all__ = [
    "Estimate",
    "JournalSpec",
    "RolloutReport",
    "Seats",
    "Status",
    "Watch",
    "check",
    "estimate",
    "holds_more",
    "locked",
    "run",
    "run_digest",
    "run_digest_of_0_1",
]


def run(
    block: Rollout,
    openings: Iterable[Conversation],
    out: Path,
    seats: Seats,
    journal: JournalSpec,
    *,
    watch: Watch | None = None,
    earlier_shards: Sequence[Path] = (),
) -> RolloutReport:
    """Roll out `block.dialogues` dialogues; write ``out/data/raw-*.parquet`` and
    ``out/report.json``.

    Args:
        block: The recipe's.
        openings: Read once, in order, as they are needed; give the same ones in the same order to
            resume a run.
        out: Where the dialogues go.
        seats: Who answers in each seat, whatever addresses the block names.
        journal: The run's folder, which is kept until the run is done; its provenance (``asker``
            and ``chat``, each with repo_id, revision, template hash) is in every row and tells this
            run from others.
        watch: Who is told how the run goes. What its `on_status` raises ends the run; its
            `on_shard` is called in a thread with each finished shard's path (for a Hub commit).
        earlier_shards: A lost machine's. A fresh journal resumes from those alone: what it had
            spent counts, and dialogues that a cap had ended are resumed.

    With ``block.on`` "ray" it is the Ray cluster that RAY_ADDRESS names, or that runs here, or one
    begun for this run, that drives; hubkit must be installed on every node.

    A run resumes under other caps and another number of dialogues. Where the caps end it, dialogues
    that have an answer are rows with the cap's name as their end, and stay open in the journal.

    After any of these errors the same call resumes.

    Raises:
        RecipeError: The block cannot run.
        RunLockedError: Another process drives this run.
        MisconfiguredEndpointError, EndpointUnreachableError: A seat cannot be asked.
        RunInterruptedError: After Ctrl-C or SIGTERM (once: answers on their way are taken; twice:
            they are not).
        DiskFullError: The disk is full.
        MissingDependencyError: On a cluster, without Ray.
    """
    check(block)
    folder, seed, provenance = journal.folder, journal.seed, journal.provenance
    digest = run_digest(block, seed, provenance)
    earlier_digest = run_digest_of_0_1(block, seed, provenance)
    if earlier_digest in written_by(folder, earlier_shards):
        digest = earlier_digest
    with locked(folder):
        if block.on != "ray" and (folder / PARTS).exists():
            raise StageError(
                f"a Ray cluster was driving the run in {folder} and did not end well: parts "
                "of it know dialogues that are not here. Resume it there (--on ray), or remove "
                f"{folder / PARTS} to ask for those again"
            )
        state = load(folder, digest, earlier_shards)
        rows = shards.Rows(block, seed=seed, digest=digest, provenance=provenance)
        driven = ray_driver.drive if block.on == "ray" else drive
        session = driven(block, openings, state, rows, folder, seats, watch or Watch())
        return report(block, state, rows, out, session, turn_marks=seats.turn_marks)


def holds_more(journal: Path, digest: str, dialogues: int) -> bool:
    """Whether the run in the folder `journal` has dialogues beyond the first `dialogues` that are
    nowhere else: it was interrupted as a larger one. The run's lock must be held.
    """
    if not journal.is_dir():
        return False
    state = load(journal, digest)
    indices = set(state.live)
    for path in state.shard_paths:
        if not shards.is_of_commit(path):
            indices.update(shards.read_indices(path, digest))
    return any(index >= dialogues for index in indices)


def estimate(
    block: Rollout,
    openings: Iterable[Conversation],
    seats: Seats,
    journal: JournalSpec,
    *,
    dialogues: int = 8,
    watch: Watch | None = None,
    earlier_shards: Sequence[Path] = (),
) -> Estimate:
    """What the run will take and cost, from its first `dialogues` dialogues, really driven; raises
    what `run` raises.

    The other arguments are those of `run`. The sample is kept in `journal`: the run starts from it;
    where it holds the sample already, one more dialogue is driven. Ends of a recipe other than its
    target turns (end mark, full context) are not foreseen, so a run may come out smaller. Seats
    that ask by batch are asked one by one for the sample, at twice the price of a batch."""
    openings = list(openings)
    count = min(dialogues, block.dialogues)
    at_once = {
        name: getattr(block, name).model_copy(update={"batch": False}) for name in ("asker", "chat")
    }
    with tempfile.TemporaryDirectory() as scratch:
        while True:
            sample = block.model_copy(update={"dialogues": count, "on": "here", **at_once})
            report = run(
                sample, openings, Path(scratch), seats, journal, watch=watch,
                earlier_shards=earlier_shards,
            )  # fmt: skip
            # What an earlier session found says nothing of the endpoint as it is now.
            if report.session["requests"] or count >= block.dialogues or report.stopped:
                break
            count += 1
        paths = [Path(scratch) / path for path in report.paths]
        return extrapolate(block, paths, seconds=report.seconds, in_flight=sample.in_flight)


class _CallablePackage(ModuleType):
    """This package can be called: ``from hubkit import rollout`` is the library's function."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """As `hubkit.api.rollout`, which is looked up by name: it is built on this package."""
        return import_module("hubkit.api").rollout(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
