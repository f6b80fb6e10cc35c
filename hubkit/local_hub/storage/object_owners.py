"""Which repositories a large file belongs to, and who may use it therefore."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hubkit.local_hub.storage.accounts import Identity
from hubkit.local_hub.storage.repos import Repo, can_read, may_download

if TYPE_CHECKING:
    from hubkit.local_hub.storage.store import Store


def link(hub: Store, repo: Repo, oids: Iterable[str]) -> None:
    """Remember that these objects belong to a repository."""
    fresh = [(oid, repo.pk) for oid in set(oids)]
    if fresh:
        with hub.settings.transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO held VALUES (?, ?)", fresh)


def is_held_for(hub: Store, identity: Identity | None, oid: str) -> bool:
    """Whether this object belongs to a repository that the caller may read."""
    rows = hub.settings.rows(
        "SELECT r.* FROM held h JOIN repos r ON r.pk = h.repo WHERE h.oid = ?", oid
    )
    repos = [Repo.of(row) for row in rows]
    return any(can_read(identity, repo) and may_download(hub, identity, repo) for repo in repos)
