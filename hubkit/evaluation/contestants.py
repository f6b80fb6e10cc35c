"""Who answers a benchmark's questions: a served model, or a file of answers that were given before.

Takes a conversation that ends in a user's turn; gives the answer, or a reason why there is none.
Answers of a served model are in a journal before they count, so that none is asked for twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hubkit.conversation import Message
from hubkit.errors import (
    EndpointError,
    EndpointUnreachableError,
    HubkitError,
    MisconfiguredEndpointError,
)
from hubkit.serving.client import Endpoint
from hubkit.serving.reply_journal import Journal


class NoAnswerError(HubkitError, LookupError):
    """There is no answer to this turn."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; token counts are None where they were not counted."""

    content: str
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Contestant(Protocol):
    """Answers conversations. `name` is what reports call it; `identity` says exactly who it is."""

    name: str
    identity: str

    async def answer(
        self, question: str, turn: int, messages: Sequence[Message], temperature: float
    ) -> Answer:
        """Answer the last message, which is turn `turn` (from 1) of the question with this id.
        Raises `NoAnswerError` when it has no answer."""
        ...


class ServedContestant:
    """A model at an endpoint; `on_answer` is called after each answer."""

    def __init__(
        self,
        name: str,
        identity: str,
        endpoint: Endpoint,
        journal: Journal,
        *,
        max_tokens: int,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.identity = name, identity
        self._endpoint, self._journal, self._max_tokens = endpoint, journal, max_tokens
        self._on_answer = on_answer
        self.requests = 0

    async def answer(
        self, question: str, turn: int, messages: Sequence[Message], temperature: float
    ) -> Answer:
        """Give the journaled answer, or the model's; one seed for one conversation."""
        reply = await self._answer(question, messages, temperature)
        self._on_answer()
        return reply

    async def _answer(
        self, question: str, messages: Sequence[Message], temperature: float
    ) -> Answer:
        request = [self.identity, question, list(messages), temperature, self._max_tokens]
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        if key in self._journal:
            return Answer(*self._journal[key])
        try:
            reply = await self._endpoint.chat(
                messages,
                seed=int(key[:7], 16),
                key=f"{self.name}/{question}",
                temperature=temperature,
            )
        except (EndpointUnreachableError, MisconfiguredEndpointError):
            raise
        except EndpointError as error:
            raise NoAnswerError(f"{self.name} refuses this conversation: {error}") from None
        self._journal.note(key, reply.content, reply.finish_reason, model=self.name)
        self.requests += 1
        return Answer(
            reply.content, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens
        )


class RecordedContestant:
    """Answers from a file, by question id."""

    def __init__(self, name: str, identity: str, answers: Mapping[str, Sequence[str]]) -> None:
        self.name, self.identity, self._answers = name, identity, answers

    async def answer(
        self, question: str, turn: int, messages: Sequence[Message], temperature: float
    ) -> Answer:
        """Give what the file says."""
        answers = self._answers.get(question, ())
        if turn > len(answers):
            raise NoAnswerError(
                f"{self.name} holds no answer to turn {turn} of question {question}"
            )
        return Answer(answers[turn - 1])
