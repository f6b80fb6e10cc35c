"""Gathers requests, hands them to a provider's batch API together, and gives each its answer.

Requests that are waiting when no further one comes make one batch. A batch is on disk before it is
submitted (`BatchLedger`), so however often the process is killed, it is submitted once: a request
that is in a batch already waits for that one. What a batch leaves unanswered is put into the next
one, within bounds."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from hubkit.errors import EndpointError, EndpointUnreachableError, MisconfiguredEndpointError
from hubkit.serving.client.batch_apis import BatchApi, BatchStatus, Item
from hubkit.serving.client.batch_ledger import Batch, BatchLedger
from hubkit.untrusted import JsonObject

T = TypeVar("T")
MOST_REQUESTS = 10_000
"""The most requests of one batch, and of those that wait for one at a time."""
_MOST_BATCHES = 3  # into which one request is put until it counts as failed
_TRANSIENT = (408, 409, 425, 429, *range(500, 600))
_NOT_RECEIVED = (429, 529)  # with which a submission was surely not received
_ALL = 3  # so many requests, all refused, are no chance
_OWN_KINDS = ("moderation", "too_long")  # refusals that are about one request alone


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the queue waits for what.

    Attributes:
        gather_s: After the last request, until those that wait become a batch.
        first_poll_s: Until a batch is looked at first; each further look takes longer.
        longest_poll_s: The longest time between two looks.
        settle_s: How long a provider may take to list a batch that it has received.
        patience_s: How long the provider may give no answer.
    """

    gather_s: float = 0.5
    first_poll_s: float = 1.0
    longest_poll_s: float = 60.0
    settle_s: float = 20.0
    patience_s: float = 900.0


class BatchQueue:
    """Requests of one account. Use inside a running loop, and `close` at the end.

    Args:
        api: Its batches.
        ledger: Which requests are in which batch.
        pace: How long it waits for what.
        name: What messages call the model.
        on_batch: Told in a sentence how a batch does.
    """

    def __init__(
        self,
        api: BatchApi,
        ledger: BatchLedger,
        *,
        pace: Pace,
        name: str,
        on_batch: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._api, self._ledger, self._pace = api, ledger, pace
        self._name, self._on_batch = name, on_batch
        self._bodies: dict[str, Mapping[str, Any]] = {}
        self._answers: dict[str, asyncio.Future[JsonObject]] = {}
        self._waiting: dict[str, None] = {}  # in no batch, in the order in which they came
        self._tries: Counter[str] = Counter()
        self._watched: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathering = False
        self._answered = 0
        self._failure: EndpointError | None = None

    @property
    def in_flight(self) -> int:
        """Requests that wait for their answer."""
        return len(self._answers)

    async def ask(self, key: str, body: Mapping[str, Any]) -> JsonObject:
        """The chat completion for `body`. `key` is the request's id, by which it is found again.

        Raises:
            EndpointError: It is refused, or failed in several batches.
            MisconfiguredEndpointError: All requests are refused, or batches are.
            EndpointUnreachableError: The provider does not answer any more.
        """
        if self._failure is not None:
            raise self._failure
        answer = self._answers.get(key)
        if answer is None:
            answer = self._answers[key] = asyncio.get_running_loop().create_future()
            self._bodies[key] = body
            batch = self._ledger.batch_of(key)
            if batch is None:
                self._put(key)
            elif batch.id not in self._watched:
                self._watched.add(batch.id)
                self._start(self._follow(batch))
        return await asyncio.shield(answer)

    async def close(self) -> None:
        """Stop waiting. Batches that were submitted are worked on by the provider, and found again
        by the next run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for answer in self._answers.values():
            answer.cancel()

    def _put(self, key: str) -> None:
        self._waiting[key] = None
        if not self._gathering:
            self._gathering = True
            self._start(self._gather())

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, EndpointError):
            error = EndpointError(f"{self._name}: {error}", kind="batch")
        self._failure = self._failure or error
        for key in list(self._answers):
            self._fail(key, error)

    def _fail(self, key: str, error: Exception) -> None:
        answer = self._answers.pop(key, None)
        self._bodies.pop(key, None)
        if answer is not None and not answer.done():
            answer.set_exception(error)
            answer.exception()  # whoever asked may have been cancelled

    async def _gather(self) -> None:
        """Make batches of what waits, as soon as nothing more comes."""
        count = -1
        while count != len(self._waiting) and len(self._waiting) < MOST_REQUESTS:
            count = len(self._waiting)
            await asyncio.sleep(self._pace.gather_s)
        self._gathering = False
        while self._waiting:
            keys: list[str] = []
            size = 0
            for key in self._waiting:
                size += len(orjson.dumps(self._bodies[key])) + 200
                if keys and (len(keys) == MOST_REQUESTS or size > self._api.most_bytes):
                    break
                keys.append(key)
            for key in keys:
                del self._waiting[key]
                self._tries[key] += 1
            batch = self._ledger.begin(keys)
            self._watched.add(batch.id)
            self._start(self._submit(batch))

    async def _submit(self, batch: Batch) -> None:
        requests = {key: self._bodies[key] for key in batch.requests}
        started, wait_s = time.monotonic(), self._pace.first_poll_s
        while not batch.name:
            try:
                self._ledger.name(batch, await self._api.submit(batch.id, requests))
            except EndpointError as error:
                if not _is_transient(error):
                    self._ledger.close(batch, str(error)[:300])
                    raise self._refused(error) from None
                self._check_patience(started, error)
                received_at = time.time()
                await asyncio.sleep(error.retry_after_s or wait_s)
                wait_s = min(2 * wait_s, self._pace.longest_poll_s)
                if error.status in _NOT_RECEIVED:
                    continue
                if name := await self._found(batch, since=received_at):
                    self._ledger.name(batch, name)
        self._on_batch(
            f"{self._name}: batch {batch.name} of {len(requests)} requests is submitted; it is "
            "found again if this is stopped"
        )
        await self._take(batch, batch.name)

    async def _follow(self, batch: Batch) -> None:
        """Wait for a batch of an earlier session; it may not have been received, or be gone."""
        if not batch.name and (name := await self._found(batch, since=batch.submitted_at)):
            self._ledger.name(batch, name)
        if batch.name:
            self._on_batch(f"{self._name}: batch {batch.name} was submitted before")
            try:
                return await self._take(batch, batch.name)
            except EndpointError as error:
                if error.status not in (404, 410):
                    raise
        self._ledger.close(batch, "gone" if batch.name else "not received")
        for key in batch.requests & self._answers.keys():
            self._put(key)

    async def _found(self, batch: Batch, *, since: float) -> str | None:
        """The provider's name of `batch`, or None once it would be listed if it had been received
        at `since` (seconds since 1970)."""
        known_names = set(self._ledger.names)
        while True:
            listed = await self._patiently(lambda: self._api.find(batch, known_names))
            if listed is None:
                if time.time() - since >= self._pace.settle_s:
                    return None
                await asyncio.sleep(min(self._pace.first_poll_s, self._pace.settle_s))
                continue
            name, is_ours = listed
            if is_ours or await self._proves_ours(batch, name):
                return name
            known_names.add(name)

    async def _proves_ours(self, batch: Batch, name: str) -> bool:
        status = await self._end_of(name)
        items = await self._patiently(lambda: self._items(status))
        return any(item.id in batch.requests for item in items)

    async def _end_of(self, name: str) -> BatchStatus:
        """Wait until a batch has ended."""
        wait_s, last_answered = self._pace.first_poll_s, -1
        while True:
            status = await self._patiently(lambda: self._api.status(name))
            if status.ended:
                return status
            if status.answered != last_answered:
                last_answered = status.answered
                self._on_batch(
                    f"{self._name}: {last_answered} of {status.total or 'all'} requests of batch "
                    f"{name} are answered"
                )
            await asyncio.sleep(wait_s)
            wait_s = min(1.5 * wait_s, self._pace.longest_poll_s)

    async def _take(self, batch: Batch, name: str) -> None:
        """Give every request of a batch that is waited for what became of it."""
        status = await self._end_of(name)
        if status.problem:
            self._ledger.close(batch, status.problem[:300])
            raise MisconfiguredEndpointError(
                f"{self._name}: the provider did not work on batch {name}: {status.problem}; "
                "correct that and run the same command"
            )
        refused = 0
        unanswered = set(batch.requests)
        items = await self._patiently(lambda: self._items(status))
        for item in items:
            if item.id not in unanswered:
                continue
            unanswered.discard(item.id)
            refused += self._settle(item)
        for key in unanswered:
            self._settle(Item(key))
        if refused == len(items) >= _ALL and not self._answered:
            raise self._all_refused(items)
        for item in items:
            if item.error is not None and item.id in self._answers and item.id not in self._waiting:
                self._fail(item.id, item.error)

    async def _items(self, status: BatchStatus) -> list[Item]:
        return [item async for item in self._api.results(status)]

    def _settle(self, item: Item) -> bool:
        """Deliver an answer, or put the request into the next batch; whether it is a refusal that
        may concern all requests."""
        if item.id not in self._answers:
            return False
        if item.answer is not None:
            self._answered += 1
            answer = self._answers.pop(item.id)
            self._bodies.pop(item.id)
            if not answer.done():
                answer.set_result(item.answer)
            return False
        # A refusal of an earlier session has been told then; it is asked for once more.
        is_new = self._tries[item.id] > 0
        if is_new and item.error is not None and not _is_transient(item.error):
            return item.error.kind not in _OWN_KINDS
        if self._tries[item.id] < _MOST_BATCHES:
            self._put(item.id)
        else:
            reason = item.error or "it expired"
            self._fail(
                item.id,
                EndpointError(
                    f"{self._name}: {_MOST_BATCHES} batches left a request unanswered: {reason}",
                    kind="failed",
                ),
            )
        return False

    def _all_refused(self, items: list[Item]) -> MisconfiguredEndpointError:
        first = next(item.error for item in items if item.error is not None)
        return MisconfiguredEndpointError(
            f"{self._name}: every request of the batch was refused, the first with: {first}",
            status=first.status,
            kind=first.kind,
        )

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """`call`'s result, asked for again while the provider is down or busy."""
        started, wait_s = time.monotonic(), self._pace.first_poll_s
        while True:
            try:
                return await call()
            except EndpointError as error:
                if not _is_transient(error):
                    raise self._refused(error) from None
                self._check_patience(started, error)
                await asyncio.sleep(error.retry_after_s or wait_s)
                wait_s = min(2 * wait_s, self._pace.longest_poll_s)

    def _refused(self, error: EndpointError) -> MisconfiguredEndpointError:
        return MisconfiguredEndpointError(
            f"{self._name}: the batch API refuses: {error}; check the address, the key and that "
            "the account has batches, or leave batch out",
            status=error.status,
            kind=error.kind,
        )

    def _check_patience(self, started: float, error: EndpointError) -> None:
        silent_s = time.monotonic() - started
        if silent_s > self._pace.patience_s:
            raise EndpointUnreachableError(
                f"{self._name}: the batch API has given no answer for {silent_s:.0f} s; the last "
                f"was: {error}. Run the same command later: its batches are found again"
            ) from None


def _is_transient(error: EndpointError) -> bool:
    """Whether the same may succeed later."""
    if error.kind in ("credit", "daily"):
        return False
    return error.status is None or error.status in _TRANSIENT
