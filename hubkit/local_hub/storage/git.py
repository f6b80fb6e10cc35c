"""A bare git repository: objects in, one reference moved, objects out.

Order of a write, so that a crash at any moment leaves either the old state or the new one: objects
(fsync each, then their folders), then the reference by compare-and-swap (fsync, rename, fsync of
its folder). The reference is the only commit point; objects without a reference are garbage, which
`maintenance` collects."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from dulwich.errors import ChecksumMismatch
from dulwich.objects import Blob, Commit, ShaFile, Tag, Tree
from dulwich.pack import UnpackedObject
from dulwich.refs import SymrefLoop, check_ref_format
from dulwich.repo import Repo as DulwichRepo

from hubkit.files import sync_folder
from hubkit.local_hub.errors import RepositoryDamagedError

PACK_ABOVE = 20
"""A write of more objects than this becomes one pack instead of loose files."""

BLOB, TREE, COMMIT, TAG = Blob.type_num, Tree.type_num, Commit.type_num, Tag.type_num
_KINDS = {BLOB: b"blob", TREE: b"tree", COMMIT: b"commit", TAG: b"tag"}
_HEX = re.compile(r"[0-9a-f]{7,40}")
DEFAULT_BRANCH = "main"
UPSTREAM_COMMIT = "Upstream-Commit: "
"""In the message of a mirror's commit: which one it mirrors. `refs/upstream/ID` proves it."""


@dataclass(frozen=True)
class NewObject:
    """A git object to write; `load` gives its bytes when they are needed, so many of them need no
    memory.
    """

    kind: int
    sha: bytes
    load: Callable[[], bytes]

    @classmethod
    def of(cls, item: ShaFile) -> NewObject:
        """From an object of dulwich's."""
        raw = item.as_raw_string()
        return cls(item.type_num, item.id, lambda: raw)

    @classmethod
    def blob(cls, data: bytes) -> NewObject:
        """A file's bytes."""
        return cls(BLOB, blob_sha(data), lambda: data)


def blob_sha(data: bytes) -> bytes:
    """The id that git gives to a file's bytes, as 40 hex digits."""
    return _object_sha(BLOB, data)


def _object_sha(kind: int, data: bytes) -> bytes:
    digest = hashlib.sha1(_KINDS[kind] + b" %d\0" % len(data), usedforsecurity=False)
    digest.update(data)
    return digest.hexdigest().encode()


class GitRepo:
    """One repository, opened for one thread. Use `opened`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._repo = DulwichRepo(str(path), bare=True)
        self.store = self._repo.object_store
        self.store.fsync_object_files = True

    @staticmethod
    def create(path: Path) -> None:
        """Make an empty bare repository, durably."""
        path.mkdir()
        DulwichRepo.init_bare(str(path), default_branch=DEFAULT_BRANCH.encode()).close()
        with (path / "config").open("a") as config:
            config.write("[gc]\n\tauto = 0\n\tpackRefs = false\n")
        for folder, _, names in os.walk(path):
            for name in names:
                with (Path(folder) / name).open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(Path(folder))
        sync_folder(path.parent)

    def close(self) -> None:
        """Close open packs."""
        self._repo.close()

    # objects

    def commit(self, sha: bytes) -> Commit:
        """A commit. Raises `RepositoryDamagedError`, as do `tree` and `blob`."""
        return cast(Commit, self._read(sha))

    def tree(self, sha: bytes) -> Tree:
        """A folder."""
        return cast(Tree, self._read(sha))

    def blob(self, sha: bytes) -> bytes:
        """A file's bytes."""
        return self._intact(sha)[1]

    def _read(self, sha: bytes) -> ShaFile:
        kind, data = self._intact(sha)
        try:
            return ShaFile.from_raw_string(kind, data, sha)
        except Exception as error:  # whatever is wrong with its bytes
            raise RepositoryDamagedError(self.path.name, sha, error) from error

    def _intact(self, sha: bytes) -> tuple[int, bytes]:
        """Kind and bytes of an object: a damaged index may lead to those of another."""
        try:
            kind, data = self.store.get_raw(sha)
            if _object_sha(kind, data) != sha:
                raise ChecksumMismatch(sha, _object_sha(kind, data))
        except Exception as error:  # whatever is wrong with its bytes
            raise RepositoryDamagedError(self.path.name, sha, error) from error
        return kind, bytes(data)

    def is_intact(self, sha: bytes) -> bool:
        """Return whether an object is present and has the right hash."""
        try:
            self._intact(sha)
        except RepositoryDamagedError:
            return False
        return True

    @staticmethod
    def recomputed(item: ShaFile) -> bytes:
        """The id that an object's bytes really have."""
        return _object_sha(item.type_num, item.as_raw_string())

    def write(self, objects: Sequence[NewObject]) -> None:
        """Write objects durably: loose files when few, one pack when many.

        Those that are present and intact are left out; damaged ones are replaced.
        """
        fresh = {item.sha: item for item in objects if not self.is_intact(item.sha)}
        if len(fresh) > PACK_ABOVE:
            self._write_pack(list(fresh.values()))
            return
        for folder in {self._write_loose(item) for item in fresh.values()}:
            sync_folder(folder)

    def _write_loose(self, item: NewObject) -> Path:
        data = item.load()
        path = self.path / "objects" / item.sha[:2].decode() / item.sha[2:].decode()
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            sync_folder(path.parent.parent)
        temporary = path.parent / f"tmp_obj_{secrets.token_hex(6)}"
        try:
            with temporary.open("xb") as file:
                file.write(zlib.compress(_KINDS[item.kind] + b" %d\0" % len(data) + data, 1))
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o444)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return path.parent

    def _write_pack(self, items: list[NewObject]) -> None:
        def records() -> Iterator[UnpackedObject]:
            for item in items:
                data = item.load()
                raw_sha = bytes.fromhex(item.sha.decode())
                yield UnpackedObject(
                    item.kind, decomp_chunks=[data], decomp_len=len(data), sha=raw_sha
                )

        self.store.add_pack_data(len(items), records())
        sync_folder(self.path / "objects" / "pack")

    # references

    def ref(self, name: bytes) -> bytes | None:
        """The id that a reference holds, or None."""
        if not check_ref_format(name):
            return None
        try:
            return cast(
                "bytes | None",
                self._repo.refs.read_loose_ref(name) or self._repo.refs.get_packed_refs().get(name),
            )
        except (KeyError, SymrefLoop, OSError, ValueError):
            return None

    def refs(self, prefix: bytes) -> dict[bytes, bytes]:
        """All references below a prefix: rest of the name → id."""
        ids = self._repo.refs.as_dict(prefix)
        return {cast(bytes, name): cast(bytes, sha) for name, sha in sorted(ids.items())}

    def swap_ref(self, name: bytes, old: bytes | None, new: bytes | None) -> bool:
        """Move a reference from `old` (None: must not exist) to `new` (None: remove). False:
        another writer was first.
        """
        if new is None:
            swapped = self._repo.refs.remove_if_equals(name, old)
        elif old is None:
            swapped = self._repo.refs.add_if_new(name, new)
        else:
            swapped = self._repo.refs.set_if_equals(name, old, new)
        self._fsync_names(name, replaced=bool(old and new))
        return bool(swapped)

    def _fsync_names(self, ref: bytes, *, replaced: bool) -> None:
        """Make a reference's name durable, and those of its folders: they may be new unless it only
        got a new value.
        """
        folder = (self.path / ref.decode()).parent
        while not folder.is_dir():
            folder = folder.parent
        sync_folder(folder)
        while not replaced and folder != self.path:
            folder = folder.parent
            sync_folder(folder)

    def resolve(self, revision: str) -> bytes | None:
        """The commit that a revision means: branch, tag, full reference, commit id (7 digits or
        more), or None.
        """
        if revision == "HEAD":
            revision = DEFAULT_BRANCH
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            sha = self.ref(name.encode("utf-8", "replace")) if name.startswith("refs/") else None
            if sha:
                return self.peel(sha)
        mirrored = self.ref(b"refs/upstream/" + revision.encode("utf-8", "replace"))
        if mirrored:
            return mirrored
        return self._by_prefix(revision.encode()) if _HEX.fullmatch(revision) else None

    def _by_prefix(self, prefix: bytes) -> bytes | None:
        if len(prefix) == 40:
            return (
                prefix if prefix in self.store and isinstance(self.store[prefix], Commit) else None
            )
        matches = {
            sha for sha in self.store.iter_prefix(prefix) if isinstance(self.store[sha], Commit)
        }
        return matches.pop() if len(matches) == 1 else None

    def peel(self, sha: bytes) -> bytes | None:
        """The commit that an annotated tag names, or the commit itself."""
        item = self._read(sha)
        while isinstance(item, Tag):
            sha = cast(bytes, item.object[1])
            item = self._read(sha)
        return sha if isinstance(item, Commit) else None

    def public_id(self, sha: bytes) -> str:
        """Return the id under which clients know a commit: a mirror's is that of the original."""
        text = self.commit(sha).message.decode("utf-8", "replace")
        original = text.rpartition(UPSTREAM_COMMIT)[2].encode("utf-8", "replace")
        if UPSTREAM_COMMIT in text and self.ref(b"refs/upstream/" + original) == sha:
            return str(original.decode())
        return str(sha.decode())

    def history(self, head: bytes) -> Iterator[Commit]:
        """Commits from `head` back to the first, along first parents."""
        sha: bytes | None = head
        while sha:
            commit = self.commit(sha)
            yield commit
            sha = commit.parents[0] if commit.parents else None


@contextmanager
def opened(path: Path) -> Iterator[GitRepo]:
    """A repository opened for the length of a `with` block."""
    repo = GitRepo(path)
    try:
        yield repo
    finally:
        repo.close()


def new_commit(
    tree: bytes, parents: list[bytes], message: str, author: str, when: float | None = None
) -> Commit:
    """A commit object (not written yet) by `author`, a user name."""
    commit = Commit()
    commit.tree = tree
    commit.parents = parents
    identity = f"{author} <{author}@users.noreply.local>".encode()
    commit.author = commit.committer = identity
    commit.author_time = commit.commit_time = int(when if when is not None else time.time())
    commit.author_timezone = commit.commit_timezone = 0
    commit.encoding = b"UTF-8"
    commit.message = message.encode("utf-8", "replace")
    return commit


def links(item: ShaFile) -> list[bytes]:
    """Return the ids of the objects that an object names."""
    if isinstance(item, Commit):
        return [item.tree, *item.parents]
    if isinstance(item, Tag):
        return [item.object[1]]
    return [sha for _, _, sha in item.items()] if isinstance(item, Tree) else []
