"""Locks between processes: a file that one process at a time holds, on file systems that have such
locks. Where there are none (some network and FUSE mounts), that is said in a sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from filelock import Timeout

from hubkit.errors import LocksMissingError

__all__ = ["FileLock", "Timeout", "refused_without_locks"]

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})


class FileLock(filelock.FileLock):
    """`filelock.FileLock`, whose `acquire` raises `LocksMissingError` where the file system has no
    locks, unless `filelock` has a way around them.
    """

    def acquire(self, *args: Any, **options: Any) -> Any:
        """Take the lock. Raises `Timeout` when another process holds it."""
        with refused_without_locks(Path(self.lock_file)):
            return super().acquire(*args, **options)


@contextmanager
def refused_without_locks(path: Path) -> Iterator[None]:
    """Raise `LocksMissingError` where the block fails because `path` cannot be locked."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise LocksMissingError(
            f"{path.parent} is on a file system without locks between processes "
            f"({error.strerror}), so two commands could damage each other's files there; set "
            "HUBKIT_HOME (and TMPDIR, where it is meant) to a folder on a local disk"
        ) from None
