"""What commands show: progress bars on stderr, tables and JSON on stdout."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from hubkit.cli import logs
from hubkit.progress import Course, Lasting, Log, Notice, Progress, short, time_left
from hubkit.untrusted import printable

_ECHO = len("^C^C")
# A line that another thread says while bars are drawn for the last time would draw them once more.
_speaking = threading.RLock()
_HEAD_WORD = 12  # a column's name is not broken within words up to this length


def say(line: str) -> None:
    """One line for the person, on stderr; a terminal shows it broken between words."""
    logs.seen(line)
    show(line)


def show(line: str) -> None:
    """As `say`, without a line in the log."""
    text = printable(line)
    if sys.stderr.isatty():
        text = "\n".join(map(_broken_between_words, text.split("\n")))
    with _speaking:
        print(text, file=sys.stderr, flush=True)


def _broken_between_words(line: str) -> str:
    return "\n".join(
        textwrap.wrap(
            line,
            shutil.get_terminal_size().columns,
            break_on_hyphens=False,
            replace_whitespace=False,
        )
    )


def line(text: str) -> None:
    """A line of the result, or several, on stdout; a terminal shows each broken between words,
    unless it is indented, as what is to be copied is."""
    text_shown = printable(text)
    if sys.stdout.isatty():
        text_shown = "\n".join(
            line if line.startswith(" ") else _broken_between_words(line)
            for line in text_shown.split("\n")
        )
    print(text_shown, flush=True)


def data(value: Any) -> None:
    """The command's result as JSON, on stdout."""
    plain = (sys.stdout.encoding or "").lower().replace(
        "-", ""
    ) != "utf8"  # a terminal that cannot say everything
    print(json.dumps(value, indent=1, default=str, ensure_ascii=plain))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, show_header=any(columns))
    for column in columns:
        longest_word = max(map(len, column.split()), default=0)
        grid.add_column(column, overflow="fold", min_width=min(longest_word, _HEAD_WORD))
    for row in rows:
        grid.add_row(*("" if cell is None else printable(str(cell)) for cell in row))
    console = Console(file=sys.stdout, highlight=False, markup=False)
    console.width = max(console.width, 120 if not sys.stdout.isatty() else 0)
    console.print(printable(title), style="bold")
    console.print(grid)


def wait_for_signal() -> None:
    """Wait for SIGINT or SIGTERM, and leave the next one to whoever had it before."""
    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopped.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while not stopped.wait(1.0):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def bars(*, quiet: bool = False) -> Iterator[Callable[[str], Progress]]:
    """Show one progress bar for each name on a terminal, and plain lines elsewhere.

    Args:
        quiet: Show nothing but what is to be read later too.

    Yields:
        A function from a name to the `Progress` that draws its bar. A bar ends when ``completed``
        reaches ``total``; a call with 1 of 1 ends any bar.
    """
    with _interrupts_answered():
        if quiet or logs.is_verbose() or not sys.stderr.isatty():
            write = logs.seen if quiet else say
            yield _told_once(lambda name: Log(name, _guarded(write), lasting=_guarded(say)))
        else:
            with _live_bars() as bar_for:
                yield _told_once(lambda name: _both(bar_for(name), Log(name, logs.seen)))


def _told_once(bar_for: Callable[[str], Progress]) -> Callable[[str], Progress]:
    """`bar_for`, where what is to be read later is told by one bar only, as several stages may use
    the same engine."""
    told: set[str] = set()

    def told_once(name: str) -> Progress:
        bar = bar_for(name)

        def progress(completed: float, total: float | None = None, note: str = "") -> None:
            if isinstance(note, Lasting):
                if note in told:
                    return
                told.add(note)
            bar(completed, total, note)

        return progress

    return told_once


def _guarded(write: Callable[[str], None]) -> Callable[[str], None]:
    """`write`, also from a signal that comes in the middle of another line."""

    def guarded(text: str) -> None:
        with suppress(RuntimeError):
            write(text)

    return guarded


def _both(first: Progress, second: Progress) -> Progress:
    """One `Progress` that calls both."""

    def progress(completed: float, total: float | None = None, note: str = "") -> None:
        first(completed, total, note)
        second(completed, total, note)

    return progress


@contextmanager
def _interrupts_answered() -> Iterator[None]:
    """Ctrl-C says at once that it was heard; what was under way may take a moment to end, and
    another one does not wait for it.

    Python writes each signal's number to a descriptor as it comes in; a thread reads it there. The
    handler stays Python's own, which asyncio looks for before it cancels what it runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def answer() -> None:
        sentences = iter(
            ["stopping; what is running ends first; press again to stop now", "stopping now"]
        )
        while number := reader.recv(1):
            if number[0] == signal.SIGINT and (sentence := next(sentences, None)):
                with suppress(RuntimeError):  # in the middle of another line
                    say(sentence)

    thread = threading.Thread(target=answer, daemon=True, name="hubkit-ctrl-c")
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        writer.close()
        thread.join()
        reader.close()


@contextmanager
def _live_bars() -> Iterator[Callable[[str], Progress]]:
    from rich.console import Console, RenderableType
    from rich.constrain import Constrain
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bars
    from rich.table import Column
    from rich.text import Text

    console = Console(stderr=True, markup=False)

    class NoteColumn(ProgressColumn):
        """What alone gives way where the terminal is narrow: a note is cut, a notice broken."""

        def render(self, task: Task) -> Text:
            whole = task.fields["whole"]
            return Text(task.fields["note"], no_wrap=not whole, overflow="ellipsis")

    class LeftColumn(ProgressColumn):
        """The time that is left, less what has gone by since the work last said how far it is;
        nothing once that is more."""

        def render(self, task: Task) -> Text:
            ends_at = task.fields["ends_at"]
            left_s = 0.0 if ends_at is None else ends_at - time.monotonic()
            return Text(time_left(left_s) if left_s > 0 else "")

    class BarsBesideEcho(Bars):
        """Bars that leave room for the terminal's own ``^C^C``, which would begin a new line below
        them: they would be drawn once more, and not over themselves."""

        def get_renderable(self) -> RenderableType:
            return Constrain(super().get_renderable(), console.width - _ECHO)

        def stop(self) -> None:
            """End them, and let no line in between."""
            with _speaking:
                super().stop()

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.fields[stage]:<8}"),
        BarColumn(bar_width=16 if console.width >= 100 else 8),
        TimeElapsedColumn(),
        LeftColumn(),
        NoteColumn(table_column=Column(ratio=1)),
    )
    with BarsBesideEcho(*columns, console=console, expand=True) as live:

        def begin(name: str) -> Task:
            task_id = live.add_task(
                name, total=None, stage=name, note="", ends_at=None, whole=False
            )
            return live.tasks[live.task_ids.index(task_id)]

        def bar_for(name: str) -> Progress:
            task: Task | None = None  # until there is something to show
            course = Course()

            def progress(completed: float, total: float | None = None, note: str = "") -> None:
                nonlocal task
                if isinstance(note, Lasting):
                    console.print(f"{name}: {printable(short(note))}", highlight=False)
                    return
                task = task or begin(name)
                shown = course.shown(completed, total, note)
                if isinstance(note, Notice):  # which needs the room
                    live.update(task.id, note=printable(shown.note), ends_at=None, whole=True)
                    return
                if shown.share is None:  # `update` takes None for "as before"
                    task.total = task.finished_time = None
                live.update(
                    task.id,
                    completed=shown.share or 0.0,
                    total=None if shown.share is None else 1.0,
                    note=printable(f"{shown.count} {shown.note}".strip()),
                    ends_at=None if shown.left_s is None else time.monotonic() + shown.left_s,
                    whole=False,
                )

            return progress

        yield bar_for
