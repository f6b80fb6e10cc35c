"""Keeping the embedded Hub up while a process uses it.

Takes the Hub's folder, gives a `Hold`: a shared lock on a file there. The server does not stop as
idle while anybody holds it, however long a training asks it for nothing. The lock ends with its
process, whatever ends that."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

_FILE = "in-use"  # the server looks at the same file
_LEAVING_S = 10.0  # a server that has decided to stop keeps the file to itself until it has


class Hold:
    """The embedded Hub of a folder is in use for as long as this object lives."""

    def __init__(self, handle: int) -> None:
        self._release = weakref.finalize(self, os.close, handle)

    def release(self) -> None:
        """End it now; does nothing the second time."""
        self._release()


def hold(root: Path) -> Hold | None:
    """Hold the embedded Hub of the folder `root`.

    Returns:
        None where files cannot be locked: then its server stops by its clock alone.
    """
    try:
        handle = os.open(root / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    deadline = time.monotonic() + _LEAVING_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return Hold(handle)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
        except OSError:
            pass
        os.close(handle)
        return None
