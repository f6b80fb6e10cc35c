"""Repositories as things with a name: create, delete, move, settings, and who may see them.

A repository is a folder under an invented, never re-used name plus one row in SQLite. The row is
the commit point: create makes the folder first and the row last, delete removes the row first and
the folder last, move only changes the row. A crash in between leaves a folder without a row, which
the sweep at the next start removes."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from hubkit.local_hub.api.http import Call, Refusal, field
from hubkit.local_hub.storage import trees
from hubkit.local_hub.storage.accounts import Identity, now, require_user, require_writer
from hubkit.local_hub.storage.git import GitRepo, NewObject, new_commit, opened
from hubkit.local_hub.storage.paths import checked_name

if TYPE_CHECKING:
    from hubkit.local_hub.storage.state import Hub

PLURALS = {"models": "model", "datasets": "dataset", "spaces": "space", "kernels": "kernel"}
PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/", "kernel": "kernels/"}
SDKS = ("gradio", "docker", "static", "streamlit")

_BINARY = """
    7z arrow bin bz2 ckpt ftz gguf gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot parquet pb
    pickle pkl pt pth rar safetensors saved_model/**/* tar.* tar tflite tgz wasm xz zip zst
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
    extra: dict[str, Any]

    @property
    def id(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def web_path(self) -> str:
        """Path of its page, type prefix included."""
        return f"/{PREFIX[self.type]}{self.id}"

    @classmethod
    def of(cls, row: sqlite3.Row) -> Repo:
        """From a row."""
        values = {key: row[key] for key in row.keys() if key not in ("private", "extra")}  # noqa: SIM118
        return cls(**values, private=bool(row["private"]), extra=json.loads(row["extra"]))


def can_read(who: Identity | None, repo: Repo) -> bool:
    """Whether this caller may know that the repository exists."""
    return not repo.private or (who is not None and who.is_in(repo.namespace))


def missing(who: Identity | None) -> Refusal:
    """The refusal for a repository that is not there or not visible: the same for both, so that
    nobody can tell.
    """
    if who is None:
        return Refusal(401, "Invalid username or password.", "RepoNotFound")
    return Refusal(404, "Repository not found", "RepoNotFound")


def lookup(
    hub: Hub, kind: str, namespace: str | None, name: str, who: Identity | None
) -> tuple[Repo | None, bool]:
    """The repository of this name, and whether it was found under a former name. A bare name means
    the caller's own.
    """
    if namespace is None:
        namespace = who.user if who else "local"
    row = hub.settings.row(
        "SELECT * FROM repos WHERE type=? AND namespace=? AND name=?", kind, namespace, name
    )
    if row is not None:
        return Repo.of(row), False
    row = hub.settings.row(
        "SELECT r.* FROM moved m JOIN repos r ON r.pk = m.repo WHERE m.type=? AND m.namespace=? AND m.name=?",
        kind,
        namespace,
        name,
    )
    return (Repo.of(row), True) if row is not None else (None, False)


def update_extra(hub: Hub, repo: Repo, changes: dict[str, Any]) -> Repo:
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
def git(hub: Hub, repo: Repo) -> Iterator[GitRepo]:
    """A repository's git side. Raises `Refusal` 404 where it was deleted meanwhile."""
    path = hub.repo_path(repo.folder)
    if not (path / "HEAD").exists():
        raise Refusal(404, "Repository not found", "RepoNotFound")
    with opened(path) as opened_repo:
        yield opened_repo


def commit_of(repo: GitRepo, revision: str) -> bytes:
    """The commit that a revision means. Raises `Refusal` 404 RevisionNotFound."""
    found = repo.resolve(revision)
    if found is None:
        raise Refusal(404, f"Invalid rev id: {revision[:200]}", "RevisionNotFound")
    return found


# what clients call


def create(call: Call) -> Response:
    """POST /api/repos/create."""
    body = call.json()
    kind, namespace, name = _target(call, body)
    who = require_writer(call, namespace)
    url = f"{call.base_url}/{PREFIX[kind]}{namespace}/{name}"
    known, was_moved = lookup(call.hub, kind, namespace, name, who)
    if known and not was_moved:
        url = f"{call.base_url}{known.web_path}"
        message = f"You already created this {kind} repo: {known.id}"
        raise Refusal(409, message, extra={"url": url, "name": known.id, "id": known.id})
    private = _is_private(body, private_by_default(call.hub, namespace))
    sdk = field(body, "sdk", str, "") or None
    if kind == "space" and sdk not in SDKS:
        raise Refusal(400, f"A Space needs an sdk, one of {', '.join(SDKS)}.")
    made = make(call.hub, kind, namespace, name, who, private=private, sdk=sdk)
    if kind == "space":
        from hubkit.local_hub.api.spaces import set_up

        set_up(call.hub, made, body)
    return JSONResponse({"url": url, "name": made.id, "id": str(made.pk)})


def make(
    hub: Hub,
    kind: str,
    namespace: str,
    name: str,
    who: Identity,
    *,
    private: bool = False,
    sdk: str | None = None,
) -> Repo:
    """Make a repository with its first commit. Raises `Refusal` 409 where the name is taken."""
    if not hub.accounts.exists(namespace):
        hub.accounts.add_org(namespace, {who.user: "admin"})
    folder = f"{kind}s--{namespace}--{name}--{secrets.token_hex(5)}.git"
    path = hub.repo_path(folder)
    try:
        GitRepo.create(path)
        with opened(path) as repo:
            _first_commit(repo, kind, name, sdk, who.user)
        with hub.settings.transaction() as connection:
            connection.execute(
                "DELETE FROM moved WHERE type=? AND namespace=? AND name=?", (kind, namespace, name)
            )
            connection.execute(
                "INSERT INTO repos (type, namespace, name, folder, private, sdk, created_at, created_by)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (kind, namespace, name, folder, private, sdk, now(), who.user),
            )
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, sqlite3.IntegrityError):
            # Somebody made it between our look and now. These are the words on which clients ask
            # again.
            raise Refusal(
                409, "Cannot create repo: another conflicting operation is in progress"
            ) from error
        raise
    found, _ = lookup(hub, kind, namespace, name, who)
    assert found is not None  # just inserted
    return found


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


def delete(call: Call) -> Response:
    """DELETE /api/repos/delete."""
    kind, namespace, name = _target(call, call.json())
    who = require_user(call)
    repo, _ = lookup(call.hub, kind, namespace, name, who)
    if repo is None or not can_read(who, repo):
        raise missing(who)
    require_writer(call, repo.namespace)
    with call.hub.writing(repo.folder):
        call.hub.settings.write("DELETE FROM repos WHERE pk = ?", repo.pk)
        shutil.rmtree(call.hub.repo_path(repo.folder), ignore_errors=True)
    return JSONResponse({})


def move(call: Call) -> Response:
    """POST /api/repos/move: a new name; the old one keeps leading here."""
    body = call.json()
    kind = field(body, "type", str, "model")
    old, new = (field(body, key, str).split("/") for key in ("fromRepo", "toRepo"))
    if kind not in PREFIX or len(old) != 2 or len(new) != 2:
        raise Refusal(400, "Repositories are named namespace/name.")
    who = require_user(call)
    repo, _ = lookup(call.hub, kind, old[0], old[1], who)
    if repo is None or not can_read(who, repo):
        raise missing(who)
    require_writer(call, repo.namespace)
    namespace, name = checked_name(new[0], "namespace"), checked_name(new[1])
    require_writer(call, namespace)
    if not call.hub.accounts.exists(namespace):
        call.hub.accounts.add_org(namespace, {who.user: "admin"})
    try:
        with call.hub.settings.transaction() as connection:
            connection.execute(
                "DELETE FROM moved WHERE type=? AND namespace=? AND name=?", (kind, namespace, name)
            )
            connection.execute(
                "UPDATE repos SET namespace=?, name=? WHERE pk=?", (namespace, name, repo.pk)
            )
            connection.execute(
                "INSERT OR REPLACE INTO moved VALUES (?, ?, ?, ?)",
                (kind, repo.namespace, repo.name, repo.pk),
            )
    except sqlite3.IntegrityError:
        raise Refusal(
            409, f"A {kind} repository called {namespace}/{name} already exists"
        ) from None
    return JSONResponse({"url": f"{call.base_url}/{PREFIX[kind]}{namespace}/{name}"})


def update_settings(call: Call, repo: Repo, rest: list[str]) -> Response:
    """PUT …/settings: visibility and gating."""
    body = call.json()
    changes: dict[str, Any] = {}
    if body.get("visibility") is not None or body.get("private") is not None:
        changes["private"] = _is_private(body)
    if "gated" in body:
        if body["gated"] not in ("auto", "manual", False):
            raise Refusal(400, "'gated' must be 'auto', 'manual' or false.")
        changes["gated"] = body["gated"] or ""
    for column, value in changes.items():
        call.hub.settings.write(f"UPDATE repos SET {column} = ? WHERE pk = ?", value, repo.pk)
    return JSONResponse(
        {
            "private": changes.get("private", repo.private),
            "gated": changes.get("gated", repo.gated) or False,
        }
    )


def private_by_default(hub: Hub, namespace: str) -> bool:
    """Whether new repositories of this organisation are private unless asked otherwise."""
    return hub.settings.get(f"private_by_default:{namespace.lower()}") == "1"


def _is_private(body: dict[str, Any], private: bool = False) -> bool:
    """`protected` Spaces are private here: their app would be public, but it does not run here."""
    if body.get("private") is not None:
        private = bool(body["private"])
    value = body.get("visibility") or ("private" if private else "public")
    if value not in ("public", "private", "protected"):
        raise Refusal(400, "'visibility' must be public, private or protected.")
    return bool(value != "public")


def _target(call: Call, body: dict[str, Any]) -> tuple[str, str, str]:
    kind = field(body, "type", str, "model")
    if kind not in PREFIX:
        raise Refusal(400, f"Unknown type of repository: {kind[:40]!r}.")
    namespace = field(body, "organization", str, "") or require_user(call).user
    name = field(body, "name", str)
    if "/" in name:
        namespace, _, name = name.partition("/")
    return kind, checked_name(namespace, "namespace"), checked_name(name)
