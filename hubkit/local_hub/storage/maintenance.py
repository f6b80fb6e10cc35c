"""Maintenance of a store: clear up after a crash, collect garbage, adopt lost repositories.

Nothing that a person made is deleted on a guess: what the database does not know is kept, listed by
`verification`, and adopted or moved aside on request."""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dulwich.errors import ApplyDeltaError, ChecksumMismatch
from dulwich.object_format import SHA1
from dulwich.objects import Blob
from dulwich.pack import PackData

from hubkit.errors import HubError
from hubkit.files import sync_folder
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage import packed_refs, trees
from hubkit.local_hub.storage.accounts import OWNER, now
from hubkit.local_hub.storage.git import GitRepo, links, opened
from hubkit.local_hub.storage.object_owners import link
from hubkit.local_hub.storage.objects import DAMAGED_SUFFIX, make_durable_folder
from hubkit.local_hub.storage.repos import CREATING, DELETING, PREFIX, Repo
from hubkit.local_hub.storage.store import Store
from hubkit.local_hub.storage.verification import check

UNREADABLE = ".unreadable"
_FOLDER = re.compile(rf"({'|'.join(PREFIX)})s--(.+?)--(.+)--[0-9a-f]{{10}}\.git")


def sweep(hub: Store) -> None:
    """Finish or undo what a crash interrupted. Only for the process that holds the folder's lock.

    Files on their way in go; repositories that were being created or deleted become what their row
    says; a pack without its index gets one. Everything else stays."""
    for path in (hub.root / "tmp").iterdir():
        path.unlink(missing_ok=True)
    with suppress(Refusal):  # the disk is full: the next start does it
        hub.xet.require_seals()
    rows = {row["folder"] for row in hub.settings.rows("SELECT folder FROM repos")}
    for folder in sorted((hub.root / "repos").iterdir()):
        if folder.name.endswith((CREATING, DELETING)):
            name = folder.name.removesuffix(CREATING).removesuffix(DELETING)
            if name in rows and not hub.repo_path(name).exists():
                folder.rename(hub.repo_path(name))
                sync_folder(folder.parent)
                _sweep_repo(hub.repo_path(name))
            else:
                shutil.rmtree(folder, ignore_errors=True)
        elif folder.is_dir():
            _sweep_repo(folder)
    for folder in _repository_paths(hub):
        packed_refs.take_apart(folder)


def _sweep_repo(folder: Path) -> None:
    packs = folder / "objects" / "pack"
    leftovers = [
        *(folder / "refs").rglob("*.lock"),
        *folder.glob("*.lock"),
        *packs.glob("*.lock"),
        *packs.glob("tmp*"),
    ]
    for path in leftovers:
        path.unlink(missing_ok=True)
    for pack in packs.glob("pack-*.pack"):
        if not pack.with_suffix(".idx").exists():
            _index_again(pack)


def _index_again(pack: Path) -> None:
    """Write a pack's index anew; a pack that cannot be read is kept under another name."""
    index = pack.with_suffix(".idx")
    temporary = index.with_name(f"tmp-{index.name}")
    try:
        data = PackData(str(pack), SHA1)
        try:
            data.check()
            data.create_index_v2(str(temporary))
        finally:
            data.close()
        temporary.rename(index)
        sync_folder(index.parent)
    except OSError:
        temporary.unlink(missing_ok=True)  # no space: the next start tries again
    except (AssertionError, ApplyDeltaError, ChecksumMismatch, EOFError, ValueError, zlib.error):
        temporary.unlink(missing_ok=True)
        pack.rename(pack.with_name(pack.name + UNREADABLE))


# garbage


@dataclass
class GcResult:
    """What garbage collection removed, or the problems for which it removed nothing."""

    large_files: int = 0
    git_objects: int = 0
    bytes: int = 0
    kept: int = 0  # key of the JSON that `hubkit hub gc` prints
    problems: list[str] = field(default_factory=list)


def collect(hub: Store, grace_s: float) -> GcResult:
    """Remove large files and loose git objects that no reference leads to and that are older than
    `grace_s` seconds.

    Safe while a server runs: commits wait meanwhile, and what a client was just told to be present
    is young. Works with no byte free. Nothing is removed while the store has problems."""
    result = GcResult()
    hub.disk.free_reserve_if_short()
    with hub.collecting():
        problems = check(hub, hash_files=False).problems
        if problems:
            result.problems = problems
            return result
        before = time.time() - grace_s
        used: set[str] = set()
        for path in _repository_paths(hub):
            with opened(path) as repo:
                reachable, pointers = _reachable(repo)
                used |= {pointer.oid for pointer in pointers}
                _collect_loose(repo, reachable, before, result)
        removed = [
            oid for oid in list(hub.objects) if _collect_large(hub, oid, used, before, result)
        ]
        _collect_damaged(hub, before, result)
        _collect_damaged_uploads(hub, result)
        _collect_partial(hub, before, result)
        if removed:
            with hub.settings.transaction() as connection:
                connection.executemany("DELETE FROM held WHERE oid = ?", [(o,) for o in removed])
            hub.xet.forget_everything()
    hub.disk.keep_reserve()
    return result


def _repository_paths(hub: Store) -> Iterator[Path]:
    """The folders of all repositories, those that were moved aside too."""
    for folder in (hub.root / "repos", hub.root / "aside"):
        if folder.is_dir():
            yield from (path for path in sorted(folder.iterdir()) if (path / "HEAD").exists())


def _reachable(repo: GitRepo) -> tuple[set[bytes], list[trees.Pointer]]:
    """All objects that references lead to, and the large files among them."""
    visited: set[bytes] = set()
    pointers = []
    todo = list(repo.refs(b"refs").values())
    while todo:
        sha = todo.pop()
        if sha in visited:
            continue
        visited.add(sha)
        item = repo.store[sha]
        todo += links(item)
        pointer = trees.parse_pointer(item.as_raw_string()) if isinstance(item, Blob) else None
        if pointer:
            pointers.append(pointer)
    return visited, pointers


def _collect_loose(repo: GitRepo, reachable: set[bytes], before: float, result: GcResult) -> None:
    for path in (repo.path / "objects").glob("??/*"):
        name = (path.parent.name + path.name).encode()
        stat = path.stat()
        if name not in reachable and stat.st_mtime < before:
            path.unlink(missing_ok=True)
            result.git_objects += 1
            result.bytes += stat.st_size


def _collect_large(hub: Store, oid: str, used: set[str], before: float, result: GcResult) -> bool:
    stat = hub.objects.path(oid).stat()
    if oid in used or stat.st_mtime >= before:
        result.kept += 1
        return False
    hub.objects.remove(oid)
    result.large_files += 1
    result.bytes += stat.st_size
    return True


def _collect_damaged(hub: Store, before: float, result: GcResult) -> None:
    """Remove damaged copies of large files that have been uploaded again since."""
    for path in hub.objects.folder.glob(f"??/??/*{DAMAGED_SUFFIX}"):
        stat = path.stat()
        if path.with_suffix("").exists() and stat.st_mtime < before:
            path.unlink(missing_ok=True)
            result.bytes += stat.st_size


def _collect_damaged_uploads(hub: Store, result: GcResult) -> None:
    """Remove what was damaged of Xet uploads: whoever refers to it is told to send it again."""
    for path in hub.xet.damaged():
        result.bytes += path.stat().st_size
        path.unlink(missing_ok=True)


def _collect_partial(hub: Store, before: float, result: GcResult) -> None:
    """Remove what arrived of large files of the upstream, and was not resumed for long."""
    for path in (hub.root / "upstream").glob("*.partial"):
        stat = path.stat()
        if stat.st_mtime < before:
            path.unlink(missing_ok=True)
            result.bytes += stat.st_size


# folders that the database does not know


def adopt(hub: Store, names: list[str] | None = None) -> list[str]:
    """Take repositories in that the database does not know; private, for who saw them is unknown.

    Args:
        hub: The store.
        names: Folders below ``repos``; all unknown ones when None.

    Returns:
        The ids of the adopted repositories.

    Raises:
        HubError: A folder is not an unknown repository.
    """
    return [_adopt_one(hub, folder) for folder in _unknown(hub, names)]


def set_aside(hub: Store, names: list[str] | None = None) -> list[str]:
    """Move repositories that the database does not know to ``aside``; the new paths."""
    make_durable_folder(hub.root / "aside")
    targets = []
    for folder in _unknown(hub, names):
        target = hub.root / "aside" / folder
        hub.repo_path(folder).rename(target)
        targets.append(str(target))
    sync_folder(hub.root / "aside")
    sync_folder(hub.root / "repos")
    return targets


def _unknown(hub: Store, names: list[str] | None) -> list[str]:
    unknown = hub.unknown_folders()
    for name in names or []:
        if name not in unknown:
            listing = ", ".join(unknown) or "none"
            raise HubError(f"{name!r} is not an unknown repository folder; unknown are: {listing}")
    return names or unknown


def _adopt_one(hub: Store, folder: str) -> str:
    match = _FOLDER.fullmatch(folder)
    if match is None or not (hub.repo_path(folder) / "HEAD").exists():
        raise HubError(f"{hub.repo_path(folder)} is not a repository of a Hub; move it aside")
    kind, namespace, name = match.groups()
    if not hub.accounts.exists(namespace):
        hub.accounts.add_org(namespace, {OWNER: "admin"})
    with opened(hub.repo_path(folder)) as repo:
        oids = []
        with suppress(KeyError):  # `verify` names what is missing
            oids = [pointer.oid for pointer in _reachable(repo)[1]]
    for suffix in ("", f"-adopted-{folder[-14:-4]}"):
        with suppress(sqlite3.IntegrityError):
            hub.settings.write(
                "INSERT INTO repos (type, namespace, name, folder, private, sdk, created_at,"
                " created_by) VALUES (?, ?, ?, ?, 1, ?, ?, ?)",
                *(kind, namespace, name + suffix, folder),
                *("gradio" if kind == "space" else None, now(), OWNER),
            )
            break
    row = hub.settings.row("SELECT * FROM repos WHERE folder = ?", folder)
    assert row is not None  # one of the names was free
    link(hub, Repo.of(row), oids)
    return Repo.of(row).id
