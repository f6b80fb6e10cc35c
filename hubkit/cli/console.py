"""What commands show: progress bars on stderr, tables and JSON on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hubkit.progress import Progress, silent
from hubkit.untrusted import printable

_LINE_EVERY_S = 10.0


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

    shown = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*("" if cell is None else printable(str(cell)) for cell in row))
    console = Console(file=sys.stdout, highlight=False, markup=False)
    console.width = max(console.width, 120 if not sys.stdout.isatty() else 0)
    console.print(printable(title), style="bold")
    console.print(shown)


@contextmanager
def bars(*, quiet: bool = False) -> Iterator[Callable[[str], Progress]]:
    """One progress bar per name: give a name, get the `Progress` that draws it. On a pipe, one line
    per new note.
    """
    if quiet:
        yield lambda _: silent
    elif not sys.stderr.isatty():
        yield _lines
    else:
        with _live_bars() as bar_for:
            yield bar_for


def _lines(name: str) -> Progress:
    """Without a terminal: a stage's first note, then its latest one every `_LINE_EVERY_S`
    seconds.
    """
    spoke = -_LINE_EVERY_S

    def progress(done: float, total: float | None = None, note: str = "") -> None:
        nonlocal spoke
        now = time.monotonic()
        if note and (now - spoke >= _LINE_EVERY_S or (total and done >= total)):
            spoke = now
            count = f" ({done:.0f} of {total:.0f})" if total else ""
            say(f"{name}: {note}{count}")

    return progress


@contextmanager
def _live_bars() -> Iterator[Callable[[str], Progress]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.fields[stage]:<8}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=Console(stderr=True, markup=False)) as live:

        def bar_for(name: str) -> Progress:
            task = live.add_task(name, total=None, stage=name, note="")

            def progress(done: float, total: float | None = None, note: str = "") -> None:
                live.update(
                    task,
                    completed=int(done),
                    total=None if total is None else int(total),
                    note=printable(note),
                )

            return progress

        yield bar_for
