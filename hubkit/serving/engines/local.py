"""Starts the embedded engine as a child process and gives its addresses; stops the whole child
afterwards.

The engine is a separate program seen only as URLs; `process` says how it is started and ended."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hubkit.errors import EngineError
from hubkit.serving.engines.process import spawn, stop, wait_until
from hubkit.serving.engines.scratch_folder import scratch_folder


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine.

    Attributes:
        addresses: The URL of each name that it serves.
        pid: Its process id.
        log_path: Where it writes its log.
        name: What computes: ``llamacpp`` or ``transformers``.
        reason: Why it is that one, as half a sentence.
    """

    addresses: dict[str, str]
    pid: int
    log_path: Path
    name: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the embedded engine computes; None is left to the engine.

    Attributes:
        engine: ``auto``, ``llamacpp`` or ``transformers``.
        dtype: llama.cpp's weights: ``q8_0``, ``f16`` or ``f32``.
        threads: Compute threads.
        context: Tokens per sequence.
        slots: Sequences computed and cached at once.
        max_concurrent: Requests in flight before it answers 429.
        start_timeout_s: How long it may take to come up.
        python: The interpreter that runs it.
    """

    engine: str | None = None
    dtype: str | None = None
    threads: int | None = None
    context: int | None = None
    slots: int | None = None
    max_concurrent: int | None = None
    start_timeout_s: float = 600.0
    python: str = sys.executable


DEFAULT_SETTINGS = EngineSettings()


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
    settings: EngineSettings = DEFAULT_SETTINGS,
) -> Iterator[Engine]:
    """Serve a model on the embedded engine until the block ends.

    Args:
        model: ``repo_id[@revision]`` or a folder.
        adapters: Name → repo or folder of a LoRA adapter of it.
        listen: Names (an adapter's, or ``base``) that each get an address of their own on
            loopback; without any there is one address.
        port: The first address's port; 0 takes any free one.
        env: Laid over this process's environment, so that the engine finds the same Hub.
        log_path: Where its log goes; a temporary file otherwise.
        cache_dir: Where converted weights are kept.
        settings: How it computes.

    Raises:
        EngineError: It does not come up in time, or dies before; with the end of its log.
    """
    with scratch_folder() as (scratch, lock):
        state = scratch / "state.json"
        log = log_path or scratch / "engine.log"
        command = _command(settings.python, model, adapters or {}, listen, state, port)
        options = {
            "cache-dir": cache_dir,
            "engine": settings.engine,
            "dtype": settings.dtype,
            "threads": settings.threads,
            "context": settings.context,
            "slots": settings.slots,
            "max-concurrent": settings.max_concurrent,
        }
        for name, value in options.items():
            command += [] if value is None else [f"--{name}", str(value)]
        # The lock goes to the child: its folder stays as long as the child lives.
        child = spawn(command, log, env={**os.environ, **(env or {})}, keep_open=[lock])
        try:
            name = f"the embedded engine for {model}"
            wait_until(lambda: bool(_state(state)), child, log, name, settings.start_timeout_s)
            report = _state(state)
            addresses = {str(name): str(url) for name, url in report["addresses"].items()}
            yield Engine(
                addresses,
                child.pid,
                log,
                str(report.get("engine", "")),
                str(report.get("engine_reason", "")),
            )
        finally:
            stop(child)


def _command(
    python: str,
    model: str,
    adapters: Mapping[str, str],
    listen: Sequence[str],
    state: Path,
    port: int,
) -> list[str]:
    command = [python, "-m", "hubkit.local_engine", "--model", model]
    command += ["--state-file", str(state), "--exit-with-parent"]
    for name, source in adapters.items():
        command += ["--adapter", f"{name}={source}"]
    for i, name in enumerate(listen):
        command += ["--listen", f"127.0.0.1:{0 if i else port}={name}"]
    return command if listen else [*command, "--listen", f"127.0.0.1:{port}"]


def _state(path: Path) -> dict[str, dict[str, str]]:
    """What the engine reports; empty until it is ready. Raises `EngineError` with its reason."""
    with suppress(FileNotFoundError, ValueError):  # not there yet, or half written
        report = json.loads(path.read_text("utf-8"))
        if "error" in report:
            raise EngineError(str(report["error"]))
        return dict(report)
    return {}
