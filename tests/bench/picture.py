"""A picture of a run, as a terminal shows it at its end: runs a command on a pseudo-terminal, draws
the screen as SVG.

python tests/bench/picture.py OUT.svg -- hubkit run parrot --profile laptop
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import sys
import termios
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, LINES = 128, 60


def main() -> None:
    """Record, draw, and end as the command ended."""
    out, separator, *command = sys.argv[1:]
    assert separator == "--", __doc__
    screen, status = record(command)
    Path(out).write_text(svg(" ".join(command), screen), "utf-8")
    sys.exit(status)


def svg(command: str, screen: pyte.Screen) -> str:
    """`screen` below the command that filled it."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ {command}", style="bold"))
    for text in drawn(screen):
        console.print(text)
    return console.export_svg(title="hubkit")


def record(command: list[str]) -> tuple[pyte.Screen, int]:
    """The screen when `command` has ended, and its exit status."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # how Linux tells that the other side has gone
            break
        if not data:
            break
        stream.feed(data)
    return screen, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def drawn(screen: pyte.Screen) -> list[Text]:
    """The lines of `screen` with their colours, empty ones at the end left out."""
    lines = []
    for number in range(screen.lines):
        text = Text()
        for column in range(screen.columns):
            cell = screen.buffer[number][column]
            text.append(cell.data, Style(color=colour(cell.fg), bold=cell.bold, dim=False))
        text.rstrip()
        lines.append(text)
    while lines and not lines[-1].plain.strip():
        lines.pop()
    return lines


def colour(name: str) -> str | None:
    """pyte's colour names as rich takes them."""
    if name == "default":
        return None
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return f"#{name}"
    return {"brown": "yellow"}.get(
        name, name.replace("bright", "bright_") if name.startswith("bright") else name
    )


if __name__ == "__main__":
    main()
