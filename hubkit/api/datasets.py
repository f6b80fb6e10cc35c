"""Datasets by name: a repo at a revision, a split of it, or files here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubkit.errors import SourceError

if TYPE_CHECKING:
    from hubkit.hub import Hub, Ref

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
    ref, named_split = _resolve(name, hub)
    assert hub is not None  # or it was refused
    chosen_split = named_split or split
    folder = hub.snapshot(ref, allow_patterns=[f"*{chosen_split}-*.parquet"])
    return Data(name, _of(folder, chosen_split, name), ref.revision)


def files_of(name: str, pattern: str) -> list[Path]:
    """The file `name`, or those of a dataset, ``REPO[@REVISION]``, that match `pattern`.

    Raises:
        SourceError: There is none.
    """
    if Path(name).is_file():
        return [Path(name)]
    from hubkit.hub import connect

    hub = connect()
    ref, _ = _resolve(name, hub)
    files = sorted(hub.snapshot(ref, allow_patterns=[pattern]).glob(pattern))
    if not files:
        raise SourceError(f"{ref} holds no file {pattern}; name a dataset or a file that does")
    return files


def _resolve(name: str, hub: Hub | None) -> tuple[Ref, str | None]:
    """A dataset at a commit, and the split that `name` names."""
    match = _REF.match(name)
    if match is None or hub is None:
        raise SourceError(
            f"{name!r} is neither here nor a dataset's name; give a path, "
            "or REPO[@REVISION][:SPLIT]"
        )
    repo_id, revision = hub.qualify(match["repo"]), match["revision"] or "main"
    return hub.resolve(repo_id, repo_type="dataset", revision=revision), match["split"]


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
