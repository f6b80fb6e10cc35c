"""How long a piece of work takes, in all the processes that it takes: a killed one counts too."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hubkit.files import write_whole
from hubkit.progress import Progress

_KEPT_EVERY_S = 10.0


class Stopwatch:
    """Seconds of work since it was first begun; time between two processes is not counted.

    Args:
        path: The file that carries the seconds from one process to the next.
        clock: Seconds that only grow.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._before = 0.0
        with suppress(OSError, ValueError):  # not there, or cut short: counted from now on
            self._before = max(0.0, float(path.read_text("utf-8")))
        self._started = self._kept_at = clock()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + self._clock() - self._started

    def keep(self) -> None:
        """Write the seconds down for the process that resumes."""
        write_whole(self._path, f"{self.seconds:.3f}")
        self._kept_at = self._clock()

    def kept_by(self, progress: Progress) -> Progress:
        """`progress`, which also keeps the seconds from time to time, so that a kill loses few."""

        def keeping(completed: float, total: float | None = None, note: str = "") -> None:
            if self._clock() - self._kept_at >= _KEPT_EVERY_S:
                self.keep()
            progress(completed, total, note)

        return keeping
