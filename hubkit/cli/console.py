"""What commands show: progress bars on stderr, tables and JSON on stdout."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hubkit.progress import Progress, silent
from hubkit.untrusted import printable

_LINE_EVERY_S = 10.0
_DIGEST = re.compile(r"\b[0-9a-f]{32,64}\b")


def say(line: str) -> None:
    """One line for the person, on stderr."""
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
        quiet: Show nothing.

    Yields:
        A function from a name to the `Progress` that draws its bar. A bar ends when ``done``
        reaches ``total``; a call with 1 of 1 ends any bar.
    """
    if quiet:
        yield lambda _: silent
    elif not sys.stderr.isatty():
        yield _lines
    else:
        with _live_bars() as bar_for:
            yield bar_for


def _lines(name: str) -> Progress:
    """Without a terminal: the first note, its changes every `_LINE_EVERY_S` seconds,
    and the last one; no line twice."""
    last_time, last_line = -_LINE_EVERY_S, ""

    def progress(done: float, total: float | None = None, note: str = "") -> None:
        nonlocal last_time, last_line
        now = time.monotonic()
        complete = bool(total) and done >= (total or 0)
        count = f" ({_amount(done)} of {_amount(total)})" if total and total > 1 else ""
        text = f"{name}: {short(note)}{count}"
        if note and text != last_line and (complete or now - last_time >= _LINE_EVERY_S):
            last_time, last_line = now, text
            say(text)

    return progress


def short(note: str) -> str:
    """`note` with commit ids and digests cut to eight characters."""
    return _DIGEST.sub(lambda match: match[0][:8], note)


def _amount(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


@contextmanager
def _live_bars() -> Iterator[Callable[[str], Progress]]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.fields[stage]:<8}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Bars(*columns, console=Console(stderr=True, markup=False), expand=False) as live:

        def bar_for(name: str) -> Progress:
            task_id = live.add_task(name, total=None, stage=name, note="", count="", left="")

            def progress(done: float, total: float | None = None, note: str = "") -> None:
                task = live.tasks[live.task_ids.index(task_id)]
                if total == 1 and done >= 1 and task.total and task.total > 1:
                    done, total = task.total, task.total  # the end of a bar that counted something
                count = f"{_amount(done)} of {_amount(total)}" if total and total > 1 else ""
                live.update(
                    task_id, completed=done, total=total, note=printable(short(note)), count=count
                )
                left_s = live.tasks[live.task_ids.index(task_id)].time_remaining
                live.update(task_id, left=_duration(left_s) if left_s and not task.finished else "")

            return progress

        yield bar_for


def _duration(seconds: float) -> str:
    """Time that is left, in the unit that a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"
