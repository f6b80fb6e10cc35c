"""On a file system without locks, whatever must be held alone is refused in one sentence."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hubkit.errors import HubkitError, LocksMissingError, RunLockedError
from hubkit.local_hub.server import only_server
from hubkit.locks import FileLock, Timeout
from hubkit.rollout import locked
from hubkit.serving.engines.scratch_folder import scratch_folder

Held = Callable[[Path], AbstractContextManager[object]]
HELD_ALONE: dict[str, Held] = {
    "a run": locked,
    "a folder of a stage": lambda folder: FileLock(folder / "lock", timeout=0),
    "the embedded Hub's folder": only_server,
    "an engine's folder": lambda folder: scratch_folder(),
}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("held", HELD_ALONE.values(), ids=HELD_ALONE)
def test_without_locks_it_is_refused_and_says_where_to_go(
    held: Held, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with held(tmp_path):
        """As long as there are locks."""
    monkeypatch.setattr(fcntl, "flock", flock)
    refusal = pytest.raises(LocksMissingError, match=r"without locks.*set HUBKIT_HOME")
    with refusal as problem, held(tmp_path):
        """Nothing is done here."""
    assert isinstance(problem.value, HubkitError) and os.strerror(number) in str(problem.value)


def test_a_lock_that_another_holds_is_no_missing_one(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunLockedError), locked(tmp_path):
        """Never here."""
    with (
        FileLock(tmp_path / "lock"),
        pytest.raises(Timeout),
        FileLock(tmp_path / "lock", timeout=0),
    ):
        """Never here."""


def test_no_code_takes_locks_past_this(tmp_path: Path) -> None:
    package = Path(__file__).parent.parent / "hubkit"
    importing = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(
            line.strip().startswith(("from filelock", "import filelock"))
            for line in path.read_text("utf-8").splitlines()
        )
    ]
    assert importing == ["locks.py"]
