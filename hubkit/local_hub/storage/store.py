"""The folder of one embedded Hub, and everything that works on it.

DIR/hub.sqlite      settings           DIR/repos/*.git     bare git repositories
DIR/objects/        large files        DIR/xet/            what arrives by the Xet protocol
DIR/tmp/            on their way in    DIR/token           the owner's write token (mode 0600)
DIR/endpoints/      engines' logs      DIR/jobs/           jobs' logs
DIR/spaces/         apps' logs, and their files while they run
DIR/server.json     address of the running server          DIR/lock, DIR/gc.lock
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.accounts import OWNER, Accounts
from hubkit.local_hub.storage.objects import Objects, make_durable_folder, write_durably
from hubkit.local_hub.storage.settings import Settings
from hubkit.local_hub.storage.xet_store import XetStore

MULTIPART_ABOVE_BYTES = 5 * 2**30
PART_BYTES = 512 * 2**20


class Store:
    """One folder, opened. Several processes may open it; only one may serve it (see `server`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("repos", "objects", "xet", "tmp"):
            make_durable_folder(root / name)
        root.chmod(0o700)
        self.settings = Settings(root / "hub.sqlite")
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
        if not (self.root / "token").exists():
            token = self.accounts.add_token(OWNER, "write", name="owner")
            write_durably(self.root / "token", token.encode(), mode=0o600)
        return bytes.fromhex(self.settings.get("secret") or "")

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
