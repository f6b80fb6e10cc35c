"""Text that strangers wrote: JSON, paths inside a repo, names of repos, lines for a terminal."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any


def is_inside(path: str) -> bool:
    """Whether `path`, relative to a folder, names something inside it."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and ":" not in parts[0]


_REPO = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)


def repo_name(value: object) -> str:
    """`value`, where it is the name of a repo and of nothing on this machine.

    Raises:
        ValueError: It is a path, or no name at all.
    """
    if not isinstance(value, str) or not _REPO.fullmatch(value) or ".." in value:
        raise ValueError(f"{printable(str(value))[:200]!r} is no repo's name")
    return value


# Control characters other than tab and line feed, and the ones that turn the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` with what a terminal would obey instead of show written as ``\\x1b``."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; what nests too deeply is a `ValueError` as everything else that is no JSON.

    Raises:
        ValueError: `text` is no JSON, or nests too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
