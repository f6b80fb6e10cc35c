"""Back up a store while it is served, and put a backup in the place of a store.

A backup is a folder of the same layout. The database and the references are copied at one moment,
while commits wait; objects never change, so they are copied afterwards, while garbage collection
waits."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from hubkit.errors import HubError
from hubkit.files import sync_folder
from hubkit.local_hub.storage import packed_refs
from hubkit.local_hub.storage.objects import make_durable_folder
from hubkit.local_hub.storage.repos import CREATING, DELETING
from hubkit.local_hub.storage.store import RESTORED, Store, repo_folders, require_database
from hubkit.local_hub.storage.verification import VerifyResult, check

PARTIAL = ".partial"
_GIT_OBJECTS = "objects"


def backup(hub: Store, target: Path) -> VerifyResult:
    """Copy a store to a new folder, which then is verified.

    Args:
        hub: The store; its server may run.
        target: The folder to make.

    Returns:
        What the verification of the copy found.

    Raises:
        HubError: `target` exists, or is inside the store.
    """
    if target.resolve().is_relative_to(hub.root.resolve()):
        raise HubError(f"{target} is inside the Hub's own folder; give a folder outside")
    with _made_whole(target) as partial:
        with hub.collecting():
            hub.settings.copy_to(partial / "hub.sqlite")
            for name in repo_folders(hub.root):
                _copy_tree(hub.repo_path(name), partial / "repos" / name, skip=_GIT_OBJECTS)
        with hub.using_objects():  # nothing that the references need is collected meanwhile
            for name in repo_folders(partial):
                try:
                    objects = partial / "repos" / name / _GIT_OBJECTS
                    _copy_tree(hub.repo_path(name) / _GIT_OBJECTS, objects)
                except FileNotFoundError as error:
                    message = f"{name} was deleted while it was backed up; run the backup again"
                    raise HubError(message) from error
            _copy_tree(hub.root / "objects", partial / "objects")
        if (hub.root / "aside").is_dir():
            _copy_tree(hub.root / "aside", partial / "aside")
        shutil.copyfile(hub.root / "token", partial / "token")
        (partial / "token").chmod(0o600)
        return _checked(partial)


def restore(source: Path, root: Path) -> Path | None:
    """Put a copy of a backup in the place of a store that is not served.

    Args:
        source: A backup.
        root: The store's folder. What it holds is moved aside, not deleted.

    Returns:
        Where the former folder is now, or None where there was none.

    Raises:
        HubError: `source` is no backup, or damaged.
    """
    if not (source / "hub.sqlite").exists():
        raise HubError(f"{source} is not a backup of an embedded Hub: it has no hub.sqlite")
    require_database(source)
    complete = root.with_name(root.name + RESTORED)
    shutil.rmtree(complete, ignore_errors=True)  # of an attempt that was interrupted
    with _made_whole(complete) as partial:
        for name in ("hub.sqlite", "token"):
            if (source / name).exists():
                shutil.copyfile(source / name, partial / name)
                (partial / name).chmod(0o600)
        for name in ("repos", "objects", "aside"):
            if (source / name).is_dir():
                _copy_tree(source / name, partial / name)
        result = _checked(partial)
        if result.problems:
            raise HubError(f"{source} is damaged, nothing was changed: {result.problems[0]}")
    former = None
    if root.exists():
        former = root.with_name(f"{root.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S}")
        root.rename(former)
    complete.rename(root)
    sync_folder(root.parent)
    return former


def _checked(folder: Path) -> VerifyResult:
    """Verify a copy, in which every reference has a file of its own."""
    for path in (*(folder / "repos").glob("*"), *(folder / "aside").glob("*")):
        packed_refs.take_apart(path)
    copy = Store(folder)
    try:
        return check(copy)
    finally:
        copy.close()


@contextmanager
def _made_whole(target: Path) -> Iterator[Path]:
    """A folder that gets its name when the block ends well; until then it is `target`.partial."""
    if target.exists() and any(target.iterdir()):
        raise HubError(f"{target} exists and is not empty; give a new folder")
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    make_durable_folder(partial)
    partial.chmod(0o700)
    for name in ("repos", "objects"):
        (partial / name).mkdir()
    try:
        yield partial
        for name in ("hub.sqlite-wal", "hub.sqlite-shm", "gc.lock", "reserve"):
            (partial / name).unlink(missing_ok=True)
        _sync(partial)
        if target.exists():
            target.rmdir()
        partial.rename(target)
        sync_folder(target.parent)
    except sqlite3.Error as error:
        raise HubError(f"copying to {partial} failed: {error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy_tree(source: Path, target: Path, *, skip: str = "") -> None:
    """Copy files and folders; links, and what is on its way in or out, are left out."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in os.scandir(source):
        if entry.name == skip or entry.name.endswith((CREATING, DELETING, ".lock")):
            continue
        if entry.is_dir(follow_symlinks=False):
            _copy_tree(Path(entry.path), target / entry.name)
        elif entry.is_file(follow_symlinks=False) and not entry.name.startswith("tmp"):
            shutil.copy2(entry.path, target / entry.name)
    shutil.copystat(source, target)


def _sync(folder: Path) -> None:
    """Make everything below a folder durable."""
    for path, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(path) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(path))
