"""From a job to text: runs the engine, spells the tokens, finds stop sequences, keeps count.

The engine is read by a task of its own, so that a client who reads slowly holds memory (its own
text) but no slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from hubkit.local_engine.engine import Engine, Event, Finish, GenerationError, Job, Started, Step
from hubkit.local_engine.http_errors import RequestError, generation_failed, incomplete, overloaded
from hubkit.local_engine.metrics import Metrics
from hubkit.local_engine.text import TextCodec

FinishReason = Literal["length", "eos_token", "stop_sequence"]


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token as clients see it."""

    id: int
    text: str
    logprob: float
    special: bool
    top: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known once a sequence has ended. Times in seconds."""

    reason: FinishReason
    generated_text: str
    generated_tokens: int
    input_length: int
    cached_tokens: int
    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """A job plus what the service must know to turn its tokens into text."""

    job: Job
    stop: tuple[str, ...]
    eos_ids: frozenset[int]


class Ticket:
    """One admitted request. It is released when the `with` block ends, unless a sequence has taken
    it over.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator, self._transferred, self._open = generator, False, True

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._transferred:
            self.release()

    def transfer(self) -> None:
        """Leave the release to the sequence."""
        self._transferred = True

    def release(self) -> None:
        """Admit another request; a second call does nothing."""
        if self._open:
            self._open = False
            self._generator.in_flight -= 1


class Generator:
    """Runs `Work` on an engine; admits at most `max_concurrent` at a time, running and waiting
    together.
    """

    def __init__(
        self, engine: Engine, codec: TextCodec, metrics: Metrics, *, max_concurrent: int
    ) -> None:
        self.engine, self.codec, self.metrics = engine, codec, metrics
        self.max_concurrent = max_concurrent
        self.in_flight = 0

    def admit(self) -> Ticket:
        """Count one request in. Raises `RequestError` (429), at once, when there are too many."""
        if self.in_flight >= self.max_concurrent:
            raise overloaded()
        self.in_flight += 1
        return Ticket(self)

    def start(self, work: Work, ticket: Ticket) -> Sequence:
        """Begin to generate; iterate over what comes back, and close it."""
        ticket.transfer()
        return Sequence(self, work, ticket)


class Sequence:
    """One sequence being generated: iterate for `TokenText`s and then one `Ending`. `close`
    cancels.
    """

    def __init__(self, generator: Generator, work: Work, ticket: Ticket) -> None:
        self._generator, self._work = generator, work
        self._queue: asyncio.Queue[TokenText | Ending | RequestError] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())
        # Not in `_run`: a task cancelled before its first step never gets there.
        self._task.add_done_callback(lambda _: ticket.release())

    async def __aiter__(self) -> AsyncIterator[TokenText | Ending]:
        while True:
            item = await self._queue.get()
            if isinstance(item, RequestError):
                raise item
            yield item
            if isinstance(item, Ending):
                return

    async def collect(self) -> tuple[list[TokenText], Ending]:
        """All tokens, and the ending."""
        tokens: list[TokenText] = []
        async for item in self:
            if isinstance(item, Ending):
                return tokens, item
            tokens.append(item)
        raise incomplete()

    async def aclose(self) -> None:
        """Cancel what is still running and free its slot."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            async with aclosing(self._generator.engine.generate(self._work.job)) as events:
                spelling = _Spelling(self._generator.codec, self._work)
                async for event in events:
                    for item in spelling.push(event):
                        self._queue.put_nowait(item)
                    if spelling.ended:
                        break
            ending = spelling.ending()
            self._generator.metrics.finished(ending, self._work.job.adapter)
            self._queue.put_nowait(ending)
        except RequestError as error:
            self._queue.put_nowait(error)
        except GenerationError as error:
            self._generator.metrics.failed("generation")
            self._queue.put_nowait(generation_failed(str(error)))


class _Spelling:
    """Engine events → `TokenText`s, until an end is reached."""

    def __init__(self, codec: TextCodec, work: Work) -> None:
        self._codec, self._work = codec, work
        self._stream = codec.stream(work.job.prompt_ids)
        self._started: Started | None = None
        self._began = time.monotonic()
        self._text = ""
        self._count = 0
        self._reason: FinishReason | None = None

    @property
    def ended(self) -> bool:
        return self._reason is not None

    def push(self, event: Event) -> list[TokenText]:
        if isinstance(event, Started):
            self._started, self._began = event, time.monotonic()
        elif isinstance(event, Finish):
            self._reason = "length" if event.reason == "length" else "eos_token"
        else:
            return [self._token(event)]
        return []

    def ending(self) -> Ending:
        if self._reason is None:
            raise incomplete()
        started = self._started or Started(0, 0.0)
        return Ending(
            self._reason,
            self._text,
            self._count,
            len(self._work.job.prompt_ids),
            started.cached_tokens,
            started.queue_s,
            time.monotonic() - self._began,
        )

    def _token(self, step: Step) -> TokenText:
        text, special = self._stream.push(step.token_id), self._codec.is_special(step.token_id)
        self._count += 1
        if step.token_id in self._work.eos_ids:
            self._reason = "eos_token"
        elif not special:
            text = self._until_stop(text)
            self._text += text
        elif self._codec.token_text(step.token_id) in self._work.stop:
            self._reason = "stop_sequence"  # a control token, which is not in the text
        top = tuple(
            TokenText(i, self._codec.token_text(i), logprob, self._codec.is_special(i))
            for i, logprob in step.top[: self._work.job.top_n]
        )
        return TokenText(step.token_id, text, step.logprob, special, top)

    def _until_stop(self, text: str) -> str:
        """`text`, cut right after the first stop sequence that it completes; TGI keeps the sequence
        in the text.
        """
        old_length = len(self._text)
        whole = self._text + text
        ends = []
        for stop in self._work.stop:
            start = max(0, old_length - len(stop) + 1)
            position = whole.find(stop, start) if text else -1
            if position >= 0:
                ends.append(position + len(stop))
        if not ends:
            return text
        self._reason = "stop_sequence"
        return whole[old_length : min(ends)]
