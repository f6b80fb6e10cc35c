"""What commands show: progress bars on stderr, tables and JSON on stdout."""

from __future__ import annotations

import json
import math
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from hubkit.cli import logs
from hubkit.progress import Lasting, Notice, Progress
from hubkit.untrusted import printable

_LINE_EVERY_S = 10.0
_STEADY_S = 5.0  # until a rate says something of the time that is left
_DIGEST = re.compile(r"\b[0-9a-f]{32,64}\b")


def say(line: str) -> None:
    """One line for the person, on stderr."""
    logs.seen(line)
    print(printable(line), file=sys.stderr, flush=True)


def line(text: str) -> None:
    """One line of the result, on stdout."""
    print(printable(text), flush=True)


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

    grid = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*("" if cell is None else printable(str(cell)) for cell in row))
    console = Console(file=sys.stdout, highlight=False, markup=False)
    console.width = max(console.width, 120 if not sys.stdout.isatty() else 0)
    console.print(printable(title), style="bold")
    console.print(grid)


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
        if quiet:
            yield lambda name: _lines(name, logs.seen, lasting=say)
        elif logs.is_verbose() or not sys.stderr.isatty():
            yield _lines
        else:
            with _live_bars() as bar_for:
                yield lambda name: _both(bar_for(name), _lines(name, logs.seen))


def _both(first: Progress, second: Progress) -> Progress:
    """One `Progress` that calls both."""

    def progress(completed: float, total: float | None = None, note: str = "") -> None:
        first(completed, total, note)
        second(completed, total, note)

    return progress


@contextmanager
def _interrupts_answered() -> Iterator[None]:
    """Ctrl-C says at once that it was heard; what was under way may take a moment to end.

    Python writes each signal's number to a descriptor as it comes in; a thread reads it there. The
    handler stays Python's own, which asyncio looks for before it cancels what it runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def answer() -> None:
        while number := reader.recv(1):
            if number[0] == signal.SIGINT:
                with suppress(RuntimeError):  # in the middle of another line
                    say("stopping; what is running ends first")

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


def _lines(
    name: str, write: Callable[[str], None] = say, *, lasting: Callable[[str], None] | None = None
) -> Progress:
    """Without a terminal: the first note, its changes every `_LINE_EVERY_S` seconds, the last one,
    and every `Notice`; no line twice. `lasting`: what writes a `Lasting` notice, where not `write`.
    """
    last_time, last_line = -_LINE_EVERY_S, ""

    def progress(completed: float, total: float | None = None, note: str = "") -> None:
        nonlocal last_time, last_line
        now = time.monotonic()
        complete = bool(total) and completed >= (total or 0)
        count = f" ({_amount(completed)} of {_amount(total)})" if total and total > 1 else ""
        text = f"{name}: {short(note)}{count}"
        due = complete or isinstance(note, Notice) or now - last_time >= _LINE_EVERY_S
        if note and text != last_line and due:
            last_time, last_line = now, text
            with suppress(RuntimeError):  # a notice of a signal, in the middle of another line
                (lasting or write if isinstance(note, Lasting) else write)(text)

    return progress


def short(note: str) -> str:
    """`note` with commit ids and digests cut to eight characters."""
    return _DIGEST.sub(lambda match: match[0][:8], note)


def _amount(value: float | None) -> str:
    return "?" if value is None else f"{math.floor(value):,}"


@contextmanager
def _live_bars() -> Iterator[Callable[[str], Progress]]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    console = Console(stderr=True, markup=False)
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.fields[stage]:<8}"),
        BarColumn(bar_width=16 if console.width >= 100 else 8),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        # Alone gives way where the terminal is narrow.
        TextColumn(
            "{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
    )
    with Bars(*columns, console=console, expand=True) as live:

        def bar_for(name: str) -> Progress:
            task_id = live.add_task(name, total=None, stage=name, note="", count="", left="")
            task = live.tasks[live.task_ids.index(task_id)]
            counted, started_at, done_before = 0.0, time.monotonic(), 0.0

            def progress(completed: float, total: float | None = None, note: str = "") -> None:
                nonlocal counted, started_at, done_before
                if isinstance(note, Lasting):
                    console.print(f"{name}: {printable(short(note))}", highlight=False)
                    return
                if total is not None and total > 1:
                    counted = total
                elif total is not None and completed >= 1 and counted:
                    completed = total = counted  # the end of a bar that counted something
                if total != task.total:
                    started_at, done_before = time.monotonic(), completed
                    if total is None:  # `update` takes None for "as before"
                        task.total = task.finished_time = None
                count = f"{_amount(completed)} of {_amount(total)}" if total and total > 1 else ""
                seconds, gained = time.monotonic() - started_at, completed - done_before
                time_left = ""
                if total and gained > 0 and completed < total and seconds >= _STEADY_S:
                    time_left = _duration(seconds / gained * (total - completed))
                if isinstance(note, Notice):  # which needs the room, and ends the count
                    count = time_left = ""
                live.update(
                    task_id,
                    completed=completed,
                    total=total,
                    note=printable(short(note)),
                    count=count,
                    left=time_left,
                )

            return progress

        yield bar_for


def _duration(seconds: float) -> str:
    """Time that is left, in the unit that a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"
