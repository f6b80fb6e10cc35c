"""The folder of one embedded Hub, and everything that works on it.

DIR/hub.sqlite      settings           DIR/repos/*.git     bare git repositories
DIR/objects/        large files        DIR/xet/            what arrives by the Xet protocol
DIR/tmp/            on their way in    DIR/token           the owner's write token (mode 0600)
DIR/key             proves to the owner's clients that they talk to this Hub (mode 0600)
DIR/endpoints/      engines' logs      DIR/jobs/           jobs' logs
DIR/spaces/         apps' logs, and their files while they run
DIR/server.json     address of the running server          DIR/lock, DIR/gc.lock
DIR/upstream/       what arrived of large files of the upstream
DIR/aside/          repositories moved aside on request    DIR/reserve         see `disk_space`
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubkit.errors import HubError
from hubkit.files import write_whole
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.accounts import OWNER, Accounts
from hubkit.local_hub.storage.disk_space import DiskSpace
from hubkit.local_hub.storage.objects import Objects, make_durable_folder
from hubkit.local_hub.storage.repos import CREATING, DELETING
from hubkit.local_hub.storage.settings import Settings, damaged
from hubkit.local_hub.storage.xet_store import XetStore

MULTIPART_ABOVE_BYTES = 5 * 2**30
PART_BYTES = 512 * 2**20
_KEY = re.compile("[0-9a-f]{64}")
RESTORED = ".restored"
"""Ending of a folder that is about to take the place of a store."""


class Store:
    """One folder, opened. Several processes may open it; only one may serve it (see `server`)."""

    def __init__(self, root: Path, *, adopting: bool = False) -> None:
        """Open a folder, or make it.

        Args:
            root: The folder.
            adopting: The caller takes in what a missing database does not know.

        Raises:
            HubError: The database is missing beside repositories, or damaged.
        """
        self.root = root
        if not adopting:
            require_database(root)
        for name in ("repos", "objects", "xet", "tmp"):
            make_durable_folder(root / name)
        root.chmod(0o700)
        self.disk = DiskSpace(root)
        self.disk.free_reserve_if_short()
        self.settings = Settings(root / "hub.sqlite")
        self.disk.keep_reserve()
        self.accounts = Accounts(self.settings)
        self.objects = Objects(root / "objects", root / "tmp")
        self.xet = XetStore(self)
        self.multipart_above_bytes = MULTIPART_ABOVE_BYTES
        self.part_bytes = PART_BYTES
        self._locks: dict[str, threading.Lock] = {}
        self._secret = self._first_start()
        self._gc_lock = os.open(root / "gc.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._gc_shared = 0
        self._gc_guard = threading.Lock()

    def _first_start(self) -> bytes:
        if self.settings.get("secret") is None:
            self.accounts.add_user(OWNER, fullname="Owner of this machine", admin=True)
            self.settings.set("secret", secrets.token_hex(32))
        if not _KEY.fullmatch(_content(self.root / "key")):  # none yet, or a damaged one
            write_whole(self.root / "key", secrets.token_hex(32).encode(), mode=0o600, durable=True)
        token = _content(self.root / "token")
        if not self.accounts.knows(token):
            # The database was lost or replaced; the file is the owner's alone.
            try:
                self.accounts.add_token(OWNER, "write", name="owner", token=token)
            except Refusal:  # there is none yet, or it was damaged
                token = self.accounts.add_token(OWNER, "write", name="owner")
                write_whole(self.root / "token", token.encode(), mode=0o600, durable=True)
        try:
            return bytes.fromhex(self.settings.get("secret") or "")
        except ValueError as error:
            raise damaged(self.root / "hub.sqlite", error) from error

    def proof(self, challenge: str, port: int) -> str:
        """Return what only the server of this folder can answer to `challenge` at `port`."""
        key = (self.root / "key").read_bytes()
        message = "\0".join((challenge, str(self.root.resolve()), str(port)))
        return hmac.new(key, message.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def unknown_folders(self) -> list[str]:
        """Return the names of repository folders that the database does not know."""
        folders = repo_folders(self.root)  # first: a row is made before its folder has its name
        rows = {row["folder"] for row in self.settings.rows("SELECT folder FROM repos")}
        return [name for name in folders if name not in rows and self.repo_path(name).exists()]

    def require_known_folders(self) -> None:
        """Refuse a database that was lost and made again.

        Raises:
            HubError: It knows no repository, but there are folders of some.
        """
        folders = repo_folders(self.root)
        if folders and self.settings.row("SELECT 1 FROM repos LIMIT 1") is None:
            raise _database_lost(self.root, "knows no repository", len(folders))

    def close(self) -> None:
        """Finish the assemblies under way and close the files."""
        self.xet.close()
        self.settings.close()
        os.close(self._gc_lock)

    def repo_path(self, folder: str) -> Path:
        """Where a repository's bare git folder is."""
        return self.root / "repos" / folder

    @contextmanager
    def writing(self, folder: str) -> Iterator[None]:
        """Move references of a repository, one thread at a time, while garbage collection waits.

        Raises `Refusal` 404 where the repository was deleted meanwhile.
        """
        with self.using_objects(), self._locks.setdefault(folder, threading.Lock()):
            if self.settings.row("SELECT 1 FROM repos WHERE folder = ?", folder) is None:
                raise Refusal(404, "Repository not found", "RepoNotFound")
            yield

    @contextmanager
    def using_objects(self) -> Iterator[None]:
        """Hold garbage collection off while something refers to objects that no commit refers to
        yet.
        """
        with self._gc_guard:
            if self._gc_shared == 0:
                fcntl.flock(self._gc_lock, fcntl.LOCK_SH)
            self._gc_shared += 1
        try:
            yield
        finally:
            with self._gc_guard:
                self._gc_shared -= 1
                if self._gc_shared == 0:
                    fcntl.flock(self._gc_lock, fcntl.LOCK_UN)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Hold commits off while garbage is collected, from any process."""
        handle = os.open(self.root / "gc.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    # Addresses and tokens that we hand out ourselves are signed, so that nothing about them need be
    # kept.

    def sign(self, *parts: str, lifetime_s: int = 6 * 3600) -> str:
        """A signature over `parts` that holds for `lifetime_s`."""
        expires = str(int(time.time()) + lifetime_s)
        return f"{expires}.{self._mac(*parts, expires)}"

    def check_signature(self, signature: str, *parts: str) -> None:
        """Raises `Refusal` 403 unless `signature` was made for these parts and still holds."""
        expires, _, mac = signature.partition(".")
        good = hmac.compare_digest(
            mac.encode("utf-8", "replace"), self._mac(*parts, expires).encode()
        )
        if not good or not expires.isdecimal() or int(expires) < time.time():
            raise Refusal(403, "This address is not signed by this Hub, or no longer valid.")

    def _mac(self, *parts: str) -> str:
        text = "\0".join(parts).encode("utf-8", "replace")
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()


def _content(path: Path) -> str:
    """The text of a small file; empty where there is none."""
    try:
        return path.read_text("ascii", "replace").strip()
    except FileNotFoundError:
        return ""


def repo_folders(root: Path) -> list[str]:
    """Return the names of the folders of repositories in a store, known or not."""
    folder = root / "repos"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if not name.endswith((CREATING, DELETING)))


def require_database(root: Path) -> None:
    """Refuse to make a new database for the repositories of another.

    Raises:
        HubError: There are folders of repositories and no database.
    """
    if (root / "hub.sqlite").exists():
        return
    if root.with_name(root.name + RESTORED).is_dir():
        raise HubError(
            f"restoring {root} was interrupted; run `hubkit hub restore` with the same backup again"
        )
    if folders := repo_folders(root):
        raise _database_lost(root, "is missing", len(folders))


def _database_lost(root: Path, problem: str, count: int) -> HubError:
    return HubError(
        f"The settings database {root / 'hub.sqlite'} {problem}, but there are {count} "
        f"repositories in {root / 'repos'}. Nothing was changed. Put the database back, restore a "
        "backup with `hubkit hub restore`, or take the repositories in "
        "again with `hubkit hub adopt`."
    )
