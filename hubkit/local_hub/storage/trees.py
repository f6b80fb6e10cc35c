"""Folders of a commit: look up, walk, change; and the small text files that stand for large
ones.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from dulwich.objects import Tree

from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.git import GitRepo, NewObject

FILE_MODE = 0o100644
POINTER_MAX_BYTES = 200
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d{1,15})\n?"
)


@dataclass(frozen=True)
class Entry:
    """One name in a commit: a file (`is_file`) or a folder."""

    path: str
    mode: int
    sha: bytes

    @property
    def is_file(self) -> bool:
        """Whether this is a file; otherwise it is a folder."""
        return not stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class Pointer:
    """What git holds in place of a large file."""

    oid: str
    size: int

    def text(self) -> bytes:
        """The bytes that git holds."""
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{self.oid}\nsize {self.size}\n".encode()


@dataclass(frozen=True)
class BlobInfo:
    """Size of what git holds, and the large file it stands for, if any."""

    size: int
    pointer: Pointer | None

    @property
    def file_size(self) -> int:
        """Bytes of the file that a client gets: for a pointer, those of the large file."""
        return self.pointer.size if self.pointer else self.size


def parse_pointer(data: bytes) -> Pointer | None:
    """The large file that these bytes stand for, or None."""
    if len(data) > POINTER_MAX_BYTES:
        return None
    match = _POINTER.fullmatch(data)
    return Pointer(match[1].decode(), int(match[2])) if match else None


_known_blobs: dict[bytes, BlobInfo] = {}


def blob_info(repo: GitRepo, sha: bytes) -> BlobInfo:
    """Size and pointer of a file; remembered, since the content of an id never changes."""
    info = _known_blobs.get(sha)
    if info is None:
        data = repo.blob(sha)
        info = BlobInfo(len(data), parse_pointer(data))
        if len(_known_blobs) > 50_000:
            _known_blobs.clear()
        _known_blobs[sha] = info
    return info


def find(repo: GitRepo, tree: bytes, path: str) -> Entry | None:
    """The file or folder at `path` ("" is the root), or None."""
    mode, sha = stat.S_IFDIR, tree
    for name in path.split("/") if path else []:
        if not stat.S_ISDIR(mode):
            return None
        try:
            mode, sha = repo.tree(sha)[name.encode()]
        except (KeyError, UnicodeEncodeError):
            return None
    return Entry(path, mode, sha)


def children(repo: GitRepo, folder: Entry) -> list[Entry]:
    """What is directly inside a folder, by name."""
    prefix = f"{folder.path}/" if folder.path else ""
    return [
        Entry(prefix + name.decode("utf-8", "replace"), mode, sha)
        for name, mode, sha in repo.tree(folder.sha).items()
    ]


def walk(repo: GitRepo, folder: Entry) -> Iterator[Entry]:
    """Everything below a folder, files and folders, in order of path."""
    for entry in children(repo, folder):
        yield entry
        if stat.S_ISDIR(entry.mode):
            yield from walk(repo, entry)


def files(repo: GitRepo, tree: bytes) -> list[Entry]:
    """All files of a tree, in order of path."""
    return [entry for entry in walk(repo, Entry("", stat.S_IFDIR, tree)) if entry.is_file]


@lru_cache(maxsize=256)
def _split(path: str) -> tuple[str, str]:
    head, _, tail = path.partition("/")
    return head, tail


def changed(
    repo: GitRepo, tree: bytes | None, changes: Mapping[str, bytes | None]
) -> tuple[bytes, list[NewObject]]:
    """Apply `changes` (path → blob id, None removes) to a tree.

    Returns the new tree's id and the tree objects to write. Only folders on the way to a change are
    touched. Raises `Refusal` 422 where a file would have to be a folder or the other way round."""
    fresh: list[NewObject] = []
    sha = _apply(repo, tree, changes, fresh, "")
    if sha is None:
        empty = Tree()
        fresh.append(NewObject.of(empty))
        sha = empty.id
    return sha, fresh


def _apply(
    repo: GitRepo,
    sha: bytes | None,
    changes: Mapping[str, bytes | None],
    fresh: list[NewObject],
    where: str,
) -> bytes | None:
    tree = repo.tree(sha).copy() if sha else Tree()
    below: dict[str, dict[str, bytes | None]] = {}
    # Removals first, so that one commit can turn a file into a folder.
    for path, blob in sorted(changes.items(), key=lambda item: item[1] is not None):
        head, tail = _split(path)
        if tail:
            below.setdefault(head, {})[tail] = blob
        elif blob is None and head.encode() in tree:
            del tree[head.encode()]
    for head, inner in below.items():
        _apply_below(repo, tree, head, inner, fresh, where)
    for path, blob in changes.items():
        if blob is not None and "/" not in path:
            _put_file(tree, path, blob, where)
    if not len(tree):
        return None
    fresh.append(NewObject.of(tree))
    return cast(bytes, tree.id)


def _apply_below(
    repo: GitRepo,
    tree: Tree,
    head: str,
    inner: dict[str, bytes | None],
    fresh: list[NewObject],
    where: str,
) -> None:
    name = head.encode()
    existing = tree[name] if name in tree else None  # noqa: SIM401 - a tree has no get
    if existing and not stat.S_ISDIR(existing[0]):
        if all(blob is None for blob in inner.values()):
            return
        raise Refusal(422, f"{where}{head} is a file and cannot hold other files.")
    new = _apply(repo, existing[1] if existing else None, inner, fresh, f"{where}{head}/")
    if new is not None:
        tree[name] = (stat.S_IFDIR, new)
    elif existing:
        del tree[name]


def _put_file(tree: Tree, name: str, blob: bytes, where: str) -> None:
    raw = name.encode()
    mode = FILE_MODE
    if raw in tree:
        existing_mode = tree[raw][0]
        if stat.S_ISDIR(existing_mode):
            raise Refusal(422, f"{where}{name} is a folder and cannot become a file.")
        mode = existing_mode if stat.S_ISREG(existing_mode) else FILE_MODE
    tree[raw] = (mode, blob)
