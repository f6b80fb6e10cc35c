"""Datasets by name: a repo at a revision, a split of it, or files here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubkit.errors import SourceError

if TYPE_CHECKING:
    from hubkit.hub import Hub

_REF = re.compile(
    r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:\s]+))?(?::(?P<split>\w+))?\Z"
)


@dataclass(frozen=True, slots=True)
class Data:
    """What a name stands for: its parquet files, and the commit they are of (None for local
    files).
    """

    name: str
    files: list[Path]
    revision: str | None = None


def find(name: str, hub: Hub | None, *, split: str = "train") -> Data:
    """``REPO[@REV][:SPLIT]`` on the Hub, or ``PATH[:SPLIT]``, a parquet file or folder here (which
    wins).

    A split's files are those named ``SPLIT-…parquet``. Raises `SourceError`, `RepoMissingError`.
    """
    location, _, part = name.partition(":")
    if Path(location).exists():
        return Data(name, _of(Path(location), part or split, name))
    match = _REF.match(name)
    if match is None or hub is None:
        raise SourceError(
            f"{name!r} is neither here nor a dataset's name; give a path, "
            "or REPO[@REVISION][:SPLIT]"
        )
    chosen_split = match["split"] or split
    ref = hub.resolve(
        hub.qualify(match["repo"]), repo_type="dataset", revision=match["revision"] or "main"
    )
    folder = hub.snapshot(ref, allow_patterns=[f"*{chosen_split}-*.parquet"])
    return Data(name, _of(folder, chosen_split, name), ref.revision)


def needs_hub(names: list[str]) -> bool:
    """Whether one of `names` is not a path here."""
    return any(not Path(name.partition(":")[0]).exists() for name in names)


def _of(path: Path, split: str, name: str) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.rglob(f"{split}-*.parquet"))
    if not files:
        splits = sorted({p.name.rsplit("-", 3)[0] for p in path.rglob("*.parquet")})
        raise SourceError(
            f"{name} has no split {split!r}"
            + (f"; it has {', '.join(splits)}" if splits else " in parquet")
        )
    return files
