"""A model that is asked by its provider's batch API: the same calls as `Endpoint`, answered within
a day."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hubkit.errors import EndpointError, RecipeError
from hubkit.serving.client.batch_apis import api_of, headers_of
from hubkit.serving.client.batch_ledger import BatchLedger
from hubkit.serving.client.batch_queue import MOST_REQUESTS, BatchQueue, Pace
from hubkit.serving.client.dialects import batch_api
from hubkit.serving.client.endpoint import (
    DEFAULT_LIMITS,
    DEFAULT_REQUEST,
    ClientLimits,
    Endpoint,
    Idle,
    Request,
    RequestOptions,
)
from hubkit.serving.client.replies import Reply, read_chat
from hubkit.serving.client.transport import HttpClient


class BatchEndpoint(Endpoint):
    """`Endpoint` whose requests wait for each other and go out as batches.

    Args:
        addresses: The one address of the account.
        profile: Its dialect, one that has a batch API.
        folder: Where it is written down which requests are in which batch; it survives a kill.
        pace: How long it waits for what; None takes the patience of `limits`.
        on_batch: Told in a sentence how a batch does.
        request: What every request carries besides the conversation.
        limits: How long the provider is waited for.
        options: Further ones of `Endpoint`.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        profile: str,
        folder: Path,
        pace: Pace | None = None,
        on_batch: Callable[[str], None] = lambda sentence: None,
        request: RequestOptions = DEFAULT_REQUEST,
        limits: ClientLimits = DEFAULT_LIMITS,
        **options: Any,
    ) -> None:
        kind = batch_api(profile)
        super().__init__(addresses, profile=profile, request=request, limits=limits, **options)
        if len(self._replicas) != 1:
            raise RecipeError(
                f"{self.name}: batches go to one account; give one address under endpoints"
            )
        address = self._replicas[0].address
        self._http = HttpClient(
            headers=headers_of(kind, request.token, request.headers or {}),
            timeout_s=limits.request_timeout_s,
        )
        self._url = address.url
        self._exit = contextlib.ExitStack()
        self._queue = BatchQueue(
            api_of(kind, self._http, address),
            self._exit.enter_context(BatchLedger(folder)),
            pace=pace or Pace(patience_s=limits.patience_s),
            name=self.name,
            on_batch=on_batch,
        )

    async def __aexit__(self, *exc: object) -> None:
        await self._queue.close()
        self._exit.close()
        await super().__aexit__(*exc)

    @property
    def in_flight(self) -> int:
        """Requests that wait for their answer."""
        return self._queue.in_flight

    @property
    def limits(self) -> dict[str, int]:
        """How many requests a batch may hold."""
        return {self._url: MOST_REQUESTS}

    async def prepare(self) -> None:
        """Nothing is asked of a provider before the first batch."""

    async def attempt(
        self, request: Request, *, prefer: str | None = None, idle: Idle = contextlib.nullcontext
    ) -> Reply:
        """One attempt at the next turn, as `Endpoint.attempt`: it waits for its batch."""
        request.require_turn()
        body, _ = self._chat_request(request)
        facts = json.dumps(
            [self._url, body, request.seed, request.key], sort_keys=True, default=str
        )
        try:
            async with idle():
                answer = await self._queue.ask(
                    hashlib.sha256(facts.encode()).hexdigest()[:48], body
                )
        except EndpointError as error:
            self.errors[error.kind or f"http_{error.status}"] += 1
            self._raise_for_all(error)
            raise
        reply = read_chat(answer, latency_s=0.0, address=self._url)
        if reply.failed:
            self.errors[f"finish_{reply.finish_reason}"[:60]] += 1
        return reply
