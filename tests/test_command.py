"""Commands that run in the tests' own process leave it as it was, and say what a process would."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest
from support import command

from hubkit import cli


def test_a_command_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        streams = sys.stdin, sys.stdout, sys.stderr
        return dict(os.environ), Path.cwd(), sys.argv, streams, list(logging.getLogger().handlers)

    before = state()
    log = tmp_path / "hubkit.log"
    done = command.run("recipes", "--verbose", "--log-file", str(log), HUBKIT_HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "") and "parrot" in done.stdout and log.stat()
    assert state() == before


def test_what_would_be_a_trace_in_a_process_is_one_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        os.write(1, b"from below\n")
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(cli, "main", broken)
    done = command.run("recipes")
    assert (done.returncode, done.stdout) == (1, "from below\n")
    assert done.stderr.startswith("Traceback") and "a fault of ours" in done.stderr


def test_what_takes_effect_in_a_new_process_only_is_refused() -> None:
    with pytest.raises(AssertionError, match="cli_process"):
        command.run("recipes", HF_HOME="elsewhere")
