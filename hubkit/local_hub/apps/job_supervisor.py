"""`python -m hubkit.local_hub.apps.job_supervisor`: runs one command, watches its limits, and
leaves no process of it.

A process of its own between the Hub and a job. It ends the whole tree of the job's processes (also
those that left its process group) when the job is done, over its time or memory, told to stop, or
when its standard input closes: the Hub holds the other end, so that is the Hub's death, however
violent. It writes why it ended a job to ``--verdict``."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

_TICK_S = 0.1
_GRACE_S = 5.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    """Run the command; its exit status, or 137 when it was ended from here."""
    parser = argparse.ArgumentParser(
        prog="python -m hubkit.local_hub.apps.job_supervisor", description=__doc__
    )
    parser.add_argument("--timeout-s", type=float, required=True)
    parser.add_argument("--memory-mib", type=float, required=True)
    parser.add_argument("--verdict", type=Path, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stop_event = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: _request_stop(stop_event, number, frame))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_until_hub_ends, args=(stop_event,), daemon=True).start()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _prctl(
                _PR_SET_PDEATHSIG, signal.SIGKILL
            ),  # should this process itself be killed
        )
    except OSError as error:
        sys.stdout.write(f"{command[0]}: {error.strerror}\n")
        return 127
    status, verdict = _watch(child.pid, stop_event, options.timeout_s, options.memory_mib)
    if verdict:
        options.verdict.write_text(verdict, "utf-8")
    return status


def _prctl(option: int, value: int) -> None:
    """Linux's prctl; elsewhere nothing, and the process group must do."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _request_stop(stop_event: threading.Event, number: int, frame: FrameType | None) -> None:
    stop_event.set()


def _until_hub_ends(stop_event: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop_event.set()


def _watch(
    child: int, stop_event: threading.Event, timeout_s: float, memory_mib: float
) -> tuple[int, str]:
    """(exit status, why it was ended from here, or nothing)."""
    started, looked = time.monotonic(), 0.0
    while True:
        status = _reap(child)
        if status is not None:
            _end(child, grace_s=0)
            return status, ""
        now = time.monotonic()
        verdict = (
            "canceled" if stop_event.is_set() else "timeout" if now - started > timeout_s else ""
        )
        if not verdict and now - looked > 1:
            looked = now
            verdict = "memory" if _memory_mib() > memory_mib else ""
        if verdict:
            _end(child, grace_s=0 if verdict == "memory" else _GRACE_S)
            return 137, verdict
        stop_event.wait(_TICK_S)


def _reap(child: int) -> int | None:
    """Collect what has ended; the child's exit status once it has."""
    exit_status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                exit_status = code if code >= 0 else 128 - code
    return exit_status


def _end(child: int, *, grace_s: float) -> None:
    """Ask the job's group, wait, then kill everything below this process until nothing is left."""
    if grace_s:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and _reap(child) is None and _below():
            time.sleep(_TICK_S)
    for _ in range(100):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        below = _below()
        for pid in below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap(child)
        if not below:
            return
        time.sleep(0.02)


def _below() -> list[int]:
    """Every living process below this one (on Linux; elsewhere none is found)."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = entry.read_text("utf-8", "replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(entry.parent.name)] = int(fields[1])
    descendants, todo = [], [os.getpid()]
    while todo:
        above = todo.pop()
        children = [pid for pid, parent in parents.items() if parent == above]
        descendants += children
        todo += children
    return descendants


def _memory_mib() -> float:
    """What the job's processes hold in memory together."""
    total = 0
    for pid in _below():
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return total * resource.getpagesize() / 2**20


if __name__ == "__main__":
    sys.exit(main())
