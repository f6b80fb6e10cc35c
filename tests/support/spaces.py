"""A Space's folder as a push makes it, with the settings that it ships with, to run here."""

from __future__ import annotations

from pathlib import Path

from hubkit.publishing import assets
from hubkit.publishing.spaces import SETTINGS, sources


def write_sources(name: str, folder: Path) -> Path:
    """Write the Space `name` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = {SETTINGS: assets.folder("spaces") / name / SETTINGS}
    for path, source in {**sources(name), **shipped}.items():
        (folder / path).write_bytes(source.read_bytes())
    return folder
