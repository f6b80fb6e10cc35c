"""Work done by a fork of this process: quick to start, its crash is its own, and it can be killed
at a chosen step instead of after a chosen time.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CRASHED = 70
_CHANGES = frozenset(
    "os.rename os.remove os.mkdir os.rmdir os.chmod os.truncate os.utime sqlite3.connect".split()  # noqa: SIM905
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Ended:
    """How a fork ended: exit status (negative: the signal), its output, and what it returned."""

    status: int
    said: str
    result: Any

    @property
    def crashed(self) -> bool:
        """Whether an exception came out of it."""
        return self.status == CRASHED or "Traceback" in self.said


def in_fork(work: Callable[[], Any], *, killed_at: tuple[Path, int] | None = None) -> Ended:
    """Run `work` in a fork and wait for it.

    Args:
        work: Returns what JSON can hold.
        killed_at: A folder and n: SIGKILL before the n-th change to files below the folder.
    """
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.close(read_end)
            _run(work, output.fileno(), write_end, killed_at)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            result = pipe.read()
        _, status = os.waitpid(child, 0)
        output.seek(0)
        said = output.read().decode("utf-8", "replace")
    return Ended(os.waitstatus_to_exitcode(status), said, json.loads(result) if result else None)


def _run(
    work: Callable[[], Any], output: int, pipe: int, killed_at: tuple[Path, int] | None
) -> None:
    status = CRASHED
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - the fork ends with it
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        logging.getLogger().handlers.clear()
        if killed_at is not None:
            sys.addaudithook(_killer(*killed_at))
        with os.fdopen(pipe, "wb") as file:
            file.write(json.dumps(work()).encode())
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _killer(folder: Path, number: int) -> Callable[[str, tuple[Any, ...]], None]:
    """A hook that kills this process before its `number`-th change to files below `folder`."""
    left, below = [number], str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        if not (writes or event in _CHANGES):
            return
        if below in os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else False:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def hub_command(root: Path, action: str, *options: str) -> Callable[[], Any]:
    """``python -m hubkit.local_hub ACTION`` as work for a fork; it ends with the exit status."""

    def work() -> None:
        from hubkit.local_hub.__main__ import main

        sys.argv = ["hubkit.local_hub", action, "--root", str(root), "--json", *options]
        sys.exit(main())

    return work


def run_hub_command(root: Path, action: str, *options: str) -> tuple[int, dict[str, Any], str]:
    """The exit status of such a command, the JSON that it printed (empty without), and all that it
    said.
    """
    ended = in_fork(hub_command(root, action, *options))
    assert not ended.crashed, ended.said
    return ended.status, _printed(ended.said.splitlines()), ended.said


def _printed(lines: Sequence[str]) -> dict[str, Any]:
    for line in lines:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return {}


def grown_mib(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns in a fork, and by how many MiB the fork's memory was larger at most."""

    def measured() -> list[Any]:
        Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew
        before = _status_mib("VmRSS")
        result = work()
        return [result, _status_mib("VmHWM") - before]

    ended = in_fork(measured)
    assert ended.status == 0, ended.said
    return ended.result[0], ended.result[1]


def _status_mib(name: str) -> float:
    status = Path("/proc/self/status").read_text("ascii", "replace")
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024
