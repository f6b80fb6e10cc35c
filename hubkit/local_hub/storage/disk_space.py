"""Free space on the disk of a store, and a reserve with which a full disk can be emptied.

Deleting needs a little space too: SQLite writes a log before it changes anything. The reserve is a
file that is given up when the disk is full, so that `gc` and the deletion of repositories still
work, and that is made again when there is room."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

MIN_FREE_BYTES = 2**20
"""With less than this, nothing is accepted that would need more space."""

RESERVE_BYTES = 2 * 2**20


class DiskSpace:
    """The disk that holds the folder `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._reserve = root / "reserve"

    def is_short(self) -> bool:
        """Whether there is too little space to accept anything new, the reserve not counted."""
        owed = 0 if self._reserve.exists() else RESERVE_BYTES
        return shutil.disk_usage(self._root).free < MIN_FREE_BYTES + owed

    def free_reserve_if_short(self) -> None:
        """Give the reserve up where the disk is full."""
        if self.is_short():
            self._reserve.unlink(missing_ok=True)

    def keep_reserve(self) -> None:
        """Make the reserve where there is none, and plenty of space."""
        if self._reserve.exists():
            return
        with suppress(OSError):
            if shutil.disk_usage(self._root).free < 4 * RESERVE_BYTES:
                return
            handle = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(handle, 0, RESERVE_BYTES)
            finally:
                os.close(handle)
