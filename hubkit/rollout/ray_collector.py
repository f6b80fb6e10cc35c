"""Where the parts of a run meet their driver: an actor that holds shards until the driver has
them.
"""

from __future__ import annotations

import asyncio
import itertools

from hubkit.rollout.ray_worker import PartStatus


class Collector:
    """Shards on their way, how each part is doing, and whether all are to stop. A Ray
    actor.
    """

    def __init__(self) -> None:
        self._tickets = itertools.count()
        self._shards: dict[int, bytes] = {}
        self._taken: dict[int, asyncio.Event] = {}
        self._attempts: dict[int, int] = {}
        self._statuses: dict[int, PartStatus] = {}
        self._halted = False

    async def begin(self, part: int, attempt: int) -> None:
        """`part` is begun for the `attempt`-th time: earlier workers of it count no more."""
        self._attempts[part] = attempt

    async def take(self, part: int, attempt: int, data: bytes) -> bool:
        """Hold a shard until the driver has it. False when a later worker has taken the part
        over.
        """
        if self._attempts.get(part) != attempt:
            return False
        ticket = next(self._tickets)
        self._shards[ticket], self._taken[ticket] = data, asyncio.Event()
        await self._taken[ticket].wait()
        del self._taken[ticket]
        return True

    async def waiting(self) -> list[tuple[int, bytes]]:
        """The shards that the driver does not have yet, each once."""
        shards = list(self._shards.items())
        self._shards.clear()
        return shards

    async def done(self, ticket: int) -> None:
        """The driver has a shard."""
        self._taken[ticket].set()

    async def note(self, part: int, attempt: int, status: PartStatus) -> bool:
        """How a part is doing. False when it is to stop."""
        if self._attempts.get(part) == attempt:
            self._statuses[part] = status
        return not self._halted and self._attempts.get(part) == attempt

    async def statuses(self) -> dict[int, PartStatus]:
        """The last word of each part."""
        return self._statuses

    async def halt(self) -> None:
        """Stop all parts."""
        self._halted = True
