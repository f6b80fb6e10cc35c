"""Verify a store: every git object and every large file against its hash, and the database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dulwich.errors import ChecksumMismatch
from dulwich.objects import Blob, ShaFile

from hubkit.local_hub.storage import packed_refs, trees
from hubkit.local_hub.storage.git import GitRepo, links, opened
from hubkit.local_hub.storage.objects import DAMAGED_SUFFIX
from hubkit.local_hub.storage.store import Store

_BLOCK_BYTES = 4 * 2**20
_UPLOAD_AGAIN = "upload the same file again, or restore a backup with `hubkit hub restore`"
_RESTORE = "restore a backup with `hubkit hub restore`"


@dataclass
class VerifyResult:
    """What was checked, and what is wrong with it (one sentence each, with what to do)."""

    repositories: int = 0
    git_objects: int = 0
    large_files: int = 0
    problems: list[str] = field(default_factory=list)


def check(hub: Store, *, hash_files: bool = True, unknown: bool = True) -> VerifyResult:
    """Check every git object against its hash, and that everything referred to is present.

    Args:
        hub: The store.
        hash_files: Hash large files, and unreferenced git objects, too. Damaged large files are
            then moved to ``<sha256>.damaged``, so that uploading them again repairs them.
        unknown: Name folders that the database does not know, too.
    """
    result = VerifyResult()
    result.problems += [
        f"settings database: {problem}; {_RESTORE}" for problem in hub.settings.problems()
    ]
    sizes = _large_files(hub, result, hash_files=hash_files)
    rows = hub.settings.rows("SELECT type, namespace, name, folder, extra FROM repos ORDER BY pk")
    for row in rows:
        name, path = f"{row['namespace']}/{row['name']}", hub.repo_path(row["folder"])
        if not (path / "HEAD").exists():
            if hub.settings.row("SELECT 1 FROM repos WHERE folder = ?", row["folder"]) is None:
                continue  # deleted meanwhile
            result.problems.append(
                f"{row['type']} {name}: its repository folder {row['folder']} is missing; "
                f"{_RESTORE}, or delete the repository"
            )
            continue
        result.repositories += 1
        try:
            with opened(path) as repo:
                is_mirror = "upstream" in json.loads(row["extra"])
                problems = _repo_problems(
                    name, repo, sizes, result, every=hash_files, is_mirror=is_mirror
                )
                result.problems += problems
        except Exception as error:  # the others are still to be checked
            result.problems.append(
                f"{name}: cannot be opened ({type(error).__name__}: {error}); {_RESTORE}"
            )
    if hash_files:
        result.problems += [
            f"Xet upload {path.parent.name}/{path.name}: damaged; nothing that was committed needs "
            f"it; remove it with `hubkit hub gc`, and clients send it again"
            for path in hub.xet.damaged()
        ]
    result.problems += _problems_aside(hub, sizes, result, every=hash_files)
    result.problems += [
        f"repository folder {folder}: not in the database; take it in with `hubkit hub adopt "
        f"{folder}`, or move it aside with `hubkit hub set-aside {folder}`"
        for folder in (hub.unknown_folders() if unknown else [])
    ]
    return result


def _problems_aside(
    hub: Store, sizes: dict[str, int], result: VerifyResult, *, every: bool
) -> Iterator[str]:
    """Repositories that were moved aside are kept whole as well."""
    for path in sorted((hub.root / "aside").glob("*")):
        name = f"aside/{path.name}"
        try:
            with opened(path) as repo:
                yield from _repo_problems(name, repo, sizes, result, every=every, is_mirror=False)
        except Exception as error:  # the others are still to be checked
            yield (
                f"{name}: cannot be opened ({type(error).__name__}: {error}); {_RESTORE}, or "
                f"remove {path}"
            )


def _large_files(hub: Store, result: VerifyResult, *, hash_files: bool) -> dict[str, int]:
    """The sizes of all large files that are intact, as far as was looked."""
    sizes: dict[str, int] = {}
    for oid in list(hub.objects):
        result.large_files += 1
        path = hub.objects.path(oid)
        try:
            size = _size_if_intact(path, oid) if hash_files else path.stat().st_size
        except FileNotFoundError:
            result.large_files -= 1  # collected meanwhile
            continue
        except OSError as error:
            result.problems.append(f"large file {oid}: {error.strerror}; {_UPLOAD_AGAIN}")
            continue
        if size is None:
            damaged = path.rename(path.with_name(oid + DAMAGED_SUFFIX))
            result.problems.append(
                f"large file {oid}: its bytes do not have this sha256, moved to {damaged.name}; "
                f"{_UPLOAD_AGAIN}"
            )
        else:
            sizes[oid] = size
    return sizes


def _size_if_intact(path: Path, oid: str) -> int | None:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return size if digest.hexdigest() == oid else None


def _repo_problems(
    name: str,
    repo: GitRepo,
    sizes: dict[str, int],
    result: VerifyResult,
    *,
    every: bool,
    is_mirror: bool,
) -> Iterator[str]:
    if repo.ref(b"refs/heads/main") is None:
        yield f"{name}: has no branch main; {_RESTORE}"
    if (repo.path / "HEAD").read_bytes().strip() != b"ref: refs/heads/main":
        yield f"{name}: HEAD does not name the branch main; {_RESTORE}"
    yield from _unreadable_refs(name, repo)
    if every:
        yield from (f"{name}: {problem}" for problem in packed_refs.problems(repo, _RESTORE))
    visited: set[bytes] = set()
    todo = [
        (sha, f"reference refs/{ref.decode('utf-8', 'replace')}")
        for ref, sha in repo.refs(b"refs").items()
    ]
    while todo:
        sha, origin = todo.pop()
        if sha in visited:
            continue
        visited.add(sha)
        item, problem = _read(repo, sha)
        if item is None:
            yield (
                f"{name}: {origin} leads to {sha.decode()}, which cannot be read ({problem}); "
                f"commit the same file again, or {_RESTORE}"
            )
            continue
        result.git_objects += 1
        todo += [(target, f"object {sha.decode()}") for target in links(item)]
        pointer = trees.parse_pointer(item.as_raw_string()) if isinstance(item, Blob) else None
        if pointer and is_mirror and pointer.oid not in sizes:
            continue  # not read yet, or read again when needed
        if pointer and sizes.get(pointer.oid) != pointer.size:
            yield (
                f"{name}: large file {pointer.oid} ({pointer.size} bytes) is missing or damaged; "
                f"{_UPLOAD_AGAIN}"
            )
    if every:
        yield from _unreferenced_problems(name, repo, visited)


def _unreadable_refs(name: str, repo: GitRepo) -> Iterator[str]:
    """References that are no reference: those are left out wherever references are listed."""
    names = repo.refs(b"refs")
    for path in sorted((repo.path / "refs").rglob("*")):
        if path.is_file() and not path.name.endswith(".lock"):
            ref = path.relative_to(repo.path / "refs").as_posix().encode()
            if len(names.get(ref, b"")) != 40:
                yield f"{name}: reference refs/{ref.decode()} cannot be read; {_RESTORE}"


def _unreferenced_problems(name: str, repo: GitRepo, visited: set[bytes]) -> Iterator[str]:
    for sha in list(repo.store):
        if sha not in visited and (problem := _read(repo, sha)[1]):
            yield (
                f"{name}: object {sha.decode()}, which nothing refers to, cannot be read "
                f"({problem}); remove it with `hubkit hub gc`"
            )


def _read(repo: GitRepo, sha: bytes) -> tuple[ShaFile | None, str]:
    """An object that has the right hash, or why not."""
    try:
        item = repo.store[sha]
        item.check()
        if repo.recomputed(item) != sha:
            raise ChecksumMismatch(sha, item.id)
    except Exception as error:  # whatever is wrong with it, the others are still to be checked
        return None, type(error).__name__
    return item, ""
