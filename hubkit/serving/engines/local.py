"""Starts the embedded engine as a child process and gives its addresses; stops the whole child
afterwards.

The engine is a separate program seen only as URLs. It holds the read end of a pipe as its standard
input and exits when that closes, so it dies with this process even on ``kill -9``. It has a process
group of its own: a Ctrl-C in the terminal reaches us first, and running requests can finish."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hubkit.errors import EngineError
from hubkit.serving.engines.scratch_folder import scratch_folder

_STOP_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine: its URL for each name that it serves, its process id, and where it writes
    its log.
    """

    addresses: dict[str, str]
    pid: int
    log_path: Path


@contextmanager
def start_engine(
    model: str,
    adapters: Mapping[str, str] | None = None,
    *,
    listen: Sequence[str] = (),
    port: int = 0,
    env: Mapping[str, str] | None = None,
    log_path: Path | None = None,
    cache_dir: Path | None = None,
    engine: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    slots: int | None = None,
    max_concurrent: int | None = None,
    start_timeout_s: float = 600.0,
    python: str = sys.executable,
) -> Iterator[Engine]:
    """Serve `model` (``repo_id[@revision]`` or a folder) with `adapters` (name → repo or folder)
    until the block ends.

    `listen` are the names that each get an address of their own on loopback (an adapter's name, or
    ``base``); without any, there is one address. `port` is the first address's (0: any free one).
    `env` is laid over this process's environment (so that the engine finds the same Hub). Values
    that are None are left to the engine. Raises `EngineError`, with the end of its log, when it
    does not come up within `start_timeout_s` or dies before."""
    with scratch_folder() as (scratch, lock):
        state = scratch / "state.json"
        log = log_path or scratch / "engine.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = _command(python, model, adapters or {}, listen, state, port)
        options = {
            "cache-dir": cache_dir,
            "engine": engine,
            "dtype": dtype,
            "threads": threads,
            "context": context,
        }
        options |= {"slots": slots, "max-concurrent": max_concurrent}
        for name, value in options.items():
            command += [] if value is None else [f"--{name}", str(value)]
        child = _spawn(command, env or {}, log, lock)
        try:
            yield Engine(
                _wait_until_ready(child, state, log, model, start_timeout_s), child.pid, log
            )
        finally:
            _stop(child)


def _command(
    python: str,
    model: str,
    adapters: Mapping[str, str],
    listen: Sequence[str],
    state: Path,
    port: int,
) -> list[str]:
    command = [
        python,
        "-m",
        "hubkit.local_engine",
        "--model",
        model,
        "--state-file",
        str(state),
        "--exit-with-parent",
    ]
    for name, source in adapters.items():
        command += ["--adapter", f"{name}={source}"]
    for i, name in enumerate(listen):
        command += ["--listen", f"127.0.0.1:{0 if i else port}={name}"]
    return command if listen else [*command, "--listen", f"127.0.0.1:{port}"]


def _spawn(
    command: Sequence[str], env: Mapping[str, str], log: Path, lock: int
) -> subprocess.Popen[bytes]:
    try:
        with log.open("ab") as sink:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # held open for as long as we live; its end is the engine's sign to exit
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                start_new_session=True,
                pass_fds=[lock],  # its folder stays as long as it lives, whatever becomes of us
            )
    except OSError as error:
        raise EngineError(
            f"the engine cannot be started with {command[0]}: {error.strerror}"
        ) from None


def _wait_until_ready(
    child: subprocess.Popen[bytes], state: Path, log: Path, model: str, timeout_s: float
) -> dict[str, str]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, ValueError):  # not there yet, or half written
            said = json.loads(state.read_text("utf-8"))
            if "error" in said:
                raise EngineError(str(said["error"]))
            return {str(name): str(url) for name, url in said["addresses"].items()}
        if child.poll() is not None:
            raise EngineError(
                f"the embedded engine for {model} ended with exit code {child.returncode} before it was ready; "
                f"its last words:\n{_tail(log)}"
            )
        time.sleep(0.05)
    raise EngineError(
        f"the embedded engine for {model} was not ready after {timeout_s:g} s; its log ends:\n{_tail(log)}"
    )


def _tail(log: Path, lines: int = 12) -> str:
    with suppress(OSError):
        text = log.read_bytes()[-8000:].decode("utf-8", "replace")
        said = [line for line in text.splitlines() if line.strip()]
        return "\n".join(said[-lines:]) or "(nothing)"
    return "(no log)"


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask, then insist; afterwards no process of the group is left."""
    if child.stdin is not None:
        with suppress(OSError):
            child.stdin.close()
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_GRACE_S)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
