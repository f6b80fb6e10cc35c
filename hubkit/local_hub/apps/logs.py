"""The output of child processes: kept line by line with its time, sent to clients as server-sent
events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from hubkit.local_hub.storage.accounts import now

MAX_LOG_BYTES = 16 * 2**20
KEEP_ALIVE_S = 30.0
EVENTS = "text/event-stream"


def note(path: Path, text: str) -> None:
    """Add one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        out.write(_line(text))


def keep(path: Path, output: IO[bytes], source: str) -> None:
    """Everything that `source` (Job, Application) prints, one event a line, until it ends."""
    note(path, f"===== {source} started at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} =====")
    size = 0
    with path.open("a", encoding="utf-8") as out:
        for raw in output:
            size += len(raw)
            if size <= MAX_LOG_BYTES:
                out.write(_line(raw.decode("utf-8", "replace").rstrip("\r\n")))
                out.flush()
    if size > MAX_LOG_BYTES:
        note(path, f"(the log was cut off after {MAX_LOG_BYTES} bytes)")


def _line(text: str) -> str:
    return json.dumps({"data": text, "timestamp": now()}, ensure_ascii=False) + "\n"


def last_lines(path: Path, lines: int) -> list[str]:
    """The end of a log, without blank lines and those that say when something started."""
    texts = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes()[-64_000:].splitlines():
            with contextlib.suppress(ValueError, KeyError):
                texts.append(str(json.loads(line)["data"]).rstrip())
    return [line for line in texts if line and not line.startswith("=====")][-lines:]


async def events(path: Path, is_over: Callable[[], bool]) -> AsyncIterator[str]:
    """The log as server-sent events: what there is, then what comes, until nothing more will."""
    position, quiet_since = 0, time.monotonic()
    while True:
        lines, over = await asyncio.to_thread(_news, path, position, is_over)
        for line in lines:
            position += len(line)
            quiet_since = time.monotonic()
            yield f"data: {line.decode()}\n"
        if over and not lines:
            return
        if time.monotonic() - quiet_since > KEEP_ALIVE_S:
            quiet_since = time.monotonic()
            yield ": keep-alive\n\n"
        await asyncio.sleep(0 if lines else 0.2)


def _news(path: Path, position: int, is_over: Callable[[], bool]) -> tuple[list[bytes], bool]:
    """Whole lines after `position`, and whether nothing more was coming when we looked."""
    over = is_over()
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(position)
        return [
            line for line in file.read(1 << 20).splitlines(keepends=True) if line.endswith(b"\n")
        ], over
    return [], over
