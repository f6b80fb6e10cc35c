"""How a room says how far it is, without printing: it calls a `Progress`, and the command line
draws the bar.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from time to time with what is done so far, out of `total` (None when unknown), and a
    short note.
    """

    def __call__(self, done: float, total: float | None = None, note: str = "") -> None: ...


def silent(done: float, total: float | None = None, note: str = "") -> None:
    """The `Progress` that shows nothing."""
