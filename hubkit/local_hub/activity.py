"""How busy the server is."""

from __future__ import annotations

import time


class Activity:
    """Open requests, and when the last one ended."""

    def __init__(self) -> None:
        self._open = 0
        self._last = time.monotonic()

    def begin(self) -> None:
        """A request came in."""
        self._open += 1

    def end(self) -> None:
        """A request was answered."""
        self._open -= 1
        self._last = time.monotonic()

    def restart_clock(self) -> None:
        """Count idle seconds from now on."""
        self._last = time.monotonic()

    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while one is open."""
        return 0.0 if self._open else time.monotonic() - self._last
