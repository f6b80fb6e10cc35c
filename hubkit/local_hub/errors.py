"""What the embedded Hub answers when it does not do what it was asked."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Mapping
from typing import Any

from hubkit.errors import HubError

DAMAGED = "`hubkit hub verify` says what is damaged and what to do."


class Refusal(HubError):
    """A request is answered with an error status. `code` is the word that clients decide on
    (X-Error-Code).
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, status=status)
        self.http_status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


class RepositoryDamagedError(HubError):
    """An object of a repository cannot be read."""

    def __init__(self, folder: str, sha: bytes, reason: BaseException) -> None:
        super().__init__(
            f"This repository is damaged: its object {sha.decode('ascii', 'replace')} in {folder} "
            f"cannot be read ({type(reason).__name__}). {DAMAGED}",
            status=500,
        )


class DatabaseDamagedError(HubError):
    """The settings database cannot be used."""


DISK_FULL = "No space left on the disk that holds this Hub; free some and try again."
_SQLITE_FULL = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_FSYNC,
)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means that no space is left (device or quota)."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in _SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
