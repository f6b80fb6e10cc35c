"""One conversation of an environment: reset gives the user's first turn, each step takes an answer
and gives the asker's next turn.

What the asker reads, how its turns are checked and asked for again, and when a conversation ends
are those of a rollout (`hubkit.rollout.dialogue`)."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hubkit.conversation import Message, blank
from hubkit.data.parquet import read_batches
from hubkit.errors import (
    EndpointError,
    EndpointUnreachableError,
    MisconfiguredEndpointError,
    SchemaError,
)
from hubkit.recipe import Rollout
from hubkit.reinforcement import Episode as EndedEpisode
from hubkit.reinforcement import Outcome
from hubkit.rollout.dialogue import Dialogue, Prompt, judge, prompt, turn_of
from hubkit.rollout.plan import Plan, turn_seed
from hubkit.rollout.turns import Turn
from hubkit.serving.budget import CAPS, Budget, Spent
from hubkit.serving.client import Endpoint, Reply, Request
from hubkit.serving.client.replies import split_thinking
from hubkit.tokenization import likely_tokens, prompt_estimate

_MOST_TRIMS = 3
_SEAT = "asker"
_LARGEST_SEED = 2**63 - 1
FINISHES = ("stop", "length")
_END_REASONS = {"target_turns": "answers", "context_full": "context"}


@dataclass(frozen=True, slots=True)
class Opening:
    """A person's first turn, what they want, and what they said next where that is known; without
    a turn the asker opens itself.
    """

    id: str = ""
    text: str = ""
    intent: str = ""
    next_turn: str | None = None


RewardFunction = Callable[[EndedEpisode], Awaitable[Outcome]]


class _CapReachedError(Exception):
    """A cap forbids asking on; its text is the cap's name."""


@dataclass(slots=True)
class AskerEnvironment:
    """What all conversations of a server share.

    Attributes:
        name: The asker's name, for `/metadata`.
        block: How it asks: its seat, end mark, turns, checks. The chat seat is the trainer's.
        endpoint: Asks it.
        openings: From which a conversation opens unless its reset names one.
        reward: Rewards finished conversations; None: they have no reward.
        counts: Conversations by how they ended, and rewards that could not be found.
        budget: What the asker has taken, under the caps of `block`.
    """

    name: str
    block: Rollout
    endpoint: Endpoint
    openings: Sequence[Opening] = ()
    reward: RewardFunction | None = None
    counts: Counter[str] = field(default_factory=Counter)
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = Budget(self.block, Spent({_SEAT: [0, 0]}), {_SEAT: self.block.asker})

    def opening(self, seed: int, text: str | None, intent: str | None) -> Opening:
        """The opening of a conversation: the given one, or the one that `seed` draws.

        Conversations of one seed have one opening, as the members of a GRPO group must.
        """
        if text is not None:
            return Opening("", text, intent or "")
        drawn_opening = self.openings[seed % len(self.openings)] if self.openings else Opening()
        return drawn_opening if intent is None else replace(drawn_opening, intent=intent)


def openings_in(
    paths: Iterable[Path], intent_column: str | None, *, most_chars: int
) -> tuple[list[Opening], Counter[str]]:
    """Read people's first turns.

    Args:
        paths: Parquet files of conversations.
        intent_column: Where what their human wanted is; a row without it cannot open.
        most_chars: Longer turns are passed over.

    Returns:
        The openings, in the order of the files, and how many rows cannot open, by reason.
    """
    openings, skipped = [], Counter[str]()
    for path in paths:
        for batch in read_batches(path):
            for row in batch.to_pylist():
                turns = [m for m in row["messages"] if m["role"] != "system"]
                intent = str(row.get(intent_column) or "") if intent_column else ""
                text = turns[0]["content"] if turns and turns[0]["role"] == "user" else ""
                reason = (
                    "no_user_turn" if blank(text)
                    else "opening_too_long" if len(text) > most_chars
                    else "no_intent" if intent_column and not intent
                    else ""
                )  # fmt: skip
                if reason:
                    skipped[reason] += 1
                else:
                    continued = len(turns) > 2 and turns[2]["role"] == "user"
                    next_turn = turns[2]["content"] if continued else None
                    openings.append(Opening(str(row.get("id", "")), text, intent, next_turn))
    return openings, skipped


def ended_episode(
    id: str,
    messages: Sequence[Message],
    end_reason: str,
    opening: Opening,
    *,
    asker: str,
    cut_off: int,
) -> EndedEpisode:
    """A conversation that has ended, as rewards read it."""
    messages = list(messages)
    if messages and messages[-1]["role"] == "user":
        messages.pop()
    return EndedEpisode(
        id=id,
        messages=messages,
        end_reason=_END_REASONS.get(end_reason, end_reason),
        intent=opening.intent,
        next_turn=opening.next_turn,
        asker=asker,
        cut_off=cut_off,
    )


class Episode:
    """The conversation of one session."""

    def __init__(self, environment: AskerEnvironment) -> None:
        self._environment = environment
        self._dialogue: Dialogue | None = None
        self._finishes: list[str] = []
        self._id, self._seed, self._error = "", 0, ""
        self._opening = Opening()
        self._outcome: Outcome | None = None

    async def reset(
        self,
        *,
        seed: int | None = None,
        episode_id: str | None = None,
        opening: str | None = None,
        intent: str | None = None,
    ) -> dict[str, object]:
        """Begin a conversation.

        Args:
            seed: Draws the opening where none is given, and the asker's sampling.
            episode_id: What the state calls the conversation.
            opening: The user's first turn.
            intent: What the user wants; only the asker reads it.

        Returns:
            OpenEnv's result: ``observation``, ``reward``, ``done``.

        Raises:
            SchemaError: A value is none of these.
            EndpointError: A cap is reached.
            MisconfiguredEndpointError: The asker refuses every request.
            EndpointUnreachableError: The asker does not answer.
        """
        _check(seed, episode_id, opening, intent)
        if cap := self._environment.budget.exhausted:
            raise EndpointError(
                f"{cap} is reached, after {self._environment.budget.spent.total:,} tokens; serve "
                "the environment again, with a larger one"
            )
        self._seed = secrets.randbelow(2**31) if seed is None else seed
        self._id = episode_id or secrets.token_hex(8)
        self._opening = self._environment.opening(self._seed, opening, intent)
        text = self._opening.text
        plan = Plan(
            index=0,
            id=self._id,
            messages=({"role": "user", "content": text},) if text else (),
            human_turns=self._environment.block.turns.value,
            opening={"id": self._opening.id, "source": ""},
            intent=self._opening.intent,
        )
        self._dialogue, self._finishes, self._error = Dialogue(plan), [], ""
        self._outcome = None
        if not text:
            await self._ask(self._dialogue)
        if self._dialogue.end_reason:
            await self._finish(self._dialogue)
        return self._result(self._dialogue)

    async def step(self, message: str, finish_reason: str = "stop") -> dict[str, object]:
        """Take the chat model's answer, and give the user's next turn or the end.

        Args:
            message: The answer; thinking in it is not shown to the asker.
            finish_reason: ``length`` for an answer that was cut off.

        Returns:
            OpenEnv's result. Only the last one of a conversation has a reward.

        Raises:
            SchemaError: There is no conversation under way, or a value is not of its type.
            MisconfiguredEndpointError: The asker refuses every request.
            EndpointUnreachableError: The asker does not answer.
        """
        dialogue = self._dialogue
        if dialogue is None:
            raise SchemaError("no conversation has begun; call reset first", reason="no_reset")
        if dialogue.end_reason:
            raise SchemaError(
                f"the conversation has ended ({dialogue.end_reason}); call reset", reason="ended"
            )
        _check_text("message", message)
        if finish_reason not in FINISHES:
            raise SchemaError(f"finish_reason must be stop or length, got {finish_reason!r}")
        if dialogue.seat == "assistant":  # else this answer was taken, and the asker then failed
            answer = split_thinking(message)[0].strip()
            dialogue.add(_answer(dialogue, answer, finish_reason))
            self._finishes.append(finish_reason)
            if blank(answer):
                dialogue.end_reason = "empty_turn"
        if not dialogue.end_reason:
            dialogue.end_reason = dialogue.completion()
        if not dialogue.end_reason:
            await self._ask(dialogue)
        if dialogue.end_reason:
            await self._finish(dialogue)
        return self._result(dialogue)

    def state(self) -> dict[str, object]:
        """What OpenEnv calls the state: for the trainer, not for its model."""
        dialogue = self._dialogue
        return {
            "episode_id": self._id or None,
            "step_count": len(self._finishes),
            "seed": self._seed,
            "opening": self._opening.id,
            "intent": self._opening.intent,
            "end_reason": dialogue.end_reason if dialogue else "",
            "error": self._error,
            "messages": dialogue.messages if dialogue else [],
        }

    async def _ask(self, dialogue: Dialogue) -> None:
        """Add the asker's next turn, or end the conversation."""
        block, endpoint = self._environment.block, self._environment.endpoint
        trims = 0
        while True:
            request = prompt(dialogue, block, window=endpoint.window, more_exchanges=trims)
            if request is None:
                dialogue.end_reason = "context_full"
                return
            attempts = len(dialogue.failed_attempts)
            seed = turn_seed(self._seed, 0, dialogue.position, attempts)
            try:
                reply = await self._reply(request.messages, seed)
            except _CapReachedError as cap:
                dialogue.end_reason = str(cap)
                return
            except (MisconfiguredEndpointError, EndpointUnreachableError):
                raise
            except EndpointError as error:
                if error.kind == "too_long" and trims < _MOST_TRIMS:
                    trims += 1
                    continue
                dialogue.end_reason, self._error = "error", str(error)[:500]
                return
            if self._took(dialogue, request, reply, seed):
                return

    async def _reply(self, messages: Sequence[Message], seed: int) -> Reply:
        """The asker's reply, if the caps allow it."""
        budget = self._environment.budget
        estimate = prompt_estimate(m["content"] for m in messages)
        if not await budget.hold(_SEAT, estimate):
            raise _CapReachedError(budget.exhausted)
        try:
            reply = await self._environment.endpoint.attempt(Request(messages, seed, self._id))
        finally:
            budget.settle(_SEAT, estimate)
        tokens = reply.completion_tokens
        budget.spent.add(
            _SEAT,
            estimate if reply.prompt_tokens is None else reply.prompt_tokens,
            likely_tokens(len(reply.content)) if tokens is None else tokens,
        )
        return reply

    def _took(self, dialogue: Dialogue, request: Prompt, reply: Reply, seed: int) -> bool:
        """Whether the turn is over: the answer is one, or was the last attempt at one."""
        turn = turn_of(dialogue, self._environment.block, request, reply, seed)
        problem, end_reason, retry = judge(dialogue, self._environment.block, turn, reply)
        if retry or end_reason:
            turn.failure, turn.closing = problem, False
            dialogue.failed_attempts.append(turn)
            dialogue.end_reason = "" if retry else end_reason
            return not retry
        turn.flaw = problem
        dialogue.add(turn)
        dialogue.end_reason = dialogue.completion()
        return True

    async def _finish(self, dialogue: Dialogue) -> None:
        counts = self._environment.counts
        counts[dialogue.end_reason] += 1
        self._environment.endpoint.forget(self._id)
        if self._environment.reward is None:
            return
        if dialogue.end_reason in CAPS:
            self._outcome = Outcome(None, {}, {"asker": dialogue.end_reason})
        elif dialogue.end_reason == "error" or not self._finishes:
            self._outcome = Outcome(None, {}, {"asker": "failed"})
        else:
            episode = ended_episode(
                self._id,
                dialogue.messages,
                dialogue.end_reason,
                self._opening,
                asker=self._environment.name,
                cut_off=self._finishes.count("length"),
            )
            self._outcome = await _rewarded(self._environment.reward, episode)
        if self._outcome.total is None:
            counts["no_reward"] += 1

    def _result(self, dialogue: Dialogue) -> dict[str, object]:
        is_done = bool(dialogue.end_reason)
        messages = dialogue.messages
        observation: dict[str, object] = {
            "message": "" if is_done else messages[-1]["content"],
            "messages": messages,
            "end_reason": dialogue.end_reason,
        }
        outcome = self._outcome if is_done else None
        if outcome is not None:
            observation["rewards"] = dict(outcome.parts)
            observation["masked"] = dict(outcome.masks)
        return {
            "observation": observation,
            "reward": outcome.total if outcome else None,
            "done": is_done,
        }


def _check(seed: Any, episode_id: Any, opening: Any, intent: Any) -> None:
    """Raise `SchemaError` for a reset's values that are not of their types."""
    if seed is not None and (
        not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= _LARGEST_SEED
    ):
        raise SchemaError(f"seed must be a whole number from 0 on, got {str(seed)[:80]!r}")
    for name, value in (("episode_id", episode_id), ("opening", opening), ("intent", intent)):
        if value is not None:
            _check_text(name, value)
    if episode_id and len(episode_id) > 255:
        raise SchemaError("episode_id has more than 255 characters")
    if opening is not None and blank(opening):
        raise SchemaError("opening is blank; leave it out to draw one")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise SchemaError(f"{name} must be text, got {type(value).__name__}")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise SchemaError(f"{name} holds half of a surrogate pair, which is no character")


def _answer(dialogue: Dialogue, text: str, finish_reason: str) -> Turn:
    """The trainer's answer as a turn; what a server counts is not known of it."""
    return Turn(
        0, dialogue.position, "assistant", text, finish_reason, None, None, None, 0, 1, None,
        round(time.time(), 3), 0,
    )  # fmt: skip


async def _rewarded(reward: RewardFunction, episode: EndedEpisode) -> Outcome:
    """The reward; whatever the function raises masks the conversation."""
    try:
        return await reward(episode)
    except Exception as error:
        return Outcome(None, {}, {"reward": f"{type(error).__name__}: {error}"[:500]})
