"""What a push would change: the wanted files of each repo, held against what is on the Hub.

Takes wanted content, gives a `RepoPlan` whose `Change`s name every file that would be added,
updated or deleted. Reads hashes from the Hub, never the large files themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from hubkit.errors import RepoMissingError
from hubkit.hub import Hub
from hubkit.untrusted import JsonObject

Action = Literal["create", "add", "update", "delete", "tag", "leave"]
Content = bytes | Path
MADE_BY_HUBS = (".gitattributes",)
"""Files that every Hub writes itself, and that no push moves."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a push does: to a file (`path`), a repo (``create``), a tag or a collection's
    item; or (``leave``) a file that it does not take along.
    """

    repo_id: str
    repo_type: str
    action: Action
    path: str = ""
    size_bytes: int | None = None
    commit: str = ""

    def to_dict(self) -> JsonObject:
        """Plain data, for ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.action} {self.repo_type} {self.repo_id} {self.path}".rstrip()


@dataclass(frozen=True, slots=True)
class RepoPlan:
    """One repo's changes: `write` and `delete` make up one commit on top of `parent` (None: the
    repo is to be made).

    `files` are the paths that the repo holds after that commit. `left_out` are paths at the source
    that the push does not take. `is_kept`: the repo holds other files of these names, and stays as
    it is."""

    repo_id: str
    repo_type: str
    parent: str | None
    private: bool
    write: Mapping[str, Content] = field(default_factory=dict)
    delete: Sequence[str] = ()
    changes: Sequence[Change] = ()
    files: Sequence[str] = ()
    left_out: Sequence[str] = ()
    is_kept: bool = False


def compare(
    hub: Hub,
    repo_id: str,
    repo_type: str,
    files: Mapping[str, Content],
    *,
    private: bool,
    owned: Sequence[str] = (),
) -> RepoPlan:
    """Compare `files` (path → bytes or file) with ``main`` of a repo.

    Files of the repo that match `owned` and are not among `files` are deleted; any other file
    stays. Raises `HubError`."""
    try:
        head = hub.resolve(repo_id, repo_type=repo_type).revision
        hashes = _hashes(hub, repo_id, repo_type, head)
    except RepoMissingError:
        head, hashes = None, {}
    write = {
        path: content
        for path, content in files.items()
        if hashes.get(path) not in _digests(content)
    }
    delete = [
        path
        for path in hashes
        if path not in files and any(fnmatch(path, pattern) for pattern in owned)
    ]
    changes = (
        []
        if head
        else [Change(repo_id, repo_type, "create", "(private)" if private else "(public)")]
    )
    for path, content in write.items():
        action: Action = "update" if path in hashes else "add"
        changes.append(Change(repo_id, repo_type, action, path, _size(content)))
    changes += [Change(repo_id, repo_type, "delete", path) for path in delete]
    paths = sorted({*hashes, *files} - {*delete})
    return RepoPlan(repo_id, repo_type, head, private, write, delete, changes, paths)


def _hashes(hub: Hub, repo_id: str, repo_type: str, revision: str) -> dict[str, str]:
    """Path → sha256 of a large file, or the git blob id of a small one."""
    with hub.translated(f"listing the files of {repo_type} {repo_id}"):
        entries = list(
            hub.api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
        )
    hashes = {}
    for entry in entries:
        if blob := getattr(entry, "blob_id", None):
            lfs = getattr(entry, "lfs", None)
            hashes[entry.path] = str(lfs.sha256 if lfs else blob)
    return hashes


def _digests(content: Content) -> tuple[str, str]:
    """How a Hub may name this content: by its sha256 when stored as a large file, by its git blob
    id otherwise.
    """
    large = hashlib.sha256()
    small = hashlib.sha1(f"blob {_size(content)}\0".encode(), usedforsecurity=False)
    for chunk in _chunks(content):
        large.update(chunk)
        small.update(chunk)
    return large.hexdigest(), small.hexdigest()


def _chunks(content: Content) -> Any:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
