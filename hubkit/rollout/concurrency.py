"""How many dialogues may be at work at once. One that only waits gives its permit to another, and
comes back first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Permits:
    """`count` permits. Those who had one before are served before newcomers."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._returning: deque[asyncio.Future[None]] = deque()
        self._new: deque[asyncio.Future[None]] = deque()

    async def take(self, *, returning: bool = False) -> None:
        """Wait for a permit."""
        if self._free and not self._returning and (returning or not self._new):
            self._free -= 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._returning if returning else self._new).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give()
            raise

    def give(self) -> None:
        """Give a permit back."""
        self._free += 1
        for queue in (self._returning, self._new):
            while queue and self._free:
                future = queue.popleft()
                if not future.done():
                    self._free -= 1
                    future.set_result(None)


class Permit:
    """One dialogue's permit, held from its start to its end but for the times when it idles."""

    def __init__(self, permits: Permits) -> None:
        self._permits = permits
        self.held = True

    @asynccontextmanager
    async def idle(self) -> AsyncIterator[None]:
        """Let another work meanwhile. When cancelled in here, the permit is not taken back."""
        self._permits.give()
        self.held = False
        yield
        await self._permits.take(returning=True)
        self.held = True

    def give_back(self) -> None:
        """The dialogue is over."""
        if self.held:
            self.held = False
            self._permits.give()
