"""Waiting for what other processes do, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 240.0  # for what has to happen, on a machine that is busy with something else
OPENENV = {"connect_timeout_s": PATIENCE_S, "message_timeout_s": PATIENCE_S}
"""For OpenEnv's own client, which otherwise gives a server ten seconds."""


def until(condition: Callable[[], Any], *, timeout_s: float = PATIENCE_S) -> Any:
    """What `condition` gives, once that is something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"it did not happen within {timeout_s:.0f} s")
