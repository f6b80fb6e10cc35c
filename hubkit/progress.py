"""How work says how far it is, without printing: it calls a `Progress`, and the command line
draws the bar.

What is shown follows rules that hold for every task (`Course`, `Log`): a count never falls, it
reads as complete only when all is done, and a log has a line only where the work has advanced."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

_DIGEST = re.compile(r"\b[0-9a-f]{32,64}\b")
_NUMBER = re.compile(r"\d[\d.,]*")
_RATE = re.compile(r"\d[\d.,]* \S+/s")
_STEADY_S = 5.0  # until a rate says something of the time that is left
_LINE_EVERY_S = 10.0
_SLOW_LINE_EVERY_S = 60.0  # for work that advances by less than a step
_STEP = 0.05  # of the work, between two lines of a log


class Progress(Protocol):
    """Called from time to time with what is done so far, out of `total` (None when unknown), and a
    short note.

    Where `total` is more than 1, the note reads on after the count, with what is counted first: 12
    of 60 "steps · loss 2.1". A `total` of 1 makes `completed` the share that is done; then no count
    is shown. 1 of 1 is the end.
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


def part(progress: Progress, number: int, parts: int, name: str, unit: str) -> Progress:
    """`progress` for one of `parts` equal parts of a longer task; `unit` says what a part is."""

    def partial(completed: float, total: float | None = None, note: str = "") -> None:
        share = completed / total if total else 0.0
        progress(number + min(share, 1.0), parts, f"{unit} · {name}")

    return partial


def stretch(progress: Progress, start: float, end: float, name: str = "") -> Progress:
    """`progress` for the stretch of a longer task from its share `start` to its share `end`; `name`
    is put before its notes."""

    def stretched(completed: float, total: float | None = None, note: str = "") -> None:
        if isinstance(note, Notice):
            progress(completed, total, note)
            return
        share = min(completed / total, 1.0) if total else 0.0
        text = f"{counted(completed, total)} {note}".strip()
        progress(start + share * (end - start), 1, f"{name} · {text}" if name else text)

    return stretched


def counted(completed: float, total: float | None) -> str:
    """The count as text; the whole of it only once all is done. Empty where nothing is counted."""
    if total is None or total <= 1:
        return ""
    whole = math.ceil(total)
    whole_done = whole if completed >= total else min(math.floor(completed), whole - 1)
    return f"{whole_done:,} of {whole:,}"


def short(note: str) -> str:
    """`note` with commit ids and digests cut to eight characters."""
    return _DIGEST.sub(lambda match: match[0][:8], note)


@dataclass(frozen=True, slots=True)
class Shown:
    """What there is to see of a task at one moment.

    Attributes:
        share: How much of the work is done, from 0 to 1; None when unknown.
        count: The same as a count, or empty.
        note: The note, digests cut short.
        left_s: Seconds that are left, as it looked at that moment; None when unknown.
        what: What is counted, so that a change of it is seen.
    """

    share: float | None
    count: str
    note: str
    left_s: float | None
    what: tuple[float | None, str]

    @property
    def text(self) -> str:
        """Count, note and the time that is left in one line."""
        line = f"{self.count} {self.note}".strip()
        return line if self.left_s is None else f"{line} · {time_left(self.left_s)}"


class Course:
    """One task from call to call: what was reached is not given up, and rates say what is left.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._what: tuple[float | None, str] | None = None
        self._best = self._before = self._since = 0.0

    def shown(self, completed: float, total: float | None, note: str) -> Shown:
        """What to show after this call of a `Progress`."""
        if isinstance(note, Notice):  # which says nothing of how far the work is
            return Shown(None, "", short(note), None, self._what or (None, ""))
        step = (total, _NUMBER.sub("", note.split(" · ")[0]) if total and total > 1 else "")
        over = total is not None and self._best >= total > completed
        if step != self._what or over:  # something else, or the same once more
            self._what, self._since = step, self._clock()
            self._best = self._before = completed
        self._best = max(self._best, completed)
        share = min(self._best / total, 1.0) if total else None
        count = counted(self._best, total)
        return Shown(share, count, short(note), self._left(total), step)

    def _left(self, total: float | None) -> float | None:
        gained, seconds = self._best - self._before, self._clock() - self._since
        if not total or gained <= 0 or self._best >= total or seconds < _STEADY_S:
            return None
        return seconds / gained * (total - self._best)


def time_left(seconds: float) -> str:
    """Time that is left, in the unit that a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"


class Log:
    """A `Progress` as lines: the first note, the end, every `Notice`, and between them a line where
    the work has advanced by a step, or something else than a number has changed.

    Args:
        name: Of the task, before each line.
        write: What takes a line.
        lasting: What takes a `Lasting` notice, where not `write`.
        clock: Seconds that only grow.
        every_s: Seconds between two lines, at least.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[str], None],
        *,
        lasting: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = _LINE_EVERY_S,
    ) -> None:
        self._name, self._write, self._lasting = name, write, lasting or write
        self._clock, self._every_s = clock, every_s
        self._course = Course(clock)
        self._said_at = -math.inf
        self._last: Shown | None = None
        self._last_text = ""

    def __call__(self, completed: float, total: float | None = None, note: str = "") -> None:
        shown = self._course.shown(completed, total, note)
        if not note or shown.text == self._last_text:
            return
        if isinstance(note, Notice):
            self._last_text = shown.text
            (self._lasting if isinstance(note, Lasting) else self._write)(
                f"{self._name}: {shown.text}"
            )
        elif self._is_due(shown):
            self._last, self._last_text, self._said_at = shown, shown.text, self._clock()
            self._write(f"{self._name}: {shown.text}")

    def _is_due(self, shown: Shown) -> bool:
        last, waited = self._last, self._clock() - self._said_at
        if last is None:
            return True
        if shown.share is not None and shown.what == last.what and last.share is not None:
            gained = shown.share - last.share
            if shown.share >= 1:
                return gained > 0 or _words(shown.note) != _words(last.note)
            if waited < self._every_s:
                return False
            if gained > _STEP - 1e-9 or _words(shown.note) != _words(last.note):
                return True
            moved = gained > 0 or _RATE.sub("", shown.note) != _RATE.sub("", last.note)
            return moved and waited >= _SLOW_LINE_EVERY_S
        return waited >= self._every_s or shown.share == 1


def _words(note: str) -> str:
    return _NUMBER.sub("", note)
