"""Requests that know nothing of each other: so many at a time, each reply noted before the next is
asked for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from hubkit.conversation import Message
from hubkit.errors import EndpointError, EndpointUnreachableError, MisconfiguredEndpointError
from hubkit.serving.client.endpoint import Endpoint


class Replies(Protocol):
    """Where replies are kept: a journal on disk."""

    def note(self, key: str, content: str, finish_reason: str) -> None:
        """Keep a reply under its key."""


Refused = Callable[[EndpointError], tuple[str, str]]
"""What a request that is refused is noted as: a content and a finish reason."""


def ask_all(
    endpoint: Endpoint,
    requests: Mapping[str, Sequence[Message]],
    replies: Replies,
    *,
    refused: Refused,
    seed: int,
    in_flight: int,
    step: Callable[[], None],
) -> None:
    """Send every one of `requests` (key → messages) to `endpoint`, which is closed at the end; note
    what comes back.

    Each is sampled with a seed of its own, drawn from `seed` and its key. `step` is called after
    each. Raises `EndpointUnreachableError` or `MisconfiguredEndpointError` for what concerns all of
    them: what is noted stays."""
    waiting = iter(requests.items())

    async def worker() -> None:
        for key, messages in waiting:
            try:
                reply = await endpoint.chat(
                    messages, seed=random.Random(f"{seed}/{key}").getrandbits(31)
                )
                replies.note(key, reply.content, reply.finish_reason)
            except (EndpointUnreachableError, MisconfiguredEndpointError):
                raise
            except EndpointError as error:
                replies.note(key, *refused(error))
            step()

    async def work() -> None:
        async with endpoint, asyncio.TaskGroup() as group:
            for _ in range(min(in_flight, len(requests))):
                group.create_task(worker())

    try:
        asyncio.run(work())
    except* EndpointError as failed:
        first = failed.exceptions[0]
    else:
        return
    raise first
