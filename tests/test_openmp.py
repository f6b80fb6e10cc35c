"""Waiting threads spin for a short while: the user's own choice stands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hubkit.openmp import SPIN_COUNT, spin_briefly


def test_threads_spin_briefly_unless_the_environment_says_how_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(SPIN_COUNT, raising=False)
    spin_briefly()
    assert 0 < int(os.environ[SPIN_COUNT]) < 10_000
    monkeypatch.setenv(SPIN_COUNT, "7")
    spin_briefly()
    assert os.environ[SPIN_COUNT] == "7"


def test_the_command_line_says_so_before_torch_is_loaded() -> None:
    program = (
        "import os, sys\n"
        "from hubkit import cli\n"
        "try:\n"
        "    cli.main()\n"
        "except SystemExit:\n"
        f"    print(os.environ[{SPIN_COUNT!r}], 'torch' in sys.modules)\n"
    )
    environment = {name: text for name, text in os.environ.items() if name != SPIN_COUNT}
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    count, torch_loaded = done.stdout.splitlines()[-1].split()
    assert 0 < int(count) < 10_000 and torch_loaded == "False"
