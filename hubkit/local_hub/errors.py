"""What the embedded Hub answers when it does not do what it was asked."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from hubkit.errors import HubError


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


DISK_FULL = "No space left on the disk that holds this Hub; free some and try again."


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left (device or quota)."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
