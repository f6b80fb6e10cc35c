"""How work says how far it is, without printing: it calls a `Progress`, and the command line
draws the bar.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from time to time with what is done so far, out of `total` (None when unknown), and a
    short note.
    """

    def __call__(self, completed: float, total: float | None = None, note: str = "") -> None: ...


class Notice(str):
    """A note that is shown at once, also where notes are thinned out, as in a log."""

    __slots__ = ()


class Lasting(Notice):
    """A notice to be read later too: it gets a line of its own, which no other note replaces, also
    where progress is not shown.
    """

    __slots__ = ()


def silent(completed: float, total: float | None = None, note: str = "") -> None:
    """The `Progress` that shows nothing."""


def part(progress: Progress, number: int, parts: int, name: str) -> Progress:
    """`progress` for one of `parts` equal parts of a longer task."""

    def partial(completed: float, total: float | None = None, note: str = "") -> None:
        share = completed / total if total else 0.0
        progress(number + share, parts, name)

    return partial
