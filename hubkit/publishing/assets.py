"""Where the card templates and the Spaces lie: inside the wheel, or at the top of a checkout.

Takes a folder's name, gives its path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hubkit.errors import MissingDependencyError

_PACKAGE = Path(__file__).resolve().parent.parent


def folder(name: Literal["cards", "spaces"]) -> Path:
    """The folder `name`: ``hubkit/_assets/<name>`` as a wheel carries it, else
    ``<checkout>/<name>``.

    Raises `MissingDependencyError` when neither exists, which means that the installation is
    incomplete."""
    for candidate in (_PACKAGE / "_assets" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise MissingDependencyError(
        f"hubkit's {name}/ folder is missing from {_PACKAGE}; reinstall with: "
        "pip install --force-reinstall hubkit-simulators"
    )
