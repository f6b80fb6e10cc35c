"""Asks a judge for verdicts: each once, kept on disk, within caps, and again within bounds when one
is unusable.

A reply that was paid for is in the journal before its verdict counts, whether it can be read or
not; so a run that was killed asks for nothing twice. What never came (no answer in time, a refused
request, a cap) is not journaled, and the next run of the same command asks for it again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hubkit.conversation import Message
from hubkit.errors import (
    EndpointError,
    EndpointUnreachableError,
    EvalError,
    MisconfiguredEndpointError,
)
from hubkit.judging.prompts import Kind
from hubkit.judging.verdicts import (
    Parse,
    ParsedReply,
    Winner,
    rating,
    verdict_schema,
    winner,
    yes_or_no,
)
from hubkit.recipe import Judging
from hubkit.serving import ServedModel
from hubkit.serving.budget import Budget, Spent, check_prices
from hubkit.serving.client import MOST_REQUESTS, ClientLimits, Endpoint, Reply
from hubkit.serving.client.dialects import batch_api, schema_fields
from hubkit.serving.reply_journal import Journal
from hubkit.tokenization import likely_tokens, prompt_estimate
from hubkit.untrusted import JsonObject, count_in

_SEAT = "judge"
_PARSE: dict[Kind, Parse] = {"single": rating, "pairwise": winner, "criterion": yes_or_no}
UNUSABLE_IN_A_ROW = 10
"""So many verdicts in a row that cannot be read stop a run: the judge or its prompts do not fit."""
_NOT_READING = ("timeout", "refused")  # says nothing about whether this judge can be read


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rating (``single``), a winner (``pairwise``) or what was `answer`; or none, and the reason
    of the last attempt.

    Reasons are those of `ParsedReply`, and ``timeout``, ``refused``, and the name of the cap that
    forbade asking."""

    rating: float | None
    winner: Winner | None
    reason: str
    attempts: int
    text: str
    answer: str = ""
    margin: int = 1

    @property
    def missing(self) -> bool:
        """Whether there is no verdict."""
        return bool(self.reason)


class Judge:
    """A judge at `addresses`. `identity` says who it is (a repo at a commit, or an address and a
    model name): together with what it is asked, it is what a journaled reply is found by. `run` is
    whose money is spent."""

    def __init__(
        self,
        block: Judging,
        endpoint: Endpoint,
        journal: Journal,
        *,
        identity: str,
        run: str,
        profile: str,
    ) -> None:
        self._block, self._endpoint, self._journal = block, endpoint, journal
        self._identity, self._run, self._profile = identity, run, profile
        spent = Spent({_SEAT: [0, 0]})
        for record in journal.records():
            if record.get("run") == run:
                spent.add(_SEAT, count_in(record, "in"), count_in(record, "out"))
        self.budget = Budget(block, spent, {_SEAT: block.judge})
        self.asked = self.from_journal = 0
        self._answered = time.monotonic()
        self._verdicts = 0
        self._unreadable: set[int] = set()
        self.unusable: Counter[str] = Counter()
        self._room = asyncio.Semaphore(
            requests_at_once(block)
        )  # before the clock of an attempt starts
        self._alone: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def usd(self) -> float:
        """What this run's judgments have cost, over all its sessions, at the judge's prices."""
        return self.budget.spent.usd({_SEAT: self._block.judge})

    def to_dict(self) -> JsonObject:
        """What a result says of the judging: requests, replies found on disk, attempts that were
        unusable, tokens, money, and the cap that ended it."""
        tokens_in, tokens_out = self.budget.spent.tokens[_SEAT]
        return {
            "asked": self.asked,
            "from_journal": self.from_journal,
            "unusable_attempts": dict(self.unusable),
            "tokens": {"prompt": tokens_in, "completion": tokens_out},
            "usd": round(self.usd, 6),
            "stopped": self.budget.exhausted,
        }

    async def verdict(
        self, kind: Kind, messages: Sequence[Message], *, conversation: str = ""
    ) -> Verdict:
        """The verdict that `messages` ask for, in at most ``block.attempts`` attempts.

        Verdicts on turns of the same `conversation` go to the same address, whose prefix cache
        serves them.

        Raises:
            EndpointUnreachableError, MisconfiguredEndpointError: These concern all verdicts.
            EvalError: Ten verdicts in a row could not be read."""
        return await self.answer(_PARSE[kind], messages, conversation=conversation)

    async def answer(
        self, read: Parse, messages: Sequence[Message], *, conversation: str = ""
    ) -> Verdict:
        """What `read` finds in the judge's reply to `messages`; else as `verdict`."""
        parsed, text, attempt = ParsedReply(reason="no_verdict"), "", 0
        schema = verdict_schema(read) if self._block.json_schema else None
        fields: JsonObject = {}
        if schema is not None:
            read = schema.parse
            fields = schema_fields(self._profile, "verdict", schema.schema)
        self._verdicts += 1
        number = self._verdicts
        for attempt in range(self._block.attempts):
            key = self._key(messages, attempt, fields)
            async with self._alone[key]:  # the same question twice at once is asked once
                reply, reason = await self._reply(key, messages, attempt, conversation, fields)
            if reply is None:
                parsed = ParsedReply(reason=reason)
                if reason == "timeout":
                    self.unusable[reason] += 1
                    continue
                break  # a refused request is refused again, and a cap stays
            text = reply[0]
            parsed = read(*reply)
            if not parsed.reason:
                break
            self.unusable[parsed.reason] += 1
        self._check_readable(number, parsed, text)
        return Verdict(
            rating=parsed.rating,
            winner=parsed.winner,
            reason=parsed.reason,
            attempts=attempt + 1,
            text=text,
            answer=parsed.answer,
            margin=parsed.margin,
        )

    def _check_readable(self, number: int, parsed: ParsedReply, text: str) -> None:
        """Raise `EvalError` after `UNUSABLE_IN_A_ROW` verdicts that could not be read, with this
        one as an example. They are counted as they were asked for: unreadable ones are asked for
        again, so they arrive later than others."""
        if not (parsed.reason and text) or parsed.reason in _NOT_READING:
            return
        self._unreadable.add(number)
        first = last = number
        while first - 1 in self._unreadable:
            first -= 1
        while last + 1 in self._unreadable:
            last += 1
        if last - first + 1 >= UNUSABLE_IN_A_ROW:
            example = " ".join(text.split())
            raise EvalError(
                f"{UNUSABLE_IN_A_ROW} verdicts in a row cannot be read; the last one "
                f"({parsed.reason}) is {example[:200]!r}; use other judge prompts, more tokens for "
                "a verdict, or another judge"
            )

    def _key(self, messages: Sequence[Message], attempt: int, fields: JsonObject) -> str:
        """What a reply is found by: who was asked what, how, for which time."""
        sampling = self._block.judge.sampling.model_dump()
        if attempt:
            sampling["temperature"] = self._block.retry_temperature
        request = [self._identity, list(messages), sampling, attempt, *([fields] if fields else [])]
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

    async def _reply(
        self,
        key: str,
        messages: Sequence[Message],
        attempt: int,
        conversation: str,
        fields: JsonObject,
    ) -> tuple[tuple[str, str] | None, str]:
        """(text, finish reason) from disk or from the judge, or None and why there is none."""
        if key in self._journal:
            self.from_journal += 1
            return self._journal[key], ""
        estimate = prompt_estimate(m["content"] for m in messages)
        if not await self.budget.hold(_SEAT, estimate):
            return None, self.budget.exhausted or "stopped"
        try:
            async with self._room:
                reply = await self._ask(key, messages, attempt, conversation, fields)
            self._note(key, reply, estimate, attempt)
        except (EndpointUnreachableError, MisconfiguredEndpointError):
            raise
        except TimeoutError:
            self._raise_if_silent()
            return None, "timeout"
        except EndpointError:
            return None, "refused"
        finally:
            self.budget.settle(_SEAT, estimate)
        return self._journal[key], ""

    def _raise_if_silent(self) -> None:
        silent_s = time.monotonic() - self._answered
        if silent_s > self._block.patience_s:
            raise EndpointUnreachableError(
                f"the judge has answered nothing for {silent_s:.0f} s; see what it is doing, "
                "and run the same command again: it resumes where it stopped"
            ) from None

    def _note(self, key: str, reply: Reply, guessed: int, attempt: int) -> None:
        tokens_in = guessed if reply.prompt_tokens is None else reply.prompt_tokens
        counted = reply.completion_tokens
        tokens_out = likely_tokens(len(reply.content)) if counted is None else counted
        metadata = {"run": self._run, "attempt": attempt, "in": tokens_in, "out": tokens_out}
        self._journal.note(key, reply.content, reply.finish_reason, **metadata)
        self.budget.spent.add(_SEAT, tokens_in, tokens_out)
        self.asked += 1
        self._answered = time.monotonic()

    async def _ask(
        self,
        key: str,
        messages: Sequence[Message],
        attempt: int,
        conversation: str,
        fields: JsonObject,
    ) -> Reply:
        """One request; raises `TimeoutError` when it takes longer than ``block.timeout_s``, waits
        not counted.
        """
        async with asyncio.timeout(self._block.timeout_s) as deadline:

            @asynccontextmanager
            async def idle() -> AsyncIterator[None]:
                now = asyncio.get_running_loop().time()
                remaining_s = (deadline.when() or now) - now
                deadline.reschedule(None)
                yield
                deadline.reschedule(asyncio.get_running_loop().time() + remaining_s)

            return await self._endpoint.chat(
                messages,
                seed=int(key[:7], 16),
                key=conversation,
                idle=idle,
                temperature=self._block.retry_temperature if attempt else None,
                fields=fields,
            )


def check_judge(block: Judging, *, at_address: bool) -> None:
    """Refuse settings that would fail, or cap nothing, once the judge is asked.

    Args:
        block: The judge's settings.
        at_address: Whether it answers at an address of its own, and not on an engine started here.

    Raises:
        RecipeError: A cap in dollars over a judge without prices, or a JSON schema or batches for
            servers of a profile that does not have them.
    """
    check_prices(block.budget_usd, {"judge": block.judge})
    if block.judge.batch:
        batch_api(block.judge.profile)
    if block.json_schema and at_address:
        schema_fields(block.judge.profile, "verdict", {})


def requests_at_once(block: Judging) -> int:
    """How many verdicts are asked for at once: as many as a batch takes, where the judge is asked
    by batch."""
    return MOST_REQUESTS if block.judge.batch else block.in_flight


@asynccontextmanager
async def judging(
    block: Judging,
    model: ServedModel,
    journal: Journal,
    *,
    identity: str,
    run: str,
    on_batch: Callable[[str], None] = lambda sentence: None,
) -> AsyncIterator[Judge]:
    """`model` as the `Judge` of `block`, for the length of the block. `on_batch` is told how a
    batch does, where it is asked by batch.

    Raises `RecipeError` where a schema is asked for that such a server does not enforce."""
    if block.json_schema:
        schema_fields(model.dialect, "verdict", {})
    async with model.endpoint(
        block.judge,
        # Its own timeout is the longer one, so that the judge's comes first.
        limits=ClientLimits(block.in_flight, 2 * block.timeout_s, block.patience_s),
        name="judge",
        batch_folder=journal.folder,
        on_batch=on_batch,
    ) as endpoint:
        yield Judge(block, endpoint, journal, identity=identity, run=run, profile=model.dialect)
