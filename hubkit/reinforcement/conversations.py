"""Conversations of the policy with frozen askers, a batch at a time, each turn on disk before it
counts.

The policy answers all open conversations at once, then the askers are asked for their next turns at
once, and so on until each has ended; then the whole conversations are rewarded. A batch that a kill
cut short is replayed from the journal up to where it was: nothing that was acknowledged is asked
for again."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

from hubkit.conversation import Message, blank, filled_in, swap_roles
from hubkit.errors import (
    EndpointError,
    EndpointUnreachableError,
    MisconfiguredEndpointError,
)
from hubkit.progress import Progress, silent
from hubkit.recipe import Reinforce, SeatConfig
from hubkit.reinforcement.rewards import Episode, Outcome, Rewards
from hubkit.reinforcement.transcript import Transcript, TranscriptPrinter
from hubkit.rollout.dialogue import split_end_mark
from hubkit.serving import ServedModel
from hubkit.serving.budget import Budget, Spent
from hubkit.serving.client import ClientLimits, Endpoint
from hubkit.serving.reply_journal import Journal, JournalSpec
from hubkit.tokenization import likely_tokens, prompt_estimate
from hubkit.untrusted import JsonObject, count_in, list_in, number_in, object_in, text_in

_ATTEMPTS = 3  # at a turn that is empty, or repeats the asker's last one
ASKER_FAILED = "asker_failed"
Generate = Callable[[list[list[int]], int], tuple[list[list[int]], list[list[float]] | None]]
"""Prompts as token ids, and a seed → what the policy samples after each, and the log-probabilities
of its tokens where the engine gives them."""


class CapReachedError(Exception):
    """A cap forbids asking on. `name` is the recipe's key of it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True)
class Opening:
    """A held-out first turn, what its person wanted (where known), and what they really said
    next."""

    id: str
    text: str
    intent: str = ""
    next_turn: str | None = None


@dataclass(frozen=True, slots=True)
class AskerSeat:
    """An asker where it answers, as `seat` says it is asked."""

    name: str
    model: ServedModel
    seat: SeatConfig


@dataclass
class Talk:
    """A conversation under way, and in the end what it is worth."""

    key: str
    opening: Opening
    asker: str
    transcript: Transcript
    messages: list[Message]
    turn_marks: tuple[str, ...] = ()
    logprobs: list[float] = field(default_factory=list)
    cut_off: int = 0
    end_reason: str = ""
    outcome: Outcome | None = None

    @property
    def answers(self) -> int:
        """How many there are so far."""
        return sum(m["role"] == "assistant" for m in self.messages)

    @property
    def episode(self) -> Episode:
        """As rewards see it."""
        opening = self.opening
        return Episode(
            self.key, self.messages, self.end_reason, opening.intent, opening.next_turn, self.asker,
            self.cut_off, self.turn_marks,
        )  # fmt: skip


class Conversations:
    """Holds conversations. Use as a context manager, on one thread.

    Args:
        block: The recipe's.
        askers: Who asks; one is drawn for each generation and opening.
        printer: How the policy reads and writes.
        rewards: What conversations are worth.
        journal: Where turns are kept, and the seed of all that is drawn; a journal of another run
            is put aside.
        max_tokens: Most tokens of an answer.
        progress: Told what is going on.

    Attributes:
        budget: What the askers have taken, over all sessions.
        counts: Asker turns asked for, found in the journal, failed; answers likewise.
        seconds: Time in generation, in asking and in rewarding, of this session.
    """

    def __init__(
        self,
        block: Reinforce,
        askers: Sequence[AskerSeat],
        printer: TranscriptPrinter,
        rewards: Rewards,
        *,
        journal: JournalSpec,
        max_tokens: int,
        progress: Progress = silent,
    ) -> None:
        self._block, self._printer, self.rewards = block, printer, rewards
        self._askers = {asker.name: asker for asker in askers}
        self._journal = Journal(journal.folder, dict(journal.provenance), name="conversations")
        self._seed, self._max_tokens, self._progress = journal.seed, max_tokens, progress
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._endpoints: dict[str, Endpoint] = {}
        self.counts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.budget: Budget

    def __enter__(self) -> Self:
        self._journal.__enter__()
        spent = Spent({name: [0, 0] for name in self._askers})
        for record in self._journal.records():
            if "asker" in record:
                spent.add(text_in(record, "asker"), count_in(record, "in"), count_in(record, "out"))
            spent.seconds += number_in(record, "seconds")
        self._noted_at = time.monotonic()
        self.budget = Budget(self._block, spent, {n: a.seat for n, a in self._askers.items()})
        self._runner.__enter__()
        self._runner.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._runner.run(self._stack.aclose())
        finally:
            self._runner.close()
            self._journal.__exit__()

    async def _open(self) -> None:
        async with AsyncExitStack() as entered:
            for name, asker in self._askers.items():
                endpoint = asker.model.endpoint(
                    asker.seat,
                    limits=ClientLimits(
                        self._block.in_flight,
                        self._block.request_timeout_s,
                        self._block.patience_s,
                    ),
                    name=f"asker {name}" if name != "asker" else name,
                )
                self._endpoints[name] = await entered.enter_async_context(endpoint)
            await entered.enter_async_context(self.rewards)
            self._stack = entered.pop_all()

    def hold(self, group: str, openings: Sequence[Opening], generate: Generate) -> list[Talk]:
        """Hold one conversation for each of `openings` (several may be the same), and reward it.

        Args:
            group: What these are for (a generation's number): part of their keys in the journal.
            openings: What they open with.
            generate: The policy.

        Raises:
            CapReachedError: A cap forbids asking on.
            EndpointUnreachableError, MisconfiguredEndpointError: An asker cannot be asked at all.
        """
        copies: Counter[str] = Counter()
        talks = []
        for opening in openings:
            copies[opening.id] += 1
            key = f"{group}/{opening.id}/{copies[opening.id] - 1}"
            talks.append(self._begin(key, group, opening))
        turn = 0
        while talking := [talk for talk in talks if not talk.end_reason]:
            self._progress(0, None, f"{group}: answer {turn + 1} of {len(talking)} conversations")
            with self._timed("generation"):
                self._answer(talking, f"{group}/{turn}", generate)
            with self._timed("asking"):
                self._run(self._ask(talking))
            turn += 1
        self._progress(0, None, f"{group}: rewarding {len(talks)} conversations")
        with self._timed("rewarding"):
            self._reward(talks)
        now = time.monotonic()
        self._journal.note(f"{group}/time", "", "", seconds=now - self._noted_at)
        self._noted_at = now
        return talks

    def _begin(self, key: str, group: str, opening: Opening) -> Talk:
        names = sorted(self._askers)
        index = _draw(self._seed, group, opening.id) % len(names)
        messages: list[Message] = [{"role": "user", "content": opening.text}]
        transcript = self._printer.open(messages)
        marks = self._printer.turn_marks
        return Talk(key, opening, names[index], transcript, messages, marks)

    def _answer(self, talks: Sequence[Talk], position: str, generate: Generate) -> None:
        """The policy's next answer in each of `talks`: from the journal, or sampled."""
        missing = [talk for talk in talks if f"{talk.key}/a{talk.answers}" not in self._journal]
        self.counts["answers_from_journal"] += len(talks) - len(missing)
        if missing:
            seed = _draw(self._seed, position, "answers")
            sampled, logprobs = generate([talk.transcript.ids for talk in missing], seed)
            self.counts["answers_sampled"] += len(missing)
            for number, (talk, ids) in enumerate(zip(missing, sampled, strict=True)):
                details = {"logprobs": logprobs[number]} if logprobs else {}
                self._journal.note(
                    f"{talk.key}/a{talk.answers}", self._printer.text(ids), "", ids=ids, **details
                )
        for talk in talks:
            record = self._journal.record(f"{talk.key}/a{talk.answers}")
            ids = [int(token) for token in list_in(record, "ids") if isinstance(token, int)]
            talk.transcript.answer(ids)
            talk.logprobs += map(float, map(str, list_in(record, "logprobs")))
            talk.cut_off += len(ids) >= self._max_tokens
            talk.messages.append({"role": "assistant", "content": text_in(record, "content")})
            room = self._block.context - len(talk.transcript.ids) - self._max_tokens
            if talk.answers >= self._block.answers:
                talk.end_reason = "answers"
            elif room <= 0:
                talk.end_reason = "context"

    def _run(self, work: Any) -> None:
        """Run `work`; of several failures the first is raised."""
        try:
            self._runner.run(work)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _ask(self, talks: Sequence[Talk]) -> None:
        async with asyncio.TaskGroup() as group:
            for talk in talks:
                if not talk.end_reason:
                    group.create_task(self._next_turn(talk))

    async def _next_turn(self, talk: Talk) -> None:
        """The asker's next turn, or its end."""
        key = f"{talk.key}/u{talk.answers}"
        if key not in self._journal:
            text, finish, tokens = await self._asked(talk)
            self._journal.note(
                key, text, finish, asker=talk.asker, **{"in": tokens[0], "out": tokens[1]}
            )
        else:
            self.counts["turns_from_journal"] += 1
        text, finish = self._journal[key]
        if finish:
            talk.end_reason = finish
            return
        ids = self._printer.after_answer(talk.transcript.completion, text)
        answer_room = self._block.context - len(talk.transcript.ids) - len(ids)
        if answer_room < self._max_tokens:
            talk.end_reason = "context"
            return
        talk.messages.append({"role": "user", "content": text})
        talk.transcript.between(ids)
        if talk.logprobs:
            talk.logprobs += [0.0] * len(ids)

    async def _asked(self, talk: Talk) -> tuple[str, str, tuple[int, int]]:
        """(text, why it ends the conversation or nothing, tokens in and out) of the next turn."""
        asker = self._askers[talk.asker]
        system = filled_in(asker.seat.system or "", "intent", talk.opening.intent)
        head: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
        view = [*head, *swap_roles(talk.messages)]
        before = [m["content"].split() for m in talk.messages if m["role"] == "user"]
        tokens_in = tokens_out = 0
        text = ""
        for attempt in range(_ATTEMPTS):
            seed = _draw(self._seed, talk.key, f"{talk.answers}/{attempt}") & 0x7FFFFFFF
            try:
                content, counts = await self._one_reply(asker.name, view, seed, talk.key)
            except (EndpointUnreachableError, MisconfiguredEndpointError):
                raise
            except EndpointError as error:
                self.counts["turns_refused"] += 1
                end = "context" if error.kind == "too_long" else ASKER_FAILED
                return "", end, (tokens_in, tokens_out)
            tokens_in, tokens_out = tokens_in + counts[0], tokens_out + counts[1]
            text, ended = split_end_mark(content, asker.seat.end_token or self._block.end_mark)
            if ended:
                return text, "end_mark", (tokens_in, tokens_out)
            if not blank(text) and text.split() != before[-1]:
                return text, "", (tokens_in, tokens_out)
        return text, ASKER_FAILED if blank(text) else "", (tokens_in, tokens_out)

    async def _one_reply(
        self, name: str, view: Sequence[Message], seed: int, key: str
    ) -> tuple[str, tuple[int, int]]:
        """What the asker `name` says, and tokens in and out."""
        guess = prompt_estimate(m["content"] for m in view)
        if not await self.budget.hold(name, guess):
            raise CapReachedError(self.budget.exhausted or "stopped")
        try:
            reply = await self._endpoints[name].chat(view, seed=seed, key=key)
        finally:
            self.budget.settle(name, guess)
        self.counts["turns_asked"] += 1
        tokens_in = guess if reply.prompt_tokens is None else reply.prompt_tokens
        guess_out = likely_tokens(len(reply.content))
        tokens_out = guess_out if reply.completion_tokens is None else reply.completion_tokens
        self.budget.spent.add(name, tokens_in, tokens_out)
        return reply.content, (tokens_in, tokens_out)

    def _reward(self, talks: Sequence[Talk]) -> None:
        """What each is worth. A conversation that its asker failed is masked, not judged."""
        waiting = []
        for talk in talks:
            if f"{talk.key}/r" in self._journal:
                record = self._journal.record(f"{talk.key}/r")
                talk.outcome = Outcome.of(object_in(record, "outcome"))
            elif talk.end_reason == ASKER_FAILED:
                talk.outcome = Outcome(None, {}, {"asker": ASKER_FAILED})
                self._note(talk)
            else:
                waiting.append(talk)
        outcomes = self._runner.run(self.rewards.score([talk.episode for talk in waiting]))
        for talk, outcome in zip(waiting, outcomes, strict=True):
            talk.outcome = outcome
            self._note(talk)

    def _note(self, talk: Talk) -> None:
        assert talk.outcome is not None
        self._journal.note(
            f"{talk.key}/r",
            "",
            talk.end_reason,
            episode=talk.episode.to_dict(),
            outcome=talk.outcome.to_dict(),
            tokens=talk.transcript.sampled,
        )

    def finished(self) -> list[JsonObject]:
        """The records of all conversations that were rewarded, in order."""
        return [record for record in self._journal.records() if "outcome" in record]

    def _timed(self, name: str) -> _Timer:
        return _Timer(self.seconds, name)


class _Timer:
    """Adds the seconds of a block to a counter."""

    def __init__(self, seconds: Counter[str], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self._seconds[self._name] += time.monotonic() - self._started  # type: ignore[assignment]


def _draw(seed: int, position: str, name: str) -> int:
    """62 bits that follow from all three."""
    digest = hashlib.blake2b(f"{seed}\x1f{position}\x1f{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2
