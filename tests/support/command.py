"""A command of the command line, run in this process: no interpreter to start, no package to import
again. What a process would end with is undone: environment, folder, arguments, streams, logging.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from hubkit import cli, plugins

_READ_ONCE = ("HF_HOME", "HF_HUB_", "PYTHON")
"""Beginnings of variables that are read when the interpreter starts or a package is imported."""
_QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``hubkit …`` and return its exit status and what it wrote, as `subprocess.run` does.

    Args:
        arguments: Those after ``hubkit``.
        environment: Variables besides those of this process.
    """
    encoding = environment.pop("PYTHONIOENCODING", "utf-8")
    early = [name for name in environment if name.startswith(_READ_ONCE)]
    assert not early, f"{early} take effect in a process of its own only: take `cli_process`"
    loaded = plugins.snapshot()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with _as_a_process(arguments, environment), _streams(out, err, encoding):
            status = _status()
        said = [_text(file) for file in (out, err)]
    assert plugins.snapshot() == loaded, "it loads plug-ins, which stay: take `cli_process`"
    return subprocess.CompletedProcess(["hubkit", *arguments], status, *said)


def _status() -> int:
    try:
        cli.main()
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _as_a_process(arguments: tuple[str, ...], environment: dict[str, str]) -> Iterator[None]:
    variables, folder, words = dict(os.environ), Path.cwd(), sys.argv
    main = sys.modules["__main__"]
    os.environ.update(environment)
    sys.argv, sys.modules["__main__"] = ["hubkit", *arguments], ModuleType("__main__")
    try:
        with warnings.catch_warnings(), _logging():
            warnings.resetwarnings()
            for category in _QUIET:
                warnings.simplefilter("ignore", category)
            warnings.showwarning = _show
            yield
    finally:
        sys.argv, sys.modules["__main__"] = words, main
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers = root.handlers[:]
    loggers = [logging.getLogger(name) for name in ("hubkit", "httpx", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    root.handlers[:] = []
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _show(message: Any, category: Any, file: str, line: int, *_: Any) -> None:
    print(warnings.formatwarning(message, category, file, line), end="", file=sys.stderr)


@contextlib.contextmanager
def _streams(out: IO[bytes], err: IO[bytes], encoding: str) -> Iterator[None]:
    """Send what is written to descriptors 1 and 2 into two files, also by children. The objects
    stay usable afterwards: handlers of libraries may hold them.
    """
    kept = [(number, os.dup(number)) for number in (1, 2)]
    before = sys.stdin, sys.stdout, sys.stderr
    for stream in before[1:]:
        stream.flush()
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        for number, file in ((1, out), (2, err)):
            os.dup2(file.fileno(), number)
        sys.stdin = nothing
        sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
        sys.stderr = open(  # noqa: SIM115
            2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False
        )
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdin, sys.stdout, sys.stderr = before
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "backslashreplace").replace("\r\n", "\n")
