"""Files that are there whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

__all__ = ["sync_folder", "write_whole"]

_NOT_SYNCED = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def write_whole(path: Path, data: str | bytes, *, durable: bool = False, mode: int = 0o666) -> None:
    """Write a small file, replacing what was there: whoever reads it, also after a kill or on a
    full disk, finds the old content or the new one.

    Args:
        path: The file; its folder exists.
        data: Its content; a text is written as UTF-8.
        durable: Whether it must outlast a power cut once this returns (fsync of the file and of
            its folder).
        mode: Permissions of the file, less the process's umask.

    Raises:
        OSError: It cannot be written; what was there before still is."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder outlast a power cut, on file systems that sync folders.

    Raises:
        OSError: The disk failed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise
    finally:
        os.close(handle)
