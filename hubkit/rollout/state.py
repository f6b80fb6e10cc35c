"""The state of a run on disk: finished shards, open dialogues, what was spent; and the lock
that guards it.

A run's folder holds ``journal-*.log`` (see `journal`), ``shards/raw-*.parquet`` and ``lock``. A
dialogue is in exactly one place: in a shard, or in the journal. Where a crash left it in both, the
shard counts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from hubkit.errors import RunLockedError, StageError
from hubkit.rollout import shards
from hubkit.rollout.dialogue import Dialogue, revived
from hubkit.rollout.journal import Record, newest, read
from hubkit.rollout.plan import Plan
from hubkit.rollout.turns import Turn
from hubkit.serving.budget import CAPS, Spent

PARTS = "parts.json"  # says into how many parts a cluster's driver has divided the run
MODEL = "model_"  # counts of answers by the model that the server named: model_SEAT:NAME


@dataclass(slots=True)
class State:
    """A run as it stands. `sharded` are the dialogue numbers in `shard_paths`; `live` are the
    others, by number.
    """

    digest: str
    sharded: set[int] = field(default_factory=set)
    shard_paths: list[Path] = field(default_factory=list)
    published: set[str] = field(default_factory=set)
    live: dict[int, Dialogue] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    counts: dict[str, int] = field(
        default_factory=dict
    )  # retries and errors by kind, over all sessions
    damaged_records: int = 0
    id: str = field(
        default_factory=lambda: uuid.uuid4().hex[:12]
    )  # this driver's; kept in its journal
    elsewhere: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # what others spent; `spent` counts it too

    def count(self, kind: str) -> None:
        """One more of `what`."""
        self.counts[kind] = self.counts.get(kind, 0) + 1

    @property
    def ended(self) -> list[Dialogue]:
        """Dialogues that have ended and are in no shard yet."""
        return [dialogue for dialogue in self.live.values() if dialogue.end_reason]

    def knows(self, index: int) -> bool:
        """Whether the dialogue has begun already."""
        return index in self.sharded or index in self.live

    def open_below(self, count: int) -> list[Dialogue]:
        """Dialogues under way whose number is below `count`."""
        return [d for d in self.live.values() if not d.end_reason and d.plan.index < count]

    def ledger(self) -> dict[str, dict[str, float]]:
        """What each driver of the run has spent and counted, by its id, this one included."""
        totals: dict[str, float] = {**self.spent.sums(), **self.counts}
        for sums in self.elsewhere.values():
            for name, value in sums.items():
                totals[name] = totals.get(name, 0) - value
        return {**self.elsewhere, self.id: totals}

    def learn(self, ledger: Mapping[str, Mapping[str, float]]) -> None:
        """Count what others spent since we last heard of them."""
        for driver, sums in ledger.items():
            before = self.elsewhere.get(driver, {})
            if driver == self.id or sums.get("requests", 0) <= before.get("requests", 0):
                continue
            gain = {name: value - before.get(name, 0) for name, value in sums.items()}
            self.spent.gain(gain)
            for name in gain.keys() - self.spent.sums().keys():
                self.counts[name] = self.counts.get(name, 0) + int(gain[name])
            self.elsewhere[driver] = dict(sums)

    def snapshot(self) -> Iterator[Record]:
        """All that a fresh journal must hold. Records are marked old: the header has counted what
        they cost. It stands there twice, for without it the caps would not hold.
        """
        spent = self.spent
        header: Record = {
            "k": "run", "digest": self.digest, "published": sorted(self.published),
            "counts": self.counts, "spent": [
                spent.tokens, spent.requests, spent.cached_total, spent.seconds, spent.cached
            ],
            "id": self.id, "elsewhere": self.elsewhere,
        }  # fmt: skip
        yield from (header, header)
        for dialogue in self.live.values():
            yield opened(dialogue.plan)
            for turn in (*dialogue.turns, *dialogue.failed_attempts):
                yield {**turn.to_record(), "old": True}
            if dialogue.end_reason:
                yield {**ended(dialogue), "old": True}


def opened(plan: Plan) -> Record:
    """The record of a dialogue's beginning."""
    return {"k": "open", "d": plan.index, "plan": plan.to_record()}


def ended(dialogue: Dialogue) -> Record:
    """The record of a dialogue's end."""
    return {
        "k": "end", "d": dialogue.plan.index, "why": dialogue.end_reason, "error": dialogue.error,
        "at": dialogue.ended_at,
    }  # fmt: skip


def written_by(folder: Path, earlier: Sequence[Path]) -> set[str]:
    """The digests of the runs that the journal in `folder`, its shards, and `earlier` shards belong
    to.
    """
    digests: set[str] = set()
    if (journal := newest(folder)) is not None:
        headers = [r for r in islice(read(journal), 2) if r is not None and r.get("k") == "run"]
        digests.update(str(header.get("digest")) for header in headers)
    standing = shards.standing(folder / "shards")
    return digests.union(*(shards.read_runs(path) for path in [*standing, *earlier]))


def load(folder: Path, digest: str, earlier: Sequence[Path] = ()) -> State:
    """The run in `folder`, which is made where it is not there; `earlier` are shards that another
    machine wrote.

    Raises `StageError` when the journal belongs to another run, `SourceError` for a shard that
    cannot be read."""
    state = State(digest)
    store = folder / "shards"
    shards.keep_digests(store)
    for stale in store.glob("*.part"):
        stale.unlink()
    state.sharded.update(_adopt(store, earlier, digest))
    state.shard_paths = shards.standing(store)
    state.published.update(path.name for path in earlier)
    journal = newest(folder)
    if journal is not None:
        _replay(state, read(journal), journal)
    for path in earlier:
        state.learn(shards.read_ledger(path))
        for row in shards.read_rows(path, CAPS):
            if not state.knows(row["index"]):
                state.live[row["index"]] = revived(row)
    return state


def _adopt(store: Path, earlier: Sequence[Path], digest: str) -> set[int]:
    """Copy what shards from elsewhere hold that is not here yet, but for dialogues that a cap
    ended: those go on. Gives the numbers of all dialogues that shards here hold then.
    """
    indices_here: set[int] = set()
    for path in shards.standing(store):
        indices_here.update(shards.read_indices(path, digest))
    for path in sorted(earlier):
        indices = shards.read_indices(path, digest)
        if (store / path.name).exists() or indices_here.issuperset(indices):
            continue
        shards.copy(
            path,
            store / path.name,
            leave=lambda index, reason: index in indices_here or reason in CAPS,
        )
        indices_here.update(
            shards.read_indices(store / path.name, digest) if (store / path.name).exists() else ()
        )
    return indices_here


def _replay(state: State, records: Iterable[Record | None], path: Path) -> None:
    has_header = False
    for record in records:
        is_header = record is not None and record.get("k") == "run"
        if not (has_header or is_header or record is None):
            break
        has_header = has_header or is_header
        if record is None:
            state.damaged_records += 1
            continue
        try:
            _apply(state, record, path)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise StageError(
                f"{path} holds a {record.get('k')!r} record that this version "
                "of hubkit cannot read; go on with the version that wrote it, "
                "or remove the file to ask for its turns again"
            ) from None
    if not has_header:
        raise StageError(
            f"{path} is damaged: the lines at its start that say which run this is and what it has "
            "spent cannot be read, and its caps would not hold. Put the file back from a backup, "
            "or remove it: its turns are asked for again, and what was spent is counted from the "
            "shards"
        )


def _apply(state: State, record: Mapping[str, Any], path: Path) -> None:
    kind = record.get("k")
    if kind == "run":
        if record["digest"] != state.digest:
            raise StageError(
                f"{path.parent} holds another run ({record['digest'][:8]}, "
                f"not {state.digest[:8]}): the recipe's rollout block, the seed or a model has "
                "changed. Use another folder for this run, or remove that one"
            )
        tokens, requests, cached, seconds, *by_seat = record["spent"]
        state.spent = Spent(tokens, requests, by_seat[0] if by_seat else {"": cached}, seconds)
        state.published.update(record["published"])
        state.counts = dict(record["counts"])
        state.id, state.elsewhere = record["id"], record["elsewhere"]
    elif kind == "clock":
        state.spent.seconds = max(state.spent.seconds, record["s"])
    elif kind == "published":
        state.published.add(record["shard"])
    elif record["d"] not in state.sharded:
        _apply_to_dialogue(state, record)


def _apply_to_dialogue(state: State, record: Mapping[str, Any]) -> None:
    """Turns count only in their order: after a damaged record, what no longer joins on is left out
    and asked again.
    """
    kind, index = record["k"], record["d"]
    if kind == "open":
        state.live[index] = Dialogue(Plan.from_record(index, record["plan"]))
        return
    dialogue = state.live.get(index)
    if dialogue is None or (kind in ("turn", "try") and record["t"] != dialogue.position):
        state.damaged_records += 1
        return
    if kind == "turn":
        dialogue.add(Turn.from_record(record))
    elif kind == "try":
        dialogue.failed_attempts.append(Turn.from_record(record))
    elif kind == "end":
        dialogue.end_reason, dialogue.error, dialogue.ended_at = (
            record["why"],
            record["error"],
            record["at"],
        )
    if not record.get("old"):
        _count(state, record)


def _count(state: State, record: Mapping[str, Any]) -> None:
    """What a record of the last session adds to the run's sums."""
    if record["k"] in ("turn", "try"):
        state.spent.add(
            record["seat"], record["in"] or 0, record["out"] or 0, record["cached"] or 0
        )
        name = "asker" if record["seat"] == "user" else "chat"
        if record.get("model"):
            state.count(f"{MODEL}{name}:{record['model']}")
        if record.get("thought"):
            state.count(f"thinking_{name}")
    if record["k"] == "try":
        state.count(f"retry_{record['why']}")
    if record["k"] == "end" and record["error"]:
        state.count(f"refused_http_{record['error']['status']}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run alone. Raises `RunLockedError`, which names the other process, when it is
    taken.
    """
    from hubkit.locks import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(folder / "lock", thread_local=False), folder / "lock.pid"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = "unknown"
        with suppress(OSError):
            holder = note.read_text("utf-8")
        raise RunLockedError(
            f"process {holder} is driving the run in {folder}; wait for it, or stop it first"
        ) from None
    try:
        note.write_text(str(os.getpid()), "utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()
