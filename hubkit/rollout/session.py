"""One session of a run in this process: both seats' endpoints, the driver between them, signals,
and progress.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hubkit.conversation import Conversation
from hubkit.progress import Notice, Progress, silent
from hubkit.recipe import Rollout
from hubkit.rollout import shards
from hubkit.rollout.driver import Driver, OnShard
from hubkit.rollout.plan import Plan, plans
from hubkit.rollout.report import Status
from hubkit.rollout.state import State
from hubkit.serving import ServedModel
from hubkit.serving.client import ClientLimits, Endpoint
from hubkit.untrusted import JsonObject

_NOTE_EVERY_S = 0.5
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seats:
    """Who answers in each seat."""

    asker: ServedModel
    chat: ServedModel

    @property
    def turn_marks(self) -> frozenset[str]:
        """The control tokens that open turns of either seat's template, where it is known."""
        return frozenset((*self.asker.turn_marks, *self.chat.turn_marks))


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told how a run goes, while it goes."""

    progress: Progress = silent
    on_status: Callable[[Status], None] | None = None
    on_shard: OnShard | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """What a session came to. `stopped` names the cap that ended it, or is empty."""

    stopped: str
    skipped: dict[str, int]
    errors: dict[str, int]
    facts: JsonObject = field(default_factory=dict)


def drive(
    block: Rollout,
    openings: Iterable[Conversation],
    state: State,
    rows: shards.Rows,
    journal: Path,
    seats: Seats,
    watch: Watch,
    *,
    wants: Callable[[int], bool] = lambda index: True,
) -> Session:
    """Drive `state` to its end; the run's lock must be held. Raises what `hubkit.rollout.run`
    raises.

    `wants` says which of the run's dialogues this driver takes, by their number.
    """
    resumed = {
        "dialogues": len(state.sharded) + len(state.ended),
        "under_way": len(state.live) - len(state.ended),
    }
    skipped: Counter[str] = Counter()
    coming = plans(
        block, openings, seed=rows.seed, digest=state.digest,
        skip=lambda index: state.knows(index) or not wants(index), skipped=skipped,
    )  # fmt: skip
    models = {"user": seats.asker, "assistant": seats.chat}

    async def session() -> tuple[Driver, dict[str, int], list[str]]:
        async with AsyncExitStack() as stack:
            endpoints = {
                seat: await stack.enter_async_context(
                    _endpoint(block, seat, models[seat], journal, watch.progress)
                )
                for seat in ("user", "assistant")
            }
            driver = Driver(
                block,
                state,
                journal,
                seed=rows.seed,
                rows=rows,
                endpoints=endpoints,
                on_shard=watch.on_shard,
                turn_marks=seats.turn_marks,
            )
            await _watched(driver, endpoints, coming, block, watch.progress, watch.on_status)
            adaptations = [a for endpoint in endpoints.values() for a in endpoint.adaptations]
            errors = endpoints["user"].errors + endpoints["assistant"].errors
            return driver, dict(errors), adaptations

    started = time.monotonic()
    driver, errors, adaptations = _run_to_end(session())
    facts: JsonObject = {"resumed": resumed, "turns": driver.turns, "requests": driver.sent}
    facts["adaptations"] = adaptations
    facts["seconds"] = round(time.monotonic() - started, 3)
    return Session(driver.budget.exhausted, dict(skipped), errors, facts)


def _run_to_end(session: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, also where a loop already runs (a notebook): then in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(session)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, session).result()


def _endpoint(
    block: Rollout, seat: str, model: ServedModel, folder: Path, progress: Progress
) -> Endpoint:
    config = block.asker if seat == "user" else block.chat
    name = "asker" if seat == "user" else "chat"
    return model.endpoint(
        config,
        limits=ClientLimits(block.in_flight, block.request_timeout_s, block.patience_s),
        name=name,
        batch_folder=folder / f"batches-{name}",
        on_batch=lambda sentence: progress(0, None, Notice(sentence)),
    )


async def _watched(
    driver: Driver,
    seats: Mapping[str, Endpoint],
    coming: Iterator[Plan],
    block: Rollout,
    progress: Progress,
    on_status: Callable[[Status], None] | None,
) -> None:
    """Drive, and tell how it goes twice a second and at the end."""
    started, done_before = time.monotonic(), driver.finished

    def tell() -> None:
        status = _status(driver, seats, block, time.monotonic() - started, done_before)
        progress(status.share, 1, status.line())
        if on_status is not None:
            on_status(status)

    async def ticker() -> None:
        while True:
            tell()
            await asyncio.sleep(_NOTE_EVERY_S)

    ticking = asyncio.create_task(ticker())
    ticking.add_done_callback(driver.failed)
    try:
        with _signals(driver, tell):
            await driver.run(coming)
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        tell()


def _status(
    driver: Driver,
    seats: Mapping[str, Endpoint],
    block: Rollout,
    seconds: float,
    done_before: int,
) -> Status:
    spent, counts = driver.state.spent, driver.state.counts
    gained = driver.finished - done_before
    remaining = block.dialogues - driver.finished
    return Status(
        dialogues=driver.finished,
        wanted=block.dialogues,
        turns=driver.turns,
        turns_per_s=driver.turns / max(seconds, 1e-9),
        tokens_per_s=driver.written / max(seconds, 1e-9),
        in_flight={endpoint.name: endpoint.in_flight for endpoint in seats.values()},
        limits={
            f"{e.name} {url}": limit for e in seats.values() for url, limit in e.limits.items()
        },
        errors=dict(seats["user"].errors + seats["assistant"].errors),
        retries=sum(count for kind, count in counts.items() if kind.startswith("retry_")),
        usd=spent.usd(block.seats),
        tokens=spent.total,
        seconds=driver.budget.seconds,
        eta_s=seconds / gained * remaining if gained else None,
        under_way=driver.under_way,
        stopping=driver.stopping,
    )


@contextmanager
def _signals(driver: Driver, tell: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the driver, gently the first time, which is told at once. Only the
    main thread can listen.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    is_repeated = iter([False])

    def stop() -> None:
        driver.stop(now=next(is_repeated, True))
        tell()

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            loop.remove_signal_handler(number)  # which puts the default handler there
            signal.signal(number, handler or signal.SIG_DFL)
