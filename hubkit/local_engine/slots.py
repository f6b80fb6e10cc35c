"""Which of the engine's sequence slots a request gets, so that each dialogue's prefix is computed
once per seat.

A slot remembers the tokens whose keys and values it holds and the adapter that computed them. Every
later turn of a dialogue begins with the whole prompt of the turn before, so a request goes to the
idle slot of its adapter whose last *prompt* it extends the furthest. Otherwise it takes a slot
never used, or the one idle for longest: never a slot that merely shares a system message, whose
dialogue would then be computed again."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, field

from hubkit.local_engine.engine import Job

# Tokens at the end of a prompt that the next turn may render otherwise (the opening of the
# assistant's turn). Fewer than every user message adds after a shared system message: its text,
# its end, and that opening.
_TAIL_TOKENS = 4


@dataclass(slots=True)
class Slot:
    """One sequence of the engine. `tokens`: what its cache holds; `prompt_length`: how many of them
    were prompt.
    """

    id: int
    adapter: str | None = None
    tokens: list[int] = field(default_factory=list)
    prompt_length: int = 0
    dialogue: str | None = None
    last_used: int = 0
    busy: bool = False

    def shared_prefix(self, prompt_ids: list[int]) -> int:
        """Number of leading tokens that `prompt_ids` shares with the cache."""
        limit = min(len(self.tokens), len(prompt_ids))
        if self.tokens[:limit] == prompt_ids[:limit]:
            return limit
        return next(i for i in range(limit) if self.tokens[i] != prompt_ids[i])

    def continues(self, job: Job) -> int:
        """Length of the prefix that `job` can re-use here as the next turn of the same dialogue; 0
        when it is not.
        """
        if self.adapter != job.adapter or not self.tokens:
            return 0
        shared = self.shared_prefix(job.prompt_ids)
        hinted = job.dialogue is not None and job.dialogue == self.dialogue
        return shared if hinted or shared >= self.prompt_length - _TAIL_TOKENS else 0


class SlotPool:
    """Hands out slots; the requests of an adapter wait in arrival order.

    A prompt that the engine was given cannot be taken back before the engine comes to it, even
    when its client has gone. So the engine gets no more prompts of an adapter at a time than it
    needs to fill its next batch; the others wait here, where leaving costs nothing.
    """

    def __init__(self, count: int, *, batch_tokens: int) -> None:
        self._slots = [Slot(i) for i in range(count)]
        self._batch_tokens = batch_tokens
        self._unbegun: dict[int, tuple[str | None, int]] = {}  # slot → adapter, prompt tokens
        self._waiting: deque[tuple[Job, asyncio.Future[Slot]]] = deque()
        self._clock = itertools.count(1)

    @property
    def busy(self) -> int:
        """Number of slots in use."""
        return sum(slot.busy for slot in self._slots)

    @property
    def waiting(self) -> int:
        """Number of requests waiting for a slot."""
        return sum(not turn.done() for _, turn in self._waiting)

    async def acquire(self, job: Job) -> Slot:
        """The best idle slot for `job`, marked busy; waits while the engine has enough to do."""
        if self._allowed(job):
            return self._take(job)
        turn: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free(turn.result())
            raise

    def begun(self, slot: Slot) -> None:
        """The engine has come to the prompt of `slot`, and can take another one."""
        self._unbegun.pop(slot.id, None)
        self._hand_out()

    def release(self, slot: Slot, job: Job, generated: list[int], *, computed: bool) -> None:
        """Give `slot` back. `computed`: the engine went through prompt and `generated`, so the
        cache holds them.
        """
        slot.adapter, slot.dialogue = job.adapter, job.dialogue
        slot.tokens = [*job.prompt_ids, *generated] if computed else []
        slot.prompt_length = len(job.prompt_ids) if computed else 0
        slot.last_used = next(self._clock)
        self._free(slot)

    def _free(self, slot: Slot) -> None:
        slot.busy = False
        self.begun(slot)

    def _hand_out(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for job, turn in waiting:
            if self._allowed(job) and not turn.done():
                turn.set_result(self._take(job))
            elif not turn.done():
                self._waiting.append((job, turn))

    def _allowed(self, job: Job) -> bool:
        ahead = sum(tokens for adapter, tokens in self._unbegun.values() if adapter == job.adapter)
        return self.busy < len(self._slots) and ahead < self._batch_tokens

    def _take(self, job: Job) -> Slot:
        idle = [slot for slot in self._slots if not slot.busy]
        best = max(idle, key=lambda slot: slot.continues(job))
        slot = best if best.continues(job) else min(idle, key=lambda slot: slot.last_used)
        slot.busy = True
        cached = slot.shared_prefix(job.prompt_ids) if slot.adapter == job.adapter else 0
        self._unbegun[slot.id] = job.adapter, len(job.prompt_ids) - cached
        return slot
