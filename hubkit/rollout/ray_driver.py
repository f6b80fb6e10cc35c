"""The same run over a Ray cluster: its dialogues are divided into parts, one task each, wherever
Ray has room.

Each part is a session like any other, with a journal on its own machine. Its finished shards come
to the driver, which keeps them and hands them on (to the Hub) before the part may forget them. A
part whose worker is killed is begun again on the same machine where that still lives, and resumes
from its journal; one whose machine is lost resumes from its shards alone. Caps hold over all parts
together: each gets an equal share of what is left."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hubkit.conversation import Conversation
from hubkit.errors import HubError, HubkitError, RecipeError, RunInterruptedError, StageError
from hubkit.files import write_whole
from hubkit.loopback import on_loopback
from hubkit.progress import Notice
from hubkit.ray_session import connected
from hubkit.recipe import Rollout
from hubkit.rollout import shards
from hubkit.rollout.journal import Journal
from hubkit.rollout.ray_collector import Collector
from hubkit.rollout.ray_worker import Caps, Job, Outcome, Part, PartStatus, clear, look, work
from hubkit.rollout.report import Status
from hubkit.rollout.session import Seats, Session, Watch
from hubkit.rollout.state import PARTS, State
from hubkit.untrusted import JsonObject, count_in

_DEATHS = 50  # of one part, until something is taken to be wrong with it
_LOOK_EVERY_S = 0.2


def drive(
    block: Rollout,
    openings: Iterable[Conversation],
    state: State,
    rows: shards.Rows,
    journal: Path,
    seats: Seats,
    watch: Watch,
) -> Session:
    """`hubkit.rollout.session.drive` over the cluster; the run's lock must be held."""
    job = Job(block, state.digest, rows.seed, rows.provenance, seats)
    with connected() as ray:
        _refuse_loopback_elsewhere(ray, seats)
        return _Parts(ray, job, state, journal, watch).drive(ray.put(list(openings)))


def _refuse_loopback_elsewhere(ray: Any, seats: Seats) -> None:
    """A part on another machine cannot reach an engine that listens on this one's loopback."""
    hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    local = [url for url in (*seats.asker.urls, *seats.chat.urls) if on_loopback(url)]
    if len(hosts) > 1 and local:
        raise RecipeError(
            f"{local[0]} is this machine alone, but the Ray cluster has {len(hosts)} machines; "
            "give addresses that all of them reach as rollout.asker.endpoints "
            "and rollout.chat.endpoints"
        )


class _Parts:
    """The parts of one run, as its driver sees them."""

    def __init__(self, ray: Any, job: Job, state: State, journal: Path, watch: Watch) -> None:
        self._ray, self._job, self._state, self._journal, self._watch = (
            ray,
            job,
            state,
            journal,
            watch,
        )
        self._nodes = sorted(
            (node["NodeManagerHostname"], node["NodeID"]) for node in ray.nodes() if node["Alive"]
        )
        self.of = self._number_of_parts()
        self._collector = ray.remote(Collector).options(num_cpus=0, max_concurrency=1000).remote()
        self._pending: dict[Any, Part] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._interrupted = False
        self._before = len(state.sharded)
        self._started = time.monotonic()
        for path in state.shard_paths:
            self._learn(shards.read_ledger(path))

    def drive(self, openings: Any) -> Session:
        """Start every part, and look after them until all are over. Ctrl-C stops them gently, twice
        at once.
        """
        seconds_before = self._state.spent.seconds
        try:
            self._begin(openings)
            while self._pending:
                self._look_after(openings)
        except KeyboardInterrupt:
            self._interrupted = True
            self._stop()
        except BaseException:
            self._stop()
            raise
        finally:
            self._state.spent.seconds = seconds_before + time.monotonic() - self._started
            self._gather()
        if self._interrupted:
            raise RunInterruptedError(
                f"stopped with {len(self._state.sharded)} of {self._job.block.dialogues} "
                f"dialogues in shards and {len(self._state.live)} under way; "
                "run the same command again: it resumes there"
            )
        return self._session()

    def _number_of_parts(self) -> int:
        """As many as the run was begun with; for a new one, the recipe's number of workers, or one
        a node.
        """
        path = self._journal / PARTS
        with suppress(OSError, ValueError, KeyError):
            return int(json.loads(path.read_text("utf-8"))["of"])
        of = self._job.block.workers or len(self._nodes)
        write_whole(path, json.dumps({"of": of}), durable=True)
        return of

    def _begin(self, openings: Any) -> None:
        looking = self._ray.remote(look)
        looks = [self._at(looking, k, cpus=0).remote(self._job, k, self.of) for k in range(self.of)]
        for ledger in self._ray.get(looks):
            self._learn(ledger)
        finished = frozenset(self._state.sharded)
        for number in range(self.of):
            live = [d for d in self._state.live.values() if d.plan.index % self.of == number]
            self._start(Part(number, self.of, 0, finished, tuple(live), self._caps()), openings)

    def _at(self, task: Any, number: int, *, cpus: int = 1) -> Any:
        """`task` on the node of part `number` while that lives: it has the journal."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        _, node = self._nodes[number % len(self._nodes)]
        where = NodeAffinitySchedulingStrategy(node, soft=True)
        return task.options(num_cpus=cpus, max_retries=0, scheduling_strategy=where)

    def _caps(self) -> Caps:
        """One part's share of what the caps leave, on top of what it has spent itself."""
        block, spent = self._job.block, self._state.spent
        caps: Caps = {"in_flight": max(1, block.in_flight // self.of)}
        if block.budget_tokens is not None:
            caps["budget_tokens"] = max(0, block.budget_tokens - spent.total) // self.of
        if block.budget_usd is not None:
            caps["budget_usd"] = max(0.0, block.budget_usd - spent.usd(block.seats)) / self.of
        if block.max_hours is not None:
            caps["max_hours"] = max(0.0, block.max_hours - spent.seconds / 3600)
        return caps

    def _start(self, part: Part, openings: Any) -> None:
        self._ray.get(self._collector.begin.remote(part.number, part.attempt))
        task = self._at(self._ray.remote(work), part.number)
        self._pending[task.remote(self._job, openings, part, self._collector)] = part

    def _look_after(self, openings: Any) -> None:
        """Take shards, tell how it goes, and see to parts that are over or whose worker died."""
        ready, _ = self._ray.wait(list(self._pending), timeout=_LOOK_EVERY_S)
        self._take_shards()
        self._tell()
        for ref in ready:
            part = self._pending.pop(ref)
            try:
                self._outcomes[part.number] = self._ray.get(ref)
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, HubkitError):
                    raise error.cause from None
                raise
            except self._ray.exceptions.RayError as error:
                if part.attempt >= _DEATHS:
                    raise StageError(
                        f"the worker of part {part.number} died {_DEATHS} "
                        f"times ({type(error).__name__}); see Ray's logs. "
                        "Nothing is lost, and the same command resumes"
                    ) from None
                finished = frozenset(self._state.sharded)
                self._start(
                    Part(part.number, part.of, part.attempt + 1, finished, part.live, part.caps),
                    openings,
                )

    def _take_shards(self) -> None:
        """Keep what parts have finished, hand it on, and tell them that they may forget it."""
        for ticket, data in self._ray.get(self._collector.waiting.remote()):
            path = self._keep(data)
            try:
                if path is not None and self._watch.on_shard is not None:
                    self._watch.on_shard(path)
                    self._state.published.add(path.name)
            except HubError:  # it lies here; the next start offers it again
                self._state.count("shard_not_taken")
            self._ray.get(self._collector.done.remote(ticket))

    def _keep(self, data: bytes) -> Path | None:
        """A shard among the run's own, durably; None when all of it had arrived already (its worker
        died too early).
        """
        store, state = self._journal / "shards", self._state
        last = max((int(p.stem.split("-")[1]) for p in state.shard_paths), default=-1)
        path = store / f"raw-{last + 1:05d}.parquet"
        arrived = store / "arrived.part"
        arrived.write_bytes(data)
        indices = shards.read_indices(arrived, state.digest)
        self._learn(shards.read_ledger(arrived))
        row_count = shards.copy(arrived, path, leave=lambda index, _: index in state.sharded)
        arrived.unlink()
        if not row_count:
            return None
        state.shard_paths.append(path)
        state.sharded.update(indices)
        for index in indices:
            state.live.pop(index, None)
        return path

    def _learn(self, ledger: Mapping[str, Mapping[str, float]]) -> None:
        """Parts work side by side: their seconds do not add up, ours are counted instead."""
        self._state.learn({driver: {**sums, "seconds": 0.0} for driver, sums in ledger.items()})

    def _tell(self) -> None:
        statuses: dict[int, PartStatus] = self._ray.get(self._collector.statuses.remote())
        status = _together(
            list(statuses.values()), self._job.block, self._before, time.monotonic() - self._started
        )
        self._watch.progress(
            status.share,
            1,
            f"{status.line()} · {len(self._pending)} parts",
        )
        if self._watch.on_status is not None:
            self._watch.on_status(status)

    def _stop(self) -> None:
        """Ask all parts to stop, and wait for what they have; a second Ctrl-C no longer waits."""
        deadline = time.monotonic() + self._job.block.request_timeout_s
        waiting = f"finishing {len(self._pending)} parts"
        self._watch.progress(
            len(self._state.sharded),
            self._job.block.dialogues,
            Notice(f"{waiting}; press again to stop now"),
        )
        with suppress(KeyboardInterrupt, self._ray.exceptions.RayError):
            self._ray.get(self._collector.halt.remote())
            while self._pending and time.monotonic() < deadline:
                ready, _ = self._ray.wait(list(self._pending), timeout=_LOOK_EVERY_S)
                self._take_shards()
                for ref in ready:
                    part = self._pending.pop(ref)
                    with suppress(HubkitError, self._ray.exceptions.RayError):
                        self._outcomes[part.number] = self._ray.get(ref)
        for ref in self._pending:
            self._ray.cancel(ref, force=True)

    def _gather(self) -> None:
        """Put what the parts left open into the run's own journal; only then may they forget it."""
        state = self._state
        for outcome in self._outcomes.values():
            self._learn(outcome.ledger)
            state.damaged_records += outcome.damaged_records
            for dialogue in outcome.live:
                if dialogue.plan.index not in state.sharded:
                    state.live[dialogue.plan.index] = dialogue
        asyncio.run(_write(self._journal, state))
        clearing = self._ray.remote(clear)
        self._ray.get(
            [self._at(clearing, k, cpus=0).remote(self._job, k, self.of) for k in self._outcomes]
        )
        if len(self._outcomes) == self.of:
            (self._journal / PARTS).unlink(missing_ok=True)

    def _session(self) -> Session:
        """The parts' sessions as one."""
        sessions = [
            outcome.session for outcome in self._outcomes.values() if outcome.session is not None
        ]
        errors: Counter[str] = Counter()
        for session in sessions:
            errors.update(session.errors)
        facts: JsonObject = {
            name: sum(count_in(session.facts, name) for session in sessions)
            for name in ("turns", "requests")
        }
        facts |= {"seconds": round(time.monotonic() - self._started, 3), "parts": self.of}
        facts["resumed"] = {"dialogues": self._before}
        stopped = next((session.stopped for session in sessions if session.stopped), "")
        return Session(stopped, sessions[0].skipped if sessions else {}, dict(errors), facts)


async def _write(folder: Path, state: State) -> None:
    await Journal(folder, state.snapshot()).close()


def _together(statuses: list[PartStatus], block: Rollout, before: int, seconds: float) -> Status:
    """What the parts say of themselves, as one."""
    gained = sum(part.status.dialogues - part.began_with for part in statuses)

    def added(name: str) -> Any:
        return sum(getattr(part.status, name) for part in statuses)

    counted = {name: Counter[str]() for name in ("in_flight", "limits", "errors")}
    for part in statuses:
        for name, counts in counted.items():
            counts.update(getattr(part.status, name))
    remaining = max(0, block.dialogues - before - gained)
    return Status(
        dialogues=before + gained,
        wanted=block.dialogues,
        turns=added("turns"),
        turns_per_s=added("turns_per_s"),
        tokens_per_s=added("tokens_per_s"),
        in_flight=dict(counted["in_flight"]),
        limits=dict(counted["limits"]),
        errors=dict(counted["errors"]),
        retries=added("retries"),
        usd=added("usd"),
        tokens=added("tokens"),
        seconds=seconds,
        eta_s=seconds / gained * remaining if gained else None,
        under_way=added("under_way"),
    )
