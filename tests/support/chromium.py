"""Where the system's own Chromium is."""

from __future__ import annotations

import shutil

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def system_chromium() -> str | None:
    """The path of the first that is on the path; None: Playwright takes its own."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)
