"""Pictures that are drawn once: the same facts, drawn by the same code, are the same file."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from hubkit.files import write_whole
from hubkit.hub.places import cache

Facts = TypeVar("Facts")
_FOLDER = "pictures"
_MOST_KEPT = 200
_PNG_BEGINS, _PNG_ENDS = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def drawn_once(draw: Callable[[Facts], bytes], facts: Facts) -> bytes:
    """Return ``draw(facts)``, from the cache where it was drawn before.

    Args:
        draw: Gives a PNG that its argument and the code of its package decide.
        facts: What is drawn; its ``repr`` tells it from other facts.

    Returns:
        The PNG's bytes. A file that cannot be read, or is no whole PNG, is drawn anew; one that
        cannot be kept is drawn each time."""
    path = cache(_FOLDER) / f"{_key(draw, facts)}.png"
    with suppress(OSError):
        content = path.read_bytes()
        if content.startswith(_PNG_BEGINS) and content.endswith(_PNG_ENDS):
            os.utime(path)
            return content
    picture = draw(facts)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, picture)
        _remove_the_oldest(path.parent)
    return picture


def _key(draw: Callable[[Facts], bytes], facts: Facts) -> str:
    digest = hashlib.blake2b(digest_size=20)
    digest.update(f"{draw.__qualname__} {version('matplotlib')} {facts!r}".encode())
    digest.update(_code_digest(Path(inspect.getfile(draw)).parent))
    return digest.hexdigest()


@functools.cache
def _code_digest(package: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    for source in sorted(package.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.digest()


def _remove_the_oldest(folder: Path) -> None:
    by_age = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in by_age[_MOST_KEPT:]:
        path.unlink()
