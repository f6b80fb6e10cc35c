"""A folder for the state file of an engine. Folders left by a killed process are removed at the
next start.

The lock in a folder belongs to the processes that hold the open file, here the starter and its
engine, and the kernel releases it with the last of them. So a lock that can be taken has no owner
any more."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hubkit.locks import refused_without_locks

_PREFIX, _LOCK = "hubkit-engine-", "lock"


@contextmanager
def scratch_folder() -> Iterator[tuple[Path, int]]:
    """A temporary folder, and the descriptor that keeps it: a child that inherits it keeps the
    folder as long as it lives. It is gone at the end of the block, or, after a kill, when the next
    one is made."""
    _sweep()
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX) as name,
        (Path(name) / "new").open("wb") as lock,
    ):
        with refused_without_locks(Path(lock.name)):
            fcntl.flock(lock, fcntl.LOCK_EX)
        Path(lock.name).rename(Path(name) / _LOCK)  # so it is never free while it is in use
        yield Path(name), lock.fileno()


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # in use, without a lock, or another sweeper was here
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
