"""Looking after the folder: sweep up after a crash, collect garbage, verify."""

from __future__ import annotations

import shutil
from pathlib import Path

from .state import Hub


def sweep(hub: Hub) -> None:
    """Remove what a crash left behind: files on their way in, lock files, repositories without a row (or half made)."""
    for path in (hub.root / "tmp").iterdir():
        path.unlink(missing_ok=True)
    known = {row["folder"] for row in hub.settings.rows("SELECT folder FROM repos")}
    for folder in (hub.root / "repos").iterdir():
        if folder.name not in known:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _sweep_repo(folder)


def _sweep_repo(folder: Path) -> None:
    leftovers = [*(folder / "refs").rglob("*.lock"), *(folder / "objects" / "pack").glob("tmp*")]
    leftovers += [*folder.glob("*.lock"), *(folder / "objects" / "pack").glob("*.lock")]
    for path in leftovers:
        path.unlink(missing_ok=True)
    pack_folder = folder / "objects" / "pack"
    for pack in pack_folder.glob("pack-*.pack"):
        if not pack.with_suffix(".idx").exists():
            pack.unlink(missing_ok=True)
