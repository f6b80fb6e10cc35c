"""The one SQLite file: accounts and everything about repositories that git does not hold.

Written with full synchronisation: when a transaction returns, it survives a power cut.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (
    name TEXT PRIMARY KEY COLLATE NOCASE, kind TEXT NOT NULL, fullname TEXT NOT NULL, email TEXT,
    admin INTEGER NOT NULL DEFAULT 0, created_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS members (
    org TEXT NOT NULL COLLATE NOCASE, user TEXT NOT NULL COLLATE NOCASE, role TEXT NOT NULL,
    PRIMARY KEY (org, user));
CREATE TABLE IF NOT EXISTS tokens (
    digest TEXT PRIMARY KEY, user TEXT NOT NULL COLLATE NOCASE, role TEXT NOT NULL, name TEXT NOT NULL,
    created_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS repos (
    pk INTEGER PRIMARY KEY, type TEXT NOT NULL, namespace TEXT NOT NULL COLLATE NOCASE,
    name TEXT NOT NULL COLLATE NOCASE, folder TEXT NOT NULL UNIQUE, private INTEGER NOT NULL DEFAULT 0,
    gated TEXT NOT NULL DEFAULT '', sdk TEXT, created_at TEXT NOT NULL, created_by TEXT NOT NULL,
    extra TEXT NOT NULL DEFAULT '{}', UNIQUE (type, namespace, name));
CREATE TABLE IF NOT EXISTS moved (
    type TEXT NOT NULL, namespace TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE,
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, PRIMARY KEY (type, namespace, name));
CREATE TABLE IF NOT EXISTS held (
    oid TEXT NOT NULL, repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, PRIMARY KEY (oid, repo)
    ) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS space_env (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, kind TEXT NOT NULL, key TEXT NOT NULL,
    value TEXT NOT NULL, description TEXT, updated_at TEXT NOT NULL, PRIMARY KEY (repo, kind, key));
CREATE TABLE IF NOT EXISTS discussions (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, num INTEGER NOT NULL, title TEXT NOT NULL,
    status TEXT NOT NULL, is_pull INTEGER NOT NULL, author TEXT NOT NULL, created_at TEXT NOT NULL,
    target TEXT NOT NULL DEFAULT 'refs/heads/main', merged TEXT, PRIMARY KEY (repo, num));
CREATE TABLE IF NOT EXISTS events (
    pk INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
    num INTEGER NOT NULL, type TEXT NOT NULL, author TEXT NOT NULL, created_at TEXT NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS collections (
    id TEXT PRIMARY KEY, namespace TEXT NOT NULL COLLATE NOCASE, slug TEXT NOT NULL, title TEXT NOT NULL,
    description TEXT, private INTEGER NOT NULL, theme TEXT NOT NULL, position INTEGER NOT NULL,
    updated_at TEXT NOT NULL, owner TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS collection_items (
    id TEXT PRIMARY KEY, collection TEXT NOT NULL REFERENCES collections ON DELETE CASCADE, type TEXT NOT NULL,
    item TEXT NOT NULL, note TEXT, position INTEGER NOT NULL, UNIQUE (collection, type, item));
CREATE TABLE IF NOT EXISTS likes (
    user TEXT NOT NULL COLLATE NOCASE, repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
    created_at TEXT NOT NULL, PRIMARY KEY (user, repo));
CREATE TABLE IF NOT EXISTS access (
    user TEXT NOT NULL COLLATE NOCASE, repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
    status TEXT NOT NULL, asked_at TEXT NOT NULL, fields TEXT, granted_by TEXT, PRIMARY KEY (user, repo));
CREATE TABLE IF NOT EXISTS inference_endpoints (
    id TEXT PRIMARY KEY, namespace TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE,
    spec TEXT NOT NULL, state TEXT NOT NULL, message TEXT NOT NULL DEFAULT '', created_at TEXT NOT NULL,
    created_by TEXT NOT NULL, updated_at TEXT NOT NULL, UNIQUE (namespace, name));
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, namespace TEXT NOT NULL COLLATE NOCASE, spec TEXT NOT NULL, stage TEXT NOT NULL,
    message TEXT, created_at TEXT NOT NULL, started_at TEXT, finished_at TEXT, created_by TEXT NOT NULL);
"""


class Settings:
    """One connection, shared by the server's threads one at a time."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "busy_timeout=10000",
        ):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_SCHEMA)

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
        """Everything inside happens, or nothing; on return it is on disk."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

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
