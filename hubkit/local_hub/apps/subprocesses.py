"""Child processes that must not outlive this one: started, waited for, ended with everything below
them.

Each child holds the read end of a pipe as its standard input and ends when that closes, so it goes
with this process however that ends. It leads a process group of its own, so that ending it ends
what it started there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from hubkit.loopback import CLIENT_TIMEOUTS
from hubkit.openmp import SPIN_COUNT

STOP_GRACE_S = 5.0

_INHERITED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    SPIN_COUNT,
    "VIRTUAL_ENV",
)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a child gets to see: a short list of this process's variables (no token among them), the
    time that it gives this Hub to answer, and `extra`.
    """
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, **CLIENT_TIMEOUTS, **extra}


def supervised(
    command: Sequence[str], *, timeout_s: float, memory_mib: float, verdict: Path
) -> list[str]:
    """`command` under limits; which of them ended it is written to `verdict` (`job_supervisor`)."""
    guard = [
        sys.executable,
        "-m",
        "hubkit.local_hub.apps.job_supervisor",
        "--timeout-s",
        str(timeout_s),
    ]
    return [*guard, "--memory-mib", str(memory_mib), "--verdict", str(verdict), "--", *command]


class ChildProcess:
    """One process and its group."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, output: IO[bytes] | int
    ) -> None:
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def output(self) -> IO[bytes]:
        """What it prints, where `output` was a pipe."""
        assert self._process.stdout is not None
        return self._process.stdout

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """The exit status, waited for. Raises `subprocess.TimeoutExpired`."""
        return self._process.wait(timeout_s)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Ask, then insist; afterwards nothing of the group is left."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def last_words(log: Path, lines: int = 3) -> str:
    """The end of a log in one line."""
    with contextlib.suppress(OSError):
        text = log.read_bytes()[-4000:].decode("utf-8", "replace")
        spoken_lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " / ".join(spoken_lines[-lines:])[-600:] or "it said nothing"
    return "it said nothing"
