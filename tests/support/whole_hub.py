"""A folder of an embedded Hub that holds a file of every kind that it stores, and everything that
its owner sees through it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from local_hub.test_local_hub_security import chunk, shard
from support.forked import Ended, in_fork, run_hub_command
from support.hub_server import HubServer, RawClient
from support.waiting import until

from hubkit.local_hub.storage.settings import TABLES

_REPO = r"(?:repos|aside)/[^/]+\.git/"
KINDS: dict[str, str] = {
    "settings database": r"hub\.sqlite",
    "settings database's log": r"hub\.sqlite-(?:wal|shm)",
    "key": "key",
    "token": "token",
    "large file": r"objects/../../[0-9a-f]{64}",
    "loose object": _REPO + r"objects/../[0-9a-f]{38}",
    "pack": _REPO + r"objects/pack/pack-[0-9a-f]+\.pack",
    "pack's index": _REPO + r"objects/pack/pack-[0-9a-f]+\.idx",
    "reference": _REPO + r"refs/.+",
    "packed references": _REPO + "packed-refs",
    "HEAD": _REPO + "HEAD",
    "git's settings": _REPO + "(?:config|description|info/.+|hooks/.+)",
    "Xet upload": r"xet/[^/]+/[0-9a-f]{64}\.xorb",
    "Xet map": r"xet/[^/]+/[0-9a-f]{64}\.map",
    "part of an upstream's file": r"upstream/[0-9a-f]{64}\.partial",
    "job's log": r"jobs/[^/]+/log\.jsonl",
    "Space's log": r"spaces/[^/]+/(?:build|run)\.jsonl",
    "endpoint's log": r"endpoints/[^/]+/.+\.(?:log|jsonl)",
    "server's address": r"server\.json",
    "server's log": r"server\.log",
    "reserve": "reserve",
    "lock": r"(?:gc\.|start\.)?lock|in-use",
}
"""Name of a kind → the paths of its files, relative to the Hub's folder."""

NAMED = ("large file", "loose object", "HEAD", "packed references", "Xet upload", "Xet map")
"""Kinds of which every damage must be named: no byte of them is without meaning."""


def kind_of(path: str) -> str:
    """The kind of a stored file. Raises `LookupError` for one that `KINDS` does not know."""
    found = [kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, path)]
    if len(found) != 1:
        raise LookupError(f"{path} is of {found or 'no kind'}: say in KINDS what it is")
    return found[0]


def files_by_kind(root: Path) -> dict[str, list[Path]]:
    """Every file of a Hub's folder. Raises `LookupError` for one of a kind that nobody named."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            kinds.setdefault(kind_of(path.relative_to(root).as_posix()), []).append(path)
    return kinds


def make_whole_hub(root: Path) -> None:
    """Fill a new folder through a server's own doors. The server is killed at the end, so that what
    a crash leaves is there too.
    """
    server = HubServer(root, ("--jobs",)).start()
    try:
        _fill(server)
    finally:
        server.stop()
    copy = next(root.glob("repos/models--local--aside--*"))
    shutil.copytree(copy, root / "repos" / "models--local--lost--0123456789.git")
    status, _, said = run_hub_command(root, "set-aside")
    assert status == 0, said
    server.start()
    body = {"title": "Another question", "description": "the last"}
    for _ in range(3):
        RawClient(server).post("/api/models/local/one/discussions", body).raise_for_status()
    server.stop(signal.SIGKILL)
    packed = next(root.glob("repos/models--local--one--*"))
    for name in ("refs/tags/packed",):
        sha = (packed / name).read_text().strip()
        (packed / "packed-refs").write_text(f"# pack-refs with: peeled \n{sha} {name}\n")
        (packed / name).unlink()
    _files_of_other_programs(root)


def _fill(server: HubServer) -> None:
    client = RawClient(server)
    post = client.post
    for name in ("one", "many", "aside"):
        post("/api/repos/create", {"name": name}).raise_for_status()
    post("/api/repos/create", {"name": "data", "type": "dataset", "private": True})
    space = {"name": "page", "type": "space", "sdk": "static"}
    space |= {"secrets": [{"key": "K", "value": "v" * 40}]}
    space |= {"variables": [{"key": "V", "value": "shown"}]}
    post("/api/repos/create", space).raise_for_status()
    oid = client.upload("local/one", b"weights" * 3000)
    card = b"---\nlicense: mit\ntags: [a, b]\n---\n# One\n"
    client.commit("local/one", {"README.md": card, "a/t.txt": b"text" * 50}).raise_for_status()
    client.commit("local/one", {"u.txt": b"u"}, oids={"w.bin": (oid, 21000)}).raise_for_status()
    client.commit("local/many", {f"{n}.txt": b"%d" % n * 20 for n in range(30)}).raise_for_status()
    client.commit("local/aside", {"x.txt": b"kept"}).raise_for_status()
    for tag in ("v1", "packed"):
        body = {"tag": tag, "message": "a version"}
        post("/api/models/local/one/tag/main", body).raise_for_status()
    post("/api/models/local/one/branch/side", {}).raise_for_status()
    body = {"title": "A question", "description": "text " * 40}
    post("/api/models/local/one/discussions", body).raise_for_status()
    post("/api/models/local/one/like", {})
    body = {"title": "Things", "namespace": "local", "description": "of mine"}
    slug = post("/api/collections", body).raise_for_status().json()["slug"]
    item = {"item": {"type": "model", "id": "local/one"}, "note": "the first"}
    post(f"/api/collections/{slug}/items", item).raise_for_status()
    post("/api/repos/move", {"fromRepo": "local/many", "toRepo": "local/moved", "type": "model"})
    client.upload("local/one", b"never committed" * 1000)
    post("/api/models/local/aside/super-squash/main", {"message": "one"}).raise_for_status()
    _upload_by_xet(client)
    _run_job(client)


def _upload_by_xet(client: RawClient) -> None:
    answer = client.http.get("/api/models/local/one/xet-write-token/main").json()
    base, headers = answer["casUrl"], {"Authorization": f"Bearer {answer['accessToken']}"}
    for name, data in (("ab" * 32, b"put together"), ("cd" * 32, b"not yet")):
        body = chunk(data * 100, 0, len(data) * 100)
        url = f"{base}/v1/xorbs/default/{name}"
        client.http.post(url, content=body, headers=headers).raise_for_status()
    data = b"put together" * 100
    body = shard("ab" * 32, len(data), 1, hashlib.sha256(data).hexdigest())
    client.http.post(f"{base}/v1/shards", content=body, headers=headers).raise_for_status()
    large = {"x.bin": (hashlib.sha256(data).hexdigest(), len(data))}
    client.commit("local/one", {}, oids=large).raise_for_status()


def _run_job(client: RawClient) -> None:
    spec = {"dockerImage": "python:3.12", "command": ["python", "-c", "print('said')"]}
    spec |= {"flavor": "cpu-basic", "environment": {}, "secrets": {}}
    job = client.post("/api/jobs/local", spec).raise_for_status().json()["id"]

    def stage() -> str:
        return str(client.http.get(f"/api/jobs/local/{job}").json()["status"]["stage"])

    until(lambda: stage() not in ("SCHEDULING", "RUNNING"))
    assert stage() == "COMPLETED"


def _files_of_other_programs(root: Path) -> None:
    """What takes a model, an app or another Hub to come about."""
    page = next(path.name for path in (root / "repos").glob("spaces--local--page--*"))
    for path in (f"spaces/{page}/run.jsonl", "endpoints/0123/engine.log"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text('{"data": "said", "timestamp": "2026-01-01T00:00:00.000Z"}\n')
    (root / "upstream").mkdir()
    (root / "upstream" / f"{'ef' * 32}.partial").write_bytes(b"a part" * 100)


def as_seen(root: Path, doors: Sequence[str] = ()) -> Ended:
    """What an owner sees through the Hub of this folder: the result is ``{door: [status, digest]}``
    for `doors`, or all that `make_whole_hub` filled.
    """

    def look(client: Any) -> dict[str, list[Any]]:
        if doors:
            return {door: answer(client, door) for door in doors}
        return {door: answer(client, door) for door in _doors()} | _rows(root)

    return served(root, look)


def served(root: Path, work: Callable[[Any], Any]) -> Ended:
    """Serve a folder in a fork and give a client of its owner to `work`; where the Hub refuses to
    start, the fork ends with status 1 and has said why.
    """

    def serve() -> Any:
        from starlette.testclient import TestClient

        from hubkit.errors import HubkitError
        from hubkit.local_hub.app import App
        from hubkit.local_hub.hub import Hub
        from hubkit.local_hub.server import prepare

        try:
            hub = Hub(root)
            prepare(hub)
        except HubkitError as error:
            print(error)
            raise SystemExit(1) from None
        token = (root / "token").read_text("ascii", "replace")
        headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
        client = TestClient(App(hub), base_url="http://127.0.0.1", headers=headers)
        try:
            return work(client)
        finally:
            hub.close()

    return in_fork(serve)


def answer(client: Any, door: str) -> list[Any]:
    try:
        found = client.get(door, headers={"Accept": "application/json"})
    except Exception as error:  # the transfer breaks off: the client sees that
        return [0, type(error).__name__]
    return [found.status_code, hashlib.sha256(found.content).hexdigest()]


REPOS = ("models/local/one", "models/local/moved", "models/local/aside", "datasets/local/data")
REPOS += ("spaces/local/page",)
FILES = {
    "local/one": ("README.md", "a/t.txt", "u.txt", "w.bin", "x.bin"),
    "local/moved": tuple(f"{number}.txt" for number in range(30)),
    "local/aside": ("x.txt",),
    "datasets/local/data": (".gitattributes",),
    "spaces/local/page": ("README.md",),
}


def _doors() -> list[str]:
    doors = [f"/api/{kind}" for kind in ("models", "datasets", "spaces", "collections")]
    doors += ["/api/whoami-v2", "/api/users/local/likes", "/api/jobs/local"]
    doors += ["/api/models/local/one/discussions", "/api/models/local/one/discussions/1"]
    doors += ["/api/models/local/one/likers", "/api/models/local/many"]
    for repo in REPOS:
        doors += [f"/api/{repo}", f"/api/{repo}/refs", f"/api/{repo}/commits/main"]
        doors += [f"/api/{repo}/tree/main?recursive=1"]
    for repo, files in FILES.items():
        doors += [f"/{repo}/resolve/main/{quote(file)}" for file in files]
    doors += [f"/local/one/resolve/{revision}/u.txt" for revision in ("v1", "packed", "side")]
    return doors


def _rows(root: Path) -> dict[str, list[Any]]:
    """Every row of the settings database, as a door of its own."""
    seen: dict[str, list[Any]] = {}
    with closing(sqlite3.connect(root / "hub.sqlite")) as database:
        names = [row[0] for row in database.execute("SELECT name FROM sqlite_master")]
        for table in (name for name in names if name in TABLES):
            with suppress(sqlite3.DatabaseError):
                # The address for Xet uploads is made up anew by garbage collection.
                but = " WHERE key NOT LIKE 'xet_space:%'" if table == "settings" else ""
                for row in database.execute(f"SELECT * FROM {table}{but}"):
                    digest = hashlib.sha256(repr(tuple(row)).encode("utf-8", "replace"))
                    seen[f"a row of {table}: {digest.hexdigest()}"] = [200, ""]
    return seen


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Doors behind which is something else now: status and digest of it."""
    return {door: after.get(door) for door in before if after.get(door) != before[door]}


def wrong_bytes(different: dict[str, Any]) -> list[str]:
    """Doors that give other bytes of a file as if they were the right ones."""
    return [door for door, seen in different.items() if "/resolve/" in door and seen[0] == 200]


def flip(data: bytes, at: int) -> bytes:
    """One bit of `data` turned; `at` counts bits, modulo their number."""
    where, bit = divmod(at % (len(data) * 8), 8)
    return data[:where] + bytes([data[where] ^ 1 << bit]) + data[where + 1 :]


def rewrite(path: Path, data: bytes) -> None:
    """Change a file in place, whatever its mode."""
    path.chmod(0o600)
    path.write_bytes(data)
