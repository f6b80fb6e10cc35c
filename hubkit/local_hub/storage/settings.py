"""The one SQLite file: accounts and everything about repositories that git does not hold.

Written with full synchronisation: when a transaction returns, it survives a power cut. SQLite keeps
no checksum of a row. Therefore each table has an index over all of its columns: a bit that flips in
either makes them differ, which `PRAGMA integrity_check` finds.
"""

from __future__ import annotations

import os
import re
import sqlite3
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hubkit.errors import DiskFullError
from hubkit.local_hub.errors import DISK_FULL, DatabaseDamagedError, Refusal, is_disk_full

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (
    name TEXT PRIMARY KEY COLLATE NOCASE, kind TEXT NOT NULL, fullname TEXT NOT NULL, email TEXT,
    admin INTEGER NOT NULL DEFAULT 0, created_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS members (
    org TEXT NOT NULL COLLATE NOCASE, user TEXT NOT NULL COLLATE NOCASE, role TEXT NOT NULL,
    PRIMARY KEY (org, user));
CREATE TABLE IF NOT EXISTS tokens (
    digest TEXT PRIMARY KEY, user TEXT NOT NULL COLLATE NOCASE, role TEXT NOT NULL,
    name TEXT NOT NULL, created_at TEXT NOT NULL, scope TEXT);
CREATE TABLE IF NOT EXISTS repos (
    pk INTEGER PRIMARY KEY, type TEXT NOT NULL, namespace TEXT NOT NULL COLLATE NOCASE,
    name TEXT NOT NULL COLLATE NOCASE, folder TEXT NOT NULL UNIQUE,
    private INTEGER NOT NULL DEFAULT 0, gated TEXT NOT NULL DEFAULT '', sdk TEXT,
    created_at TEXT NOT NULL, created_by TEXT NOT NULL,
    extra TEXT NOT NULL DEFAULT '{}', UNIQUE (type, namespace, name));
CREATE TABLE IF NOT EXISTS moved (
    type TEXT NOT NULL, namespace TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE,
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, PRIMARY KEY (type, namespace, name));
CREATE TABLE IF NOT EXISTS held (
    oid TEXT NOT NULL, repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
    PRIMARY KEY (oid, repo)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS space_env (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, kind TEXT NOT NULL, key TEXT NOT NULL,
    value TEXT NOT NULL, description TEXT, updated_at TEXT NOT NULL, PRIMARY KEY (repo, kind, key));
CREATE TABLE IF NOT EXISTS discussions (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, num INTEGER NOT NULL,
    title TEXT NOT NULL, status TEXT NOT NULL, is_pull INTEGER NOT NULL, author TEXT NOT NULL,
    created_at TEXT NOT NULL,
    target TEXT NOT NULL DEFAULT 'refs/heads/main', merged TEXT, PRIMARY KEY (repo, num));
CREATE TABLE IF NOT EXISTS events (
    pk INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, num INTEGER NOT NULL,
    type TEXT NOT NULL, author TEXT NOT NULL, created_at TEXT NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS collections (
    id TEXT PRIMARY KEY, namespace TEXT NOT NULL COLLATE NOCASE, slug TEXT NOT NULL,
    title TEXT NOT NULL, description TEXT, private INTEGER NOT NULL, theme TEXT NOT NULL,
    position INTEGER NOT NULL,
    updated_at TEXT NOT NULL, owner TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS collection_items (
    id TEXT PRIMARY KEY, collection TEXT NOT NULL REFERENCES collections ON DELETE CASCADE,
    type TEXT NOT NULL, item TEXT NOT NULL, note TEXT, position INTEGER NOT NULL,
    UNIQUE (collection, type, item));
CREATE TABLE IF NOT EXISTS likes (
    user TEXT NOT NULL COLLATE NOCASE, repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
    created_at TEXT NOT NULL, PRIMARY KEY (user, repo));
CREATE TABLE IF NOT EXISTS access (
    user TEXT NOT NULL COLLATE NOCASE, repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
    status TEXT NOT NULL, asked_at TEXT NOT NULL, fields TEXT, granted_by TEXT,
    PRIMARY KEY (user, repo));
CREATE TABLE IF NOT EXISTS inference_endpoints (
    id TEXT PRIMARY KEY, namespace TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE,
    spec TEXT NOT NULL, state TEXT NOT NULL, message TEXT NOT NULL DEFAULT '',
    created_at TEXT NOT NULL, created_by TEXT NOT NULL, updated_at TEXT NOT NULL,
    UNIQUE (namespace, name));
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, namespace TEXT NOT NULL COLLATE NOCASE, spec TEXT NOT NULL,
    stage TEXT NOT NULL, message TEXT, created_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
    created_by TEXT NOT NULL);
"""


TABLES = re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", _SCHEMA)
_PAGE_BYTES = (4096, 512, 1024, 2048, 8192, 16384, 32768, 65536)
_LOST = "lost_log"


class Settings:
    """One connection, shared by the server's threads one at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it.

        Where no byte is free and it cannot be opened to write, it is opened to read.

        Raises:
            DatabaseDamagedError: It is not a database, or a damaged one.
        """
        self._lock = threading.RLock()
        self.read_only = False
        try:
            log = SettingsLog(path)
            self._connection = self._open_to_write(path, log)
        except sqlite3.Error as error:
            if not is_disk_full(error):
                raise damaged(path, error) from error
            self._connection = self._open_to_read(path, error)
            self.read_only = True
        self._connection.row_factory = sqlite3.Row

    @staticmethod
    def _open_to_write(path: Path, log: SettingsLog) -> sqlite3.Connection:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            for pragma in (
                "busy_timeout=10000",
                "journal_mode=WAL",
                "synchronous=FULL",
                "foreign_keys=ON",
            ):
                connection.execute(f"PRAGMA {pragma}")
            lost = log.lost_pages(connection)
            connection.executescript(_SCHEMA)
            if "scope" not in _columns(connection, "tokens"):
                connection.execute("ALTER TABLE tokens ADD COLUMN scope TEXT")
            _index_whole_rows(connection)
            if lost:
                about = f"{lost} of its last changed pages, found on {date.today()}"
                sql = "INSERT OR REPLACE INTO settings VALUES (?, ?)"
                connection.execute(sql, (_LOST, about))
        except BaseException:
            connection.close()
            raise
        return connection

    @staticmethod
    def _open_to_read(path: Path, error: sqlite3.Error) -> sqlite3.Connection:
        """Without its log a file can be read as it is, and nothing is written."""
        log = path.with_name(path.name + "-wal")
        if not path.exists() or (log.exists() and log.stat().st_size):
            raise DiskFullError(DISK_FULL) from error
        uri = f"file:{quote(str(path))}?mode=ro&immutable=1"
        return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        with self._lock:
            first: sqlite3.Row | None = self._connection.execute(sql, values).fetchone()
            return first

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside happens, or nothing; on return it is on disk.

        Raises:
            Refusal: 507, the disk is full.
        """
        with self._lock:
            if self.read_only:
                raise Refusal(507, DISK_FULL)
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                # Where the disk is full, SQLite may have rolled back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error) and is_disk_full(error):
                    raise Refusal(507, DISK_FULL) from error
                raise

    def write(self, sql: str, *values: Any) -> int:
        """One statement as a transaction of its own; the number of rows it changed."""
        with self.transaction() as connection:
            return connection.execute(sql, values).rowcount

    def get(self, key: str) -> str | None:
        """A named setting."""
        row = self.row("SELECT value FROM settings WHERE key = ?", key)
        return row["value"] if row else None

    def set(self, key: str, value: str) -> None:
        """Set a named setting."""
        self.write("INSERT OR REPLACE INTO settings VALUES (?, ?)", key, value)

    def problems(self) -> list[str]:
        """Return what SQLite finds wrong with the file, one sentence each."""
        with self._lock:
            messages = [row[0] for row in self._connection.execute("PRAGMA integrity_check")]
            dangling = self._connection.execute("PRAGMA foreign_key_check").fetchall()
        problems = [message for message in messages if message != "ok"]
        if lost := self.get(_LOST):
            problems.append(
                f"its log was damaged: what was changed last is lost ({lost}); go on with the rest "
                "by `hubkit hub adopt`"
            )
        return problems + [
            f"table {row[0]} has a row of a repository that is gone" for row in dangling
        ]

    def accept_lost_log(self) -> None:
        """Report no longer what a damaged log lost."""
        self.write("DELETE FROM settings WHERE key = ?", _LOST)

    def copy_to(self, path: Path) -> None:
        """Write a copy of the file, as it is at one moment, to `path`."""
        target = sqlite3.connect(path)
        try:
            with self._lock:
                self._connection.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")
        finally:
            target.close()


class SettingsLog:
    """What SQLite's write-ahead log holds before it is opened: after a crash, SQLite takes from it
    what comes before the first damaged page, and says nothing of the rest.
    """

    _HEADER, _FRAME = struct.Struct(">8xI4x4s4s8x"), struct.Struct(">4xI4s4s8x")
    _INDEX = struct.Struct("=16xI28x")  # of the log: SQLite keeps it twice, then what was copied
    _COPIED = struct.Struct("=I")

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + "-wal")
        self._index = database.with_name(database.name + "-shm")
        self._head = self._read_head()
        self._committed, self._copied = self._pages()

    def lost_pages(self, connection: sqlite3.Connection) -> int:
        """How many pages of committed transactions `connection` did not find in the log."""
        if self._committed <= self._copied:
            return 0
        found_pages = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
        if self._read_head() != self._head:
            return 0  # another process began the log anew
        return max(0, self._committed - max(int(found_pages), self._copied))

    def _read_head(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                return file.read(self._HEADER.size)
        except FileNotFoundError:
            return b""

    def _pages(self) -> tuple[int, int]:
        """How many pages the log holds, and how many of them the database has taken in."""
        try:
            index = self._index.read_bytes()[: 2 * self._INDEX.size + self._COPIED.size]
        except FileNotFoundError:
            index = b""
        first, second = index[: self._INDEX.size], index[self._INDEX.size : -self._COPIED.size]
        if not first or first != second:
            return self._count(), 0
        (pages,), (copied,) = self._INDEX.unpack(first), self._COPIED.unpack(index[-4:])
        return max(self._count(), pages), min(copied, pages)

    def _count(self) -> int:
        """The number of the last page that ends a transaction of this log."""
        if len(self._head) < self._HEADER.size:
            return 0
        page_bytes, *salts = self._HEADER.unpack(self._head)
        if page_bytes not in _PAGE_BYTES:
            page_bytes = _PAGE_BYTES[0]
        # Pages of a former log have other salts, both of them. One of the header, or of the first
        # page, may be what is damaged.
        known, last, number = set(salts), 0, 0
        with self._path.open("rb") as file:
            file.seek(self._HEADER.size)
            while len(frame := file.read(self._FRAME.size)) == self._FRAME.size:
                size, *salts = self._FRAME.unpack(frame)
                number += 1
                if number == 1:
                    known.update(salts)
                if size and known.intersection(salts):
                    last = number
                file.seek(page_bytes, os.SEEK_CUR)
        return last


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def _index_whole_rows(connection: sqlite3.Connection) -> None:
    """Make the index over all columns of each table, where it is not there."""
    for table in TABLES:
        columns = _columns(connection, table)
        indexed = ", ".join(f"{column} COLLATE BINARY" for column in columns)
        name = f"whole_{table}_{len(columns)}"
        connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {table} ({indexed})")


def damaged(path: Path, error: Exception) -> DatabaseDamagedError:
    """Return the error for a database that cannot be used, with the ways out."""
    return DatabaseDamagedError(
        f"The settings database {path} is damaged ({error}). The repositories are not affected. "
        "Restore a backup with `hubkit hub restore`, or move the database away and take the "
        "repositories in again with `hubkit hub adopt`."
    )
