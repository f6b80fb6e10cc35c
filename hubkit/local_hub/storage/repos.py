"""Repositories as things with a name: create, delete, move, settings, and who may see them.

A repository is a folder under an invented, never re-used name plus one row in SQLite. The row is
the commit point: create makes the folder first, delete removes it last, move only changes the row.
Until then the folder's name ends with what is being done to it, so that the next start can finish
or undo what a crash interrupted. A folder without a row and without such an ending is one that the
database lost: it is kept (see `maintenance.adopt`)."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hubkit.files import sync_folder
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.accounts import Identity, now
from hubkit.local_hub.storage.git import GitRepo, NewObject, new_commit, opened
from hubkit.untrusted import JsonObject

if TYPE_CHECKING:
    from hubkit.local_hub.storage.store import Store

PLURALS = {"models": "model", "datasets": "dataset", "spaces": "space", "kernels": "kernel"}
PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/", "kernel": "kernels/"}
CREATING, DELETING = ".creating", ".deleting"
SDKS = ("gradio", "docker", "static", "streamlit")

_BINARY = """
    7z arrow bin bz2 ckpt ftz gguf gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot
    parquet pb pickle pkl pt pth rar safetensors saved_model/**/* tar.* tar tflite tgz wasm xz
    zip zst
    """.split()  # noqa: SIM905 - one word a word
_MEDIA = """
    pcm sam raw aac flac mp3 ogg wav bmp gif png tiff jpg jpeg webp mp4 webm
    """.split()  # noqa: SIM905 - one word a word


@dataclass(frozen=True)
class Repo:
    """A row of the table of repositories."""

    pk: int
    type: str
    namespace: str
    name: str
    folder: str
    private: bool
    gated: str
    sdk: str | None
    created_at: str
    created_by: str
    extra: JsonObject

    @property
    def id(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def upstream(self) -> bool:
        """Whether this mirrors a repository of the upstream, and is read-only."""
        return "upstream" in self.extra

    @property
    def web_path(self) -> str:
        """Path of its page, type prefix included."""
        return f"/{PREFIX[self.type]}{self.id}"

    @classmethod
    def of(cls, row: sqlite3.Row) -> Repo:
        """From a row."""
        keys = set(row.keys()) - {"private", "extra"}
        values = {key: row[key] for key in keys}
        return cls(**values, private=bool(row["private"]), extra=json.loads(row["extra"]))


def can_read(identity: Identity | None, repo: Repo) -> bool:
    """Whether this caller may know that the repository exists."""
    return not repo.private or _is_own(identity, repo)


def may_download(hub: Store, identity: Identity | None, repo: Repo) -> bool:
    """Whether this caller may have the files of a repository that it can see."""
    if not repo.gated or _is_own(identity, repo):
        return True
    if identity is None or identity.scope is not None:
        return False
    row = hub.settings.row(
        "SELECT status FROM access WHERE user=? AND repo=?", identity.user, repo.pk
    )
    return row is not None and row["status"] == "accepted"


def _is_own(identity: Identity | None, repo: Repo) -> bool:
    return identity is not None and identity.may_read(repo.type, repo.namespace, repo.name)


def missing(identity: Identity | None) -> Refusal:
    """The refusal for a repository that is not there or not visible: the same for both, so that
    callers cannot tell.
    """
    if identity is None:
        return Refusal(401, "Invalid username or password.", "RepoNotFound")
    return Refusal(404, "Repository not found", "RepoNotFound")


def lookup(
    hub: Store, kind: str, namespace: str | None, name: str, identity: Identity | None
) -> tuple[Repo | None, bool]:
    """The repository of this name, and whether it was found under a former name. A bare name means
    the caller's own.
    """
    if namespace is None:
        namespace = identity.user if identity else "local"
    row = hub.settings.row(
        "SELECT * FROM repos WHERE type=? AND namespace=? AND name=?", kind, namespace, name
    )
    if row is not None:
        return Repo.of(row), False
    row = hub.settings.row(
        "SELECT r.* FROM moved m JOIN repos r ON r.pk = m.repo"
        " WHERE m.type=? AND m.namespace=? AND m.name=?",
        kind,
        namespace,
        name,
    )
    return (Repo.of(row), True) if row is not None else (None, False)


def update_extra(hub: Store, repo: Repo, changes: JsonObject) -> Repo:
    """The repository with other settings of its kind. Raises `Refusal` 404 where it was deleted
    meanwhile.
    """
    with hub.settings.transaction() as connection:
        row = connection.execute("SELECT * FROM repos WHERE pk = ?", (repo.pk,)).fetchone()
        if row is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        extra = {**json.loads(row["extra"]), **changes}
        connection.execute("UPDATE repos SET extra = ? WHERE pk = ?", (json.dumps(extra), repo.pk))
    return replace(Repo.of(row), extra=extra)


@contextmanager
def git(hub: Store, repo: Repo) -> Iterator[GitRepo]:
    """A repository's git side. Raises `Refusal` 404 where it was deleted meanwhile."""
    path = hub.repo_path(repo.folder)
    if not (path / "HEAD").exists():
        raise Refusal(404, "Repository not found", "RepoNotFound")
    with opened(path) as opened_repo:
        yield opened_repo


def commit_of(repo: GitRepo, revision: str) -> bytes:
    """The commit that a revision means. Raises `Refusal` 404 RevisionNotFound."""
    commit = repo.resolve(revision)
    if commit is None:
        raise Refusal(404, f"Invalid rev id: {revision[:200]}", "RevisionNotFound")
    return commit


def make(
    hub: Store,
    kind: str,
    namespace: str,
    name: str,
    identity: Identity,
    *,
    private: bool = False,
    sdk: str | None = None,
) -> Repo:
    """Make a repository with its first commit. Raises `Refusal` 409 where the name is taken."""
    if not hub.accounts.exists(namespace):
        hub.accounts.add_org(namespace, {identity.user: "admin"})
    folder = f"{kind}s--{namespace}--{name}--{secrets.token_hex(5)}.git"
    with hub.using_objects():  # a backup has both, folder and row, or neither
        _create(hub, kind, namespace, name, folder, identity, private=private, sdk=sdk)
    created, _ = lookup(hub, kind, namespace, name, identity)
    assert created is not None  # just inserted
    return created


def _create(
    hub: Store,
    kind: str,
    namespace: str,
    name: str,
    folder: str,
    identity: Identity,
    *,
    private: bool,
    sdk: str | None,
) -> None:
    path = hub.repo_path(folder + CREATING)
    try:
        GitRepo.create(path)
        with opened(path) as repo:
            _first_commit(repo, kind, name, sdk, identity.user)
        with hub.settings.transaction() as connection:
            connection.execute(
                "DELETE FROM moved WHERE type=? AND namespace=? AND name=?", (kind, namespace, name)
            )
            connection.execute(
                "INSERT INTO repos"
                " (type, namespace, name, folder, private, sdk, created_at, created_by)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (kind, namespace, name, folder, private, sdk, now(), identity.user),
            )
        path.rename(hub.repo_path(folder))
        sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, sqlite3.IntegrityError):
            # Another caller created it meanwhile. Clients retry on exactly these words.
            raise Refusal(
                409, "Cannot create repo: another conflicting operation is in progress"
            ) from error
        raise


def _first_commit(repo: GitRepo, kind: str, name: str, sdk: str | None, author: str) -> None:
    suffixes = [*_BINARY, *(_MEDIA if kind == "dataset" else [])]
    rules = [p if "/" in p else f"*.{p}" for p in suffixes] + ["*tfevents*"]
    content = {
        ".gitattributes": "".join(f"{rule} filter=lfs diff=lfs merge=lfs -text\n" for rule in rules)
    }
    if kind == "space":
        title = re.sub(r"[^A-Za-z0-9 ]+", " ", name).strip().title() or "Space"
        content["README.md"] = (
            f"---\ntitle: {title}\nsdk: {sdk}\napp_file: app.py\npinned: false\n---\n"
        )
    blobs = {path: NewObject.blob(text.encode()) for path, text in content.items()}
    tree, fresh = trees.changed(repo, None, {path: blob.sha for path, blob in blobs.items()})
    commit = new_commit(tree, [], "initial commit", author)
    repo.write([*blobs.values(), *fresh, NewObject.of(commit)])
    repo.swap_ref(b"refs/heads/main", None, commit.id)


def delete_repo(hub: Store, repo: Repo) -> None:
    """Delete a repository; with no byte free too."""
    path = hub.repo_path(repo.folder)
    hub.disk.free_reserve_if_short()
    with hub.writing(repo.folder):
        leaving = path.with_name(path.name + DELETING)
        if path.exists():
            path.rename(leaving)
        try:
            hub.settings.write("DELETE FROM repos WHERE pk = ?", repo.pk)
        except BaseException:
            if leaving.exists():
                leaving.rename(path)
            raise
        shutil.rmtree(leaving, ignore_errors=True)
    hub.disk.keep_reserve()


def private_by_default(hub: Store, namespace: str) -> bool:
    """Whether new repositories of this organisation are private unless asked otherwise."""
    return hub.settings.get(f"private_by_default:{namespace.lower()}") == "1"
