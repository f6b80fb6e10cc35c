"""Looking after the folder: sweep up after a crash, collect garbage, verify."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dulwich.errors import ChecksumMismatch
from dulwich.objects import Blob, Commit, ShaFile, Tag, Tree

from hubkit.errors import HubError
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.git import GitRepo, opened
from hubkit.local_hub.storage.store import Store

_BLOCK_BYTES = 4 * 2**20


def sweep(hub: Store) -> None:
    """Remove what a crash left behind: files on their way in, lock files, repositories without a
    row (or half made).

    Only for the process that holds the folder's lock.
    """
    for path in (hub.root / "tmp").iterdir():
        path.unlink(missing_ok=True)
    known = {row["folder"] for row in hub.settings.rows("SELECT folder FROM repos")}
    for folder in (hub.root / "repos").iterdir():
        if folder.name not in known:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _sweep_repo(folder)


def _sweep_repo(folder: Path) -> None:
    packs = folder / "objects" / "pack"
    leftovers = [
        *(folder / "refs").rglob("*.lock"),
        *folder.glob("*.lock"),
        *packs.glob("*.lock"),
        *packs.glob("tmp*"),
    ]
    leftovers += [
        pack for pack in packs.glob("pack-*.pack") if not pack.with_suffix(".idx").exists()
    ]
    for path in leftovers:
        path.unlink(missing_ok=True)


# garbage


@dataclass
class Collected:
    """What garbage collection removed."""

    large_files: int = 0
    git_objects: int = 0
    bytes: int = 0
    kept: int = 0


def collect(hub: Store, grace_s: float) -> Collected:
    """Remove large files and loose git objects that no reference leads to and that are older than
    `grace_s` seconds.

    Safe beside a running server: commits wait meanwhile, and what a client was just told to be here
    is young."""
    result = Collected()
    with hub.collecting():
        before = time.time() - grace_s
        used: set[str] = set()
        for _, repo in _repos(hub):
            reachable, pointers = _reachable(repo)
            used |= {pointer.oid for pointer in pointers}
            _collect_loose(repo, reachable, before, result)
        for oid in list(hub.objects):
            _collect_large(hub, oid, used, before, result)
        if result.large_files:
            hub.xet.forget_everything()
    return result


def _repos(hub: Store) -> Iterator[tuple[str, GitRepo]]:
    for row in hub.settings.rows("SELECT namespace, name, folder FROM repos ORDER BY pk"):
        path = hub.repo_path(row["folder"])
        if (path / "HEAD").exists():
            with opened(path) as repo:
                yield f"{row['namespace']}/{row['name']}", repo


def _reachable(repo: GitRepo) -> tuple[set[bytes], list[trees.Pointer]]:
    """All objects that references lead to, and the large files among them."""
    seen: set[bytes] = set()
    pointers = []
    todo = list(repo.refs(b"refs").values())
    while todo:
        sha = todo.pop()
        if sha in seen:
            continue
        seen.add(sha)
        item = repo.store[sha]
        todo += _links(item)
        pointer = trees.parse_pointer(item.as_raw_string()) if isinstance(item, Blob) else None
        if pointer:
            pointers.append(pointer)
    return seen, pointers


def _links(item: ShaFile) -> list[bytes]:
    if isinstance(item, Commit):
        return [item.tree, *item.parents]
    if isinstance(item, Tag):
        return [item.object[1]]
    return [sha for _, _, sha in item.items()] if isinstance(item, Tree) else []


def _collect_loose(repo: GitRepo, reachable: set[bytes], before: float, result: Collected) -> None:
    for path in (repo.path / "objects").glob("??/*"):
        name = (path.parent.name + path.name).encode()
        stat = path.stat()
        if name not in reachable and stat.st_mtime < before:
            path.unlink(missing_ok=True)
            result.git_objects += 1
            result.bytes += stat.st_size


def _collect_large(hub: Store, oid: str, used: set[str], before: float, result: Collected) -> None:
    stat = hub.objects.path(oid).stat()
    if oid in used or stat.st_mtime >= before:
        result.kept += 1
        return
    hub.settings.write("DELETE FROM held WHERE oid = ?", oid)
    hub.objects.remove(oid)
    result.large_files += 1
    result.bytes += stat.st_size


# verify


@dataclass
class Verified:
    """What was checked, and what is wrong with it (one sentence each)."""

    repositories: int = 0
    git_objects: int = 0
    large_files: int = 0
    problems: list[str] = field(default_factory=list)


def verify(hub: Store) -> Verified:
    """Check every git object and every large file against its hash, and that each thing referred to
    is here.
    """
    result = Verified()
    sound: dict[str, int] = {}
    for oid in list(hub.objects):
        result.large_files += 1
        size = _sound_size(hub.objects.path(oid), oid)
        if size is None:
            result.problems.append(f"large file {oid}: its bytes do not have this sha256")
        else:
            sound[oid] = size
    rows = {row["folder"] for row in hub.settings.rows("SELECT folder FROM repos")}
    gone = [folder for folder in sorted(rows) if not (hub.repo_path(folder) / "HEAD").exists()]
    result.problems += [f"repository folder {folder}: missing" for folder in gone]
    for name, repo in _repos(hub):
        result.repositories += 1
        result.problems += _repo_problems(name, repo, sound, result)
    return result


def _sound_size(path: Path, oid: str) -> int | None:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return size if digest.hexdigest() == oid else None


def _repo_problems(
    name: str, repo: GitRepo, sound: dict[str, int], result: Verified
) -> Iterator[str]:
    if repo.ref(b"refs/heads/main") is None:
        yield f"{name}: has no branch main"
    seen: set[bytes] = set()
    todo = [
        (sha, f"reference refs/{ref.decode('utf-8', 'replace')}")
        for ref, sha in repo.refs(b"refs").items()
    ]
    while todo:
        sha, where = todo.pop()
        if sha in seen:
            continue
        seen.add(sha)
        try:
            item = repo.store[sha]
            item.check()
            if repo.recomputed(item) != sha:
                raise ChecksumMismatch(sha, item.id)
        except (
            Exception
        ) as error:  # whatever is wrong with an object, the others are still to be checked
            yield f"{name}: {where} leads to {sha.decode()}, which cannot be read ({type(error).__name__})"
            continue
        result.git_objects += 1
        todo += [(link, f"object {sha.decode()}") for link in _links(item)]
        pointer = trees.parse_pointer(item.as_raw_string()) if isinstance(item, Blob) else None
        if pointer and sound.get(pointer.oid) != pointer.size:
            yield f"{name}: large file {pointer.oid} ({pointer.size} bytes) is missing or damaged"


# the command


def run_action(action: str, root: Path, *, grace_s: float, as_json: bool) -> int:
    """`gc` or `verify` on a folder; prints the result, returns 1 where `verify` found problems.
    Raises `HubError`.
    """
    if not (root / "hub.sqlite").exists():
        raise HubError(f"There is no embedded Hub in {root}.")
    hub = Store(root)
    try:
        result = collect(hub, grace_s) if action == "gc" else verify(hub)
    finally:
        hub.close()
    problems = result.problems if isinstance(result, Verified) else []
    sys.stdout.write(json.dumps(asdict(result)) + "\n" if as_json else _in_words(result))
    return 1 if problems else 0


def _in_words(result: Collected | Verified) -> str:
    if isinstance(result, Collected):
        removed = f"{result.large_files} large files and {result.git_objects} git objects"
        return f"Removed {removed} ({result.bytes} bytes).\n"
    checked = f"{result.repositories} repositories, {result.git_objects} git objects, {result.large_files} large files"
    lines = [*result.problems, f"Checked {checked}: {len(result.problems)} problems."]
    return "".join(f"{line}\n" for line in lines)
