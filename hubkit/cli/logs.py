"""What ``--verbose`` shows and ``--log-file`` keeps: each line that the person saw, what libraries
report, requests, and the trace of an error; never a token.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import TextIO

from hubkit.errors import HubkitError

_LINES = logging.getLogger("hubkit.cli")  # what the person sees anyway
_SECRETS = (
    (re.compile(r"\b(hf|api_org|sk)[_-][A-Za-z0-9_-]{6,}"), r"\1_…"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\",;]+"), r"\1 …"),
    (re.compile(r"(https?://)[^/\s@]+@"), r"\1…@"),
    (re.compile(r"(https?://[^\s'\"?]+)\?[^\s'\"]*"), r"\1?…"),  # signed addresses
)
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_verbose = False


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
        return text


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at that moment; the person's own lines are there already."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name != _LINES.name

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(*, verbose: bool, file: Path | None) -> None:
    """Start logging to stderr (`verbose`) and to the end of `file`, which only its owner may read.

    Raises:
        HubkitError: The file cannot be written."""
    global _verbose
    _verbose = verbose
    handlers: list[logging.Handler] = [_Stderr()] if verbose else []
    if file is not None:
        try:
            os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
            handlers.append(logging.FileHandler(file, encoding="utf-8", errors="replace"))
        except OSError as error:
            raise HubkitError(
                f"--log-file {file} cannot be written: {(error.strerror or str(error)).lower()}; "
                "name another file"
            ) from None
    for handler in handlers:
        handler.setFormatter(_Formatter(_FORMAT))
        logging.getLogger().addHandler(handler)
    if handlers:
        logging.captureWarnings(True)
        for name, level in {"hubkit": "DEBUG", "httpx": "INFO", "huggingface_hub": "INFO"}.items():
            logging.getLogger(name).setLevel(level)
        command = " ".join(["hubkit", *sys.argv[1:]])
        _LINES.info("%s in %s, process %d", command, Path.cwd(), os.getpid())


def is_verbose() -> bool:
    """Whether ``--verbose`` was given: then progress is told in lines, between those of the log."""
    return _verbose


def seen(line: str) -> None:
    """Keep a line that the person was shown."""
    _LINES.info("%s", line)


def trace() -> None:
    """Keep the trace of the error that is being handled."""
    logging.getLogger("hubkit").debug("the trace of the error", exc_info=True)
