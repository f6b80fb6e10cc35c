"""Server processes: started, watched until they answer, and stopped with all that they started.

A process that hubkit starts holds the read end of a pipe as its standard input; the pipe closes
when hubkit ends, however violently. The embedded engine exits by itself then; every other server
runs under `supervisor`, which ends it. Each has a process group of its own, so a Ctrl-C in the
terminal reaches hubkit first and running requests can finish."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from hubkit.errors import EngineError
from hubkit.settings import ENGINE

STOP_GRACE_S = 10.0
_POLL_S = 0.05
_PROBE_TIMEOUT_S = 5.0
_TAIL_BYTES, _TAIL_LINES = 8000, 12
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HUGGINGFACE_TOKEN")


class ServerProcess(subprocess.Popen[bytes]):
    """A process that `spawn` has started.

    Attributes:
        mark: What its environment, and that of all that it starts, can be told by.
    """

    mark = ""


def spawn(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> ServerProcess:
    """Start `command` with its output appended to `log`.

    Args:
        command: Program and arguments.
        log: The file for standard output and error.
        env: The whole environment; None takes this process's.
        keep_open: Descriptors that the child inherits.

    Raises:
        EngineError: The program is not there or cannot be executed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid4().hex
    try:
        with log.open("ab") as sink:
            child = ServerProcess(
                command,
                stdin=subprocess.PIPE,  # its end tells the child that this process has ended
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**(os.environ if env is None else env), ENGINE: mark},
                start_new_session=True,
                pass_fds=keep_open,
            )
    except OSError as error:
        raise EngineError(
            f"the engine cannot be started with {command[0]}: {error.strerror}"
        ) from None
    child.mark = mark
    return child


def supervised(command: Sequence[str]) -> list[str]:
    """`command` under the supervisor, which ends it when standard input closes."""
    script = Path(__file__).with_name("supervisor.py")
    return [sys.executable, "-P", str(script), *command]


def wait_until(
    ready: Callable[[], bool],
    child: ServerProcess,
    log: Path,
    name: str,
    timeout_s: float,
) -> None:
    """Wait until `ready()`.

    Raises:
        EngineError: `child` ended, or `timeout_s` passed; with the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if child.poll() is not None:
            raise EngineError(
                f"{name} ended with exit code {child.returncode} before it was ready; "
                f"its log ends:\n{tail(log)}"
            )
        if time.monotonic() > deadline:
            raise EngineError(
                f"{name} was not ready after {timeout_s:g} s; its log ends:\n{tail(log)}"
            )
        time.sleep(_POLL_S)


def answers(url: str) -> bool:
    """Whether a GET of `url`, on loopback and past any proxy, is answered with a success."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_PROBE_TIMEOUT_S) as answer:
            return bool(200 <= answer.status < 300)
    except (OSError, ValueError):
        return False


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def without_secrets(env: Mapping[str, str]) -> dict[str, str]:
    """`env` without Hub tokens: an engine of another environment gets files, not access."""
    return {
        name: value
        for name, value in env.items()
        if name not in _SECRETS and not name.startswith("HUBKIT_ENDPOINT_TOKEN")
    }


def stop(child: ServerProcess) -> None:
    """End the process: close its standard input, ask its group to end, then kill what is left."""
    if child.stdin is not None:
        with suppress(OSError):
            child.stdin.close()
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(STOP_GRACE_S)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for process in _marked(child.mark):  # a supervisor that was killed itself leaves them
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)


def _marked(mark: str) -> list[int]:
    """Processes of this user that inherited `mark`; empty without /proc."""
    inherited = f"{ENGINE}={mark}".encode()
    pids = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if inherited in environ.read_bytes().split(b"\0"):
                pids.append(int(environ.parent.name))
    return pids


def tail(log: Path) -> str:
    """The last lines of a log."""
    with suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return "\n".join(lines[-_TAIL_LINES:]) or "(nothing)"
    return "(no log)"
