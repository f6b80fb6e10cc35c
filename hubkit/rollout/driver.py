"""Drives many dialogues at once over two endpoints, with every acknowledged turn on disk before its
dialogue goes on.

A dialogue is one coroutine: ask the seat whose turn it is, check the turn, journal it, again, until
it ends. The driver feeds dialogues in, writes shards, keeps the clock, and stops in one of three
ways: everything done, a cap reached, or asked to stop (in-flight answers are still taken and
journaled; asked twice, they are not)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from hubkit.errors import (
    EndpointError,
    EndpointUnreachableError,
    HubError,
    MisconfiguredEndpointError,
    RunInterruptedError,
)
from hubkit.recipe import Rollout
from hubkit.rollout import shards
from hubkit.rollout.concurrency import Permit, Permits
from hubkit.rollout.dialogue import Dialogue, Prompt, Turn, flaw, prompt, split_end_mark
from hubkit.rollout.journal import Journal
from hubkit.rollout.plan import Plan, turn_seed
from hubkit.rollout.state import State, ended, opened
from hubkit.serving.budget import Budget
from hubkit.serving.client import Endpoint, Reply

OnShard = Callable[[Path], None]
_OPEN_PER_PERMIT = 4  # dialogues under way, those that idle included, per permit
_TOO_LONG = (400, 413, 422)
_CLOCK_EVERY_S = 5.0
_STOPPED = "stopped"


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
    ) -> None:
        self._block, self.state, self._folder, self._seed = block, state, folder, seed
        self._rows, self._endpoints, self._on_shard = rows, endpoints, on_shard
        self.budget = Budget(block, state.spent, block.seats)
        self._permits = Permits(block.in_flight)
        self._tasks: dict[asyncio.Task[None], Permit] = {}
        self._room = asyncio.Event()
        self._failure: BaseException | None = None
        self.stopping = ""
        self._ended = len(state.ended)
        known = [*state.sharded, *(dialogue.plan.index for dialogue in state.ended)]
        self._beyond = sum(
            index >= block.dialogues for index in known
        )  # of a larger run that this one is part of
        self._shard_lock, self._shard_due = asyncio.Lock(), asyncio.Event()
        self._last_shard = time.monotonic()
        self.turns = self.sent = 0  # this session's

    @property
    def finished(self) -> int:
        """Dialogues of this run's size that have ended, over all sessions."""
        return len(self.state.sharded) + self._ended - self._beyond

    async def run(self, plans: Iterator[Plan]) -> None:
        """Drive all of `plans` after the dialogues that are open; returns when done or a cap is
        reached.

        Raises `RunInterruptedError` after `stop`, and what made the run impossible otherwise.
        """
        self._journal = Journal(self._folder, self.state.snapshot(), fsync=self._block.fsync)
        house = asyncio.create_task(self._keep_house())
        house.add_done_callback(self.failed)
        try:
            await self._feed(plans)
            while self._tasks:
                await asyncio.wait(self._tasks)
            if not self.stopping:
                await self._shard()
        finally:
            house.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(house, *self._tasks, return_exceptions=True)
            self.state.spent.seconds = self.budget.seconds
            self._journal.note({"k": "clock", "s": self.budget.seconds})
            await self._journal.close()
        if self._failure is not None:
            raise self._failure
        if self.stopping:
            raise RunInterruptedError(
                f"stopped with {self.finished} of {self._block.dialogues} dialogues finished and "
                f"{len(self.state.live) - self._ended} under way; run the same command again: it goes on there"
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

    async def _feed(self, plans: Iterator[Plan]) -> None:
        for dialogue in self._dialogues(plans):
            await self._permits.take()
            permit = Permit(self._permits)
            if self._halted:
                permit.give_back()
                return
            task = asyncio.create_task(self._drive(dialogue, permit))
            self._tasks[task] = permit
            task.add_done_callback(self._left)
            while len(self._tasks) >= _OPEN_PER_PERMIT * self._block.in_flight and not self._halted:
                self._room.clear()
                await self._room.wait()

    @property
    def _halted(self) -> bool:
        return bool(self.stopping or self._failure or self.budget.exhausted)

    def _dialogues(self, plans: Iterator[Plan]) -> Iterator[Dialogue]:
        """Those under way first, then new ones, which are journaled as they begin."""
        yield from self.state.open_below(self._block.dialogues)
        for plan in plans:
            if self._halted:
                return
            dialogue = self.state.live[plan.index] = Dialogue(plan)
            self._journal.note(opened(plan))
            yield dialogue

    def _left(self, task: asyncio.Task[None]) -> None:
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
                reason = dialogue.over() or await self._turn(dialogue, permit, key)
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
            return  # it stays open in the journal, and goes on under a larger cap
        dialogue.end_reason, dialogue.ended_at = reason, time.time()
        self._ended += 1
        await self._journal.append(ended(dialogue))
        if self._ended >= self._block.shard_dialogues:
            self._shard_due.set()

    async def _turn(self, dialogue: Dialogue, permit: Permit, key: str) -> str:
        """Get, check and journal one turn. Gives an end reason when the dialogue ends instead."""
        slack = 1.0
        while True:
            asked = prompt(dialogue, self._block, slack=slack)
            if asked is None:
                return "context_full"
            try:
                reply, seed = await self._ask(dialogue, asked, permit, key)
            except (MisconfiguredEndpointError, EndpointUnreachableError):
                raise
            except EndpointError as error:
                if (
                    error.status in _TOO_LONG
                    and slack > 0.5
                    and self._may_be_too_long(dialogue, asked)
                ):
                    slack *= 0.75
                    continue
                self.state.count(f"refused_http_{error.status}")
                seat = "asker" if dialogue.seat == "user" else "chat"
                dialogue.error = {"seat": seat, "status": error.status, "message": str(error)[:500]}
                return "error"
            if reply is None:
                return _STOPPED if self.stopping else self.budget.exhausted
            done, reason = await self._take(dialogue, asked, reply, seed)
            if done:
                return reason

    def _may_be_too_long(self, dialogue: Dialogue, asked: Prompt) -> bool:
        seat = self._block.asker if dialogue.seat == "user" else self._block.chat
        return asked.tokens > 0.5 * (seat.context - seat.sampling.max_tokens)

    async def _ask(
        self, dialogue: Dialogue, asked: Prompt, permit: Permit, key: str
    ) -> tuple[Reply | None, int]:
        """One answer within the caps, and the seed it was sampled with; None when a cap or a stop
        forbids asking.
        """
        seat = dialogue.seat
        seed = turn_seed(self._seed, dialogue.plan.index, dialogue.position, len(dialogue.tries))
        if not await self.budget.hold(seat, asked.tokens):
            return None, seed
        try:
            prefer = next(
                (turn["url"] for turn in reversed(dialogue.turns) if turn["seat"] == seat), None
            )
            reply = await self._endpoints[seat].chat(
                asked.messages, seed=seed, key=key, prefer=prefer, idle=permit.idle
            )
            self.sent += 1
            prompt_tokens = asked.tokens if reply.prompt_tokens is None else reply.prompt_tokens
            completion = (
                len(reply.content) // 4
                if reply.completion_tokens is None
                else reply.completion_tokens
            )
            self.state.spent.add(seat, prompt_tokens, completion, reply.cached_tokens or 0)
        finally:
            self.budget.settle(seat, asked.tokens)
        return reply, seed

    async def _take(
        self, dialogue: Dialogue, asked: Prompt, reply: Reply, seed: int
    ) -> tuple[bool, str]:
        """Judge an answer and journal it, as a turn or a failed attempt. Gives (whether the turn is
        over, end reason).

        The dialogue is changed before the journal is awaited: a new journal that is begun meanwhile
        must hold it too."""
        block, attempts = self._block, len(dialogue.tries)
        content, closing = reply.content.strip(), False
        if dialogue.seat == "user":
            content, closing = split_end_mark(reply.content, block.end_mark)
        why = "" if closing else flaw(dialogue, content, reply.finish_reason)
        turn: Turn = {
            "k": "turn", "d": dialogue.plan.index, "t": dialogue.position, "seat": dialogue.seat, "content": content,
            "finish": reply.finish_reason, "in": reply.prompt_tokens, "out": reply.completion_tokens,
            "cached": reply.cached_tokens, "seed": seed, "tries": attempts + 1, "url": reply.address,
            "at": round(time.time(), 3), "cut": asked.cut,
        }  # fmt: skip
        if closing:
            turn["closing"] = True
        again = why in block.retry_on and attempts < block.retries_per_turn
        if again or why == "empty" or (why == "repeated" and why in block.retry_on):
            turn |= {"k": "try", "why": why}
            dialogue.tries.append(turn)
            self.state.count(f"retry_{why}")
            await self._journal.append(turn)
            return (
                (False, "") if again else (True, "empty_turn" if why == "empty" else "repetition")
            )
        if why:
            turn["flaw"] = why
        if dialogue.tries:
            turn["why"] = [attempt["why"] for attempt in dialogue.tries]
        dialogue.add(turn)
        self.turns += 1
        await self._journal.append(turn)
        return True, ""

    async def _keep_house(self) -> None:
        """Beside the dialogues: the clock, and a shard when enough have ended or enough time has
        passed.
        """
        while True:
            with suppress(
                TimeoutError
            ):  # not wait_for: before Python 3.12 it can swallow being cancelled
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
        """Offer shards that nobody took yet. What a Hub does not take, it is offered again with the
        next one.
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
