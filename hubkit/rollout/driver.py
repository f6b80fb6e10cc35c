"""Drives many dialogues at once over two endpoints, with every acknowledged turn on disk before its
dialogue continues.

A dialogue is one coroutine: ask the seat whose turn it is, check the turn, journal it, again, until
it ends. The driver feeds dialogues in, writes shards, keeps the clock, and stops in one of four
ways: everything done, a cap reached, a seat whose answers cannot be used, or asked to stop
(in-flight answers are still taken and journaled; after a second request to stop, they are not)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from hubkit.errors import (
    EndpointError,
    EndpointUnreachableError,
    HubError,
    MisconfiguredEndpointError,
    RunInterruptedError,
    StageError,
)
from hubkit.recipe import Rollout
from hubkit.rollout import shards
from hubkit.rollout.concurrency import Permit, Permits
from hubkit.rollout.dialogue import Dialogue, Prompt, judge, prompt, turn_of
from hubkit.rollout.journal import Journal
from hubkit.rollout.plan import Plan, turn_seed
from hubkit.rollout.seat_verdict import UNUSABLE_ENDS, SeatVerdict
from hubkit.rollout.state import MODEL, State, ended, opened
from hubkit.serving.budget import Budget
from hubkit.serving.client import MOST_REQUESTS, Endpoint, Reply, Request
from hubkit.tokenization import likely_tokens

OnShard = Callable[[Path], None]
_OPEN_PER_PERMIT = 4  # dialogues under way, those that idle included, per permit
_TOO_LONG = (400, 413, 422)
_MOST_TRIMS = 3  # after refusals that may mean "too long", without saying so
_CLOCK_EVERY_S = 5.0
_STOPPED = "stopped"
_LAST_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # before the last dialogues are asked once more
_SEAT_NAMES = {"user": "asker", "assistant": "chat"}


class Driver:
    """One session of one run. `endpoints` are the seats' (``user``: the asker, ``assistant``: the
    chat model).
    """

    def __init__(
        self,
        block: Rollout,
        state: State,
        folder: Path,
        *,
        seed: int,
        rows: shards.Rows,
        endpoints: dict[str, Endpoint],
        on_shard: OnShard | None = None,
        turn_marks: frozenset[str] = frozenset(),
    ) -> None:
        self._turn_marks = turn_marks
        self._block, self.state, self._folder, self._seed = block, state, folder, seed
        self._rows, self._endpoints, self._on_shard = rows, endpoints, on_shard
        self.budget = Budget(block, state.spent, block.seats)
        by_batch = any(seat.batch for seat in block.seats.values())
        at_once = MOST_REQUESTS if by_batch else block.in_flight
        self._most_open = at_once if by_batch else _OPEN_PER_PERMIT * at_once
        self._permits = Permits(at_once)
        self._tasks: dict[asyncio.Task[None], Permit] = {}
        self._room = asyncio.Event()
        self._failure: BaseException | None = None
        self.stopping = ""
        self._ended = len(state.ended)
        finished = [*state.sharded, *(dialogue.plan.index for dialogue in state.ended)]
        # Of a larger run that this one is part of.
        self._beyond = sum(index >= block.dialogues for index in finished)
        turns = (turn for dialogue in state.live.values() for turn in dialogue.turns)
        works = {"user", "assistant"} if state.sharded else {turn.seat for turn in turns}
        addresses = {seat: list(endpoint.limits) for seat, endpoint in endpoints.items()}
        self._verdicts = SeatVerdict.of_seats(works, addresses, block.retries_per_turn)
        for dialogue in state.live.values():  # what made them fail may have been corrected since
            dialogue.excused_attempts = len(dialogue.failed_attempts)
        self._due: deque[Dialogue] = deque()  # their failures were the server's
        self._named: set[str] = set()  # seats whose model has been compared with the run's
        self._shard_lock, self._shard_due = asyncio.Lock(), asyncio.Event()
        self._last_shard = time.monotonic()
        self.turns = self.sent = 0  # this session's
        self.written = 0  # tokens of this session's answers, where servers count them

    @property
    def finished(self) -> int:
        """Dialogues of this run's size that have ended, over all sessions."""
        return len(self.state.sharded) + self._ended - self._beyond

    @property
    def under_way(self) -> float:
        """How much of the open dialogues is generated, in dialogues."""
        return sum(dialogue.share for dialogue in self.state.open_below(self._block.dialogues))

    async def run(self, plans: Iterator[Plan]) -> None:
        """Drive all of `plans` after the dialogues that are open; returns when done or a cap is
        reached.

        Raises `RunInterruptedError` after `stop`, and what made the run impossible otherwise.
        """
        self._journal = Journal(self._folder, self.state.snapshot(), fsync=self._block.fsync)
        background = asyncio.create_task(self._background_loop())
        background.add_done_callback(self.failed)
        try:
            await asyncio.gather(*(endpoint.prepare() for endpoint in self._endpoints.values()))
            await self._feed(self._dialogues(plans))
            await self._finish_open()
            if self._failure is None:
                await self._ask_last_again()
                await self._settle_waiting()
            if not self.stopping:
                await self._shard()
        finally:
            background.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(background, *self._tasks, return_exceptions=True)
            self.state.spent.seconds = self.budget.seconds
            self._journal.note({"k": "clock", "s": self.budget.seconds})
            await self._journal.close()
        if self._failure is not None:
            raise self._failure
        if self.stopping:
            raise RunInterruptedError(
                f"stopped with {self.finished} of {self._block.dialogues} dialogues finished and "
                f"{len(self.state.live) - self._ended} under way; "
                "run the same command again: it resumes there"
            )

    def stop(self, *, now: bool = False) -> None:
        """Send nothing more. Answers that are on their way are taken, unless `now`."""
        self.stopping = self.stopping or "interrupted"
        self.budget.stop()
        for endpoint in self._endpoints.values():
            endpoint.drain()
        for task, permit in self._tasks.items():
            if now or not permit.held:
                task.cancel()
        self._room.set()

    async def _finish_open(self) -> None:
        """Wait for all that is under way, and drive what is to be asked again."""
        while self._tasks or (self._due and not self._halted):
            await self._feed(self._due_dialogues())
            if self._tasks and (self._halted or not self._due):
                self._room.clear()
                await self._room.wait()

    async def _feed(self, dialogues: Iterator[Dialogue]) -> None:
        for dialogue in dialogues:
            await self._permits.take()
            permit = Permit(self._permits)
            if self._halted:
                permit.give_back()
                return
            task = asyncio.create_task(self._drive(dialogue, permit))
            self._tasks[task] = permit
            task.add_done_callback(self._task_ended)
            while len(self._tasks) >= self._most_open and not self._halted:
                self._room.clear()
                await self._room.wait()

    @property
    def _halted(self) -> bool:
        return bool(self.stopping or self._failure or self.budget.exhausted)

    def _dialogues(self, plans: Iterator[Plan]) -> Iterator[Dialogue]:
        """Those under way first, then new ones, which are journaled as they begin."""
        yield from self.state.open_below(self._block.dialogues)
        for plan in plans:
            yield from self._due_dialogues()
            if self._halted:
                return
            dialogue = self.state.live[plan.index] = Dialogue(plan)
            self._journal.note(opened(plan))
            yield dialogue

    def _due_dialogues(self) -> Iterator[Dialogue]:
        while self._due:
            yield self._due.popleft()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task).give_back()
        self._room.set()
        self.failed(task)

    def failed(self, task: asyncio.Task[None]) -> None:
        """A task is over; when it failed, so does the run."""
        if (
            not task.cancelled()
            and (error := task.exception()) is not None
            and self._failure is None
        ):
            self._failure = error
            self.stop()

    async def _drive(self, dialogue: Dialogue, permit: Permit) -> None:
        key = dialogue.plan.id
        try:
            while not self.stopping:
                reason = dialogue.completion() or await self._turn(dialogue, permit, key)
                if reason == _STOPPED:
                    return
                if reason:
                    await self._end(dialogue, reason)
                    return
        finally:
            for endpoint in self._endpoints.values():
                endpoint.forget(key)

    async def _end(self, dialogue: Dialogue, reason: str) -> None:
        if reason == self.budget.exhausted:
            return  # it stays open in the journal, and resumes under a larger cap
        verdict = self._verdicts[dialogue.seat]
        is_unusable = reason in UNUSABLE_ENDS and (reason != "context_full" or not dialogue.turns)
        if is_unusable and self.stopping and (verdict.waiting or not verdict.works):
            return  # no verdict on the seat: it stays open
        if is_unusable and not self.stopping:
            verdict.waiting.append((dialogue, reason))
            if verdict.is_hopeless:
                raise self._unusable(dialogue.seat)
            return
        await self._record_end(dialogue, reason)

    async def _record_end(self, dialogue: Dialogue, reason: str) -> None:
        dialogue.end_reason, dialogue.ended_at = reason, time.time()
        self._ended += 1
        await self._journal.append(ended(dialogue))
        if self._ended >= self._block.shard_dialogues:
            self._shard_due.set()

    async def _ask_last_again(self) -> None:
        """Give the last dialogues more time where their seat's answers cannot be used at the
        moment: no other dialogue is left that would show when they can.
        """
        for wait_s in _LAST_WAITS_S:
            dialogues = [d for v in self._verdicts.values() for d in v.one_more_attempt()]
            if not dialogues or self._halted:
                return
            self._room.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._room.wait()  # until a stop
            self._due.extend(dialogues)
            await self._finish_open()

    async def _settle_waiting(self) -> None:
        """End the dialogues that waited for a verdict on their seat; where no answer of the whole
        run could be used, leave them open and raise.
        """
        verdicts = self._verdicts.values()
        waiting = [entry for verdict in verdicts for entry in verdict.waiting]
        if waiting and not self.stopping and not any(verdict.works for verdict in verdicts):
            raise self._unusable(waiting[-1][0].seat)
        for dialogue, reason in waiting:
            if not self.stopping or self._verdicts[dialogue.seat].works:
                await self._record_end(dialogue, reason)

    def _unusable(self, seat: str) -> MisconfiguredEndpointError:
        """The error for a seat whose answers cannot be used; the dialogues stay open."""
        waiting = self._verdicts[seat].waiting
        name = _SEAT_NAMES[seat]
        dialogue, reason = waiting[-1]
        if dialogue.failed_attempts:
            attempt = dialogue.failed_attempts[-1]
            words = f"finish_reason {attempt.finish_reason!r}, {attempt.failure} answer"
            if attempt.thinking_chars:
                words += f" after {attempt.thinking_chars} characters of thinking"
            if attempt.content:
                words += f", {attempt.content[:80]!r}"
            if attempt.finish_reason == "length":
                words += f"; raise max_tokens (rollout.{name}.sampling.max_tokens)"
        else:
            words = str((dialogue.error or {}).get("message") or reason)
        dialogue.error = None
        return MisconfiguredEndpointError(
            f"{name}: the last {len(waiting)} dialogues in a row ended without an answer that can "
            f"be used, the last with: {words}. Correct that and run the same command: these "
            "dialogues are open, and nothing else is asked for again"
        )

    async def _turn(self, dialogue: Dialogue, permit: Permit, key: str) -> str:
        """Get, check and journal one turn. Gives an end reason when the dialogue ends instead."""
        trims = more_exchanges = 0
        while True:
            seat = dialogue.seat
            window = self._endpoints[seat].window
            request = prompt(dialogue, self._block, window=window, more_exchanges=more_exchanges)
            if request is None:
                return "context_full"
            sent_at = self._verdicts[seat].sent()
            try:
                reply, seed = await self._ask(dialogue, request, permit, key)
            except (MisconfiguredEndpointError, EndpointUnreachableError):
                raise
            except EndpointError as error:
                dialogue.error = {
                    "seat": _SEAT_NAMES[seat], "status": error.status, "message": str(error)[:500],
                }  # fmt: skip
                if self._too_long(error, dialogue, request, trims):
                    trims += 1
                    more_exchanges = (request.trimmed - self._trimmed(dialogue)) // 2 + trims
                    continue
                self.state.count(f"refused_http_{error.status}")
                return "error"
            if reply is None:
                return _STOPPED if self.stopping else self.budget.exhausted
            dialogue.error = None
            is_over, reason = await self._take(dialogue, request, reply, seed, sent_at)
            if is_over:
                return reason

    def _too_long(
        self, error: EndpointError, dialogue: Dialogue, request: Prompt, trims: int
    ) -> bool:
        """Whether a refusal says, or may mean, that the prompt is too long."""
        if error.kind == "too_long":
            return True
        seat = self._block.asker if dialogue.seat == "user" else self._block.chat
        return (
            error.status in _TOO_LONG
            and not error.kind
            and trims < _MOST_TRIMS
            and request.tokens > 0.5 * (seat.context - (seat.sampling.max_tokens or 0))
        )

    @staticmethod
    def _trimmed(dialogue: Dialogue) -> int:
        """Messages left out of this seat's last prompt."""
        return next((t.trimmed for t in reversed(dialogue.turns) if t.seat == dialogue.seat), 0)

    async def _ask(
        self, dialogue: Dialogue, request: Prompt, permit: Permit, key: str
    ) -> tuple[Reply | None, int]:
        """One answer within the caps, and the seed it was sampled with; None when a cap or a stop
        forbids asking.
        """
        seat = dialogue.seat
        attempts = len(dialogue.failed_attempts)
        seed = turn_seed(self._seed, dialogue.plan.index, dialogue.position, attempts)
        if not await self.budget.hold(seat, request.tokens):
            return None, seed
        try:
            prefer = next(
                (turn.address for turn in reversed(dialogue.turns) if turn.seat == seat), None
            )
            sent_request = Request(request.messages, seed, key, self._temperature(dialogue))
            reply = await self._endpoints[seat].attempt(
                sent_request, prefer=prefer, idle=permit.idle
            )
            self.sent += 1
            prompt_tokens = request.tokens if reply.prompt_tokens is None else reply.prompt_tokens
            completion = reply.completion_tokens
            self.written += completion or 0
            if completion is None:
                completion = likely_tokens(len(reply.content) + len(reply.thinking))
            self.state.spent.add(seat, prompt_tokens, completion, reply.cached_tokens or 0)
        finally:
            self.budget.settle(seat, request.tokens)
        return reply, seed

    def _temperature(self, dialogue: Dialogue) -> float | None:
        """The temperature of an attempt after repeated ones; None for the seat's own."""
        step, temperature = (
            self._block.repeat_temperature_step,
            self._block.asker.sampling.temperature,
        )
        repeats = sum(attempt.failure == "repeated" for attempt in dialogue.failed_attempts)
        if dialogue.seat != "user" or step is None or temperature is None or not repeats:
            return None
        return round(temperature + step * repeats, 6)

    def _check_model(self, seat: str, model: str) -> None:
        """Raise `StageError` when the run was begun with another model in the seat.

        A router that has answered with several models before may answer with a new one."""
        self._named.add(seat)
        prefix = f"{MODEL}{_SEAT_NAMES[seat]}:"
        names = [name.removeprefix(prefix) for name in self.state.counts if name.startswith(prefix)]
        if len(names) == 1 and names[0] != model:
            raise StageError(
                f"{_SEAT_NAMES[seat]}: this run was begun with {names[0]!r}, "
                f"and its address is now answered by {model!r}; serve the first one again, make "
                f"the rollout anew (`hubkit run … --again rollout`), or begin another run (another "
                f"rollout.{_SEAT_NAMES[seat]}.repo or seed)"
            )

    async def _take(
        self, dialogue: Dialogue, request: Prompt, reply: Reply, seed: int, sent_at: int
    ) -> tuple[bool, str]:
        """Judge an answer and journal it, as a turn or a failed attempt.

        The dialogue is changed before the journal is awaited: a new journal that is begun meanwhile
        must hold it too.

        Returns:
            Whether the turn is over, and the dialogue's end reason where it ends.
        """
        block, seat = self._block, dialogue.seat
        if reply.model:
            if seat not in self._named:
                self._check_model(seat, reply.model)
            self.state.count(f"{MODEL}{_SEAT_NAMES[seat]}:{reply.model}")
        turn = turn_of(dialogue, block, request, reply, seed)
        if reply.thinking:
            self.state.count(f"thinking_{_SEAT_NAMES[seat]}")
        problem, end_reason, may_retry = judge(dialogue, block, turn, reply, marks=self._turn_marks)
        if end_reason in UNUSABLE_ENDS:
            self._verdicts[seat].unusable(dialogue)
        if may_retry or end_reason:
            turn.failure, turn.closing = problem, False
            dialogue.failed_attempts.append(turn)
            self.state.count(f"retry_{problem}")
            if end_reason and problem != "empty":
                dialogue.error = {
                    "seat": _SEAT_NAMES[seat], "status": 200,
                    "message": f"{problem}: finish_reason {reply.finish_reason!r}, "
                    f"{turn.content[:200]!r}",
                }  # fmt: skip
            await self._journal.append(turn.to_record())
            return (False, "") if may_retry else (True, end_reason)
        turn.flaw = problem
        turn.earlier_failures = [attempt.failure for attempt in dialogue.failed_attempts]
        dialogue.add(turn)
        self.turns += 1
        await self._journal.append(turn.to_record())
        await self._note_usable(seat, sent_at)
        return True, ""

    async def _note_usable(self, seat: str, sent_at: int) -> None:
        to_ask, to_end = self._verdicts[seat].usable(sent_at)
        if to_ask:
            self._due.extend(to_ask)
            self._room.set()
        for dialogue, reason in to_end:
            await self._record_end(dialogue, reason)

    async def _background_loop(self) -> None:
        """Meanwhile: the clock, and a shard when enough have ended or enough time has passed."""
        while True:
            # Not wait_for: before Python 3.12 it can swallow being cancelled.
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOCK_EVERY_S):
                    await self._shard_due.wait()
            self._shard_due.clear()
            self.state.spent.seconds = self.budget.seconds
            self._journal.note({"k": "clock", "s": self.budget.seconds})
            late = time.monotonic() - self._last_shard > self._block.shard_minutes * 60
            if self._ended and (late or self._ended >= self._block.shard_dialogues):
                await self._shard()

    async def _shard(self) -> None:
        """Put the dialogues that have ended into a shard; afterwards the journal no longer holds
        them.
        """
        async with self._shard_lock:
            self._last_shard = time.monotonic()
            batch = self.state.ended
            if batch:
                await self._write_shard(batch)
            await self._publish()

    async def _write_shard(self, batch: list[Dialogue]) -> None:
        last = max((int(p.stem.split("-")[1]) for p in self.state.shard_paths), default=-1)
        path = self._folder / "shards" / f"raw-{last + 1:05d}.parquet"
        ledger = self.state.ledger()
        await asyncio.to_thread(
            lambda: shards.write([self._rows.row(dialogue) for dialogue in batch], path, ledger)
        )
        for dialogue in batch:
            del self.state.live[dialogue.plan.index]
            self.state.sharded.add(dialogue.plan.index)
        self._ended -= len(batch)
        self.state.shard_paths.append(path)
        await self._journal.rotate(self.state.snapshot())

    async def _publish(self) -> None:
        """Offer the shards that are not on the Hub yet. What it does not take is offered again with
        the next one.
        """
        if self._on_shard is None:
            return
        for path in self.state.shard_paths:
            if path.name in self.state.published:
                continue
            try:
                await asyncio.to_thread(self._on_shard, path)
            except HubError:
                self.state.count("shard_not_taken")
                return
            self.state.published.add(path.name)
            self._journal.note({"k": "published", "shard": path.name})
