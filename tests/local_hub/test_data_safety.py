"""Nothing that a person made is deleted on a guess; damage is named, and can be repaired."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_hub.test_local_hub_security import chunk, shard
from support import command
from support.forked import run_hub_command
from support.hub_server import HubServer, RawClient, fsck, upkeep
from support.paths import ROOT
from support.whole_hub import served

import hubkit.local_hub.app  # imported once, not by each fork
import hubkit.local_hub.commands  # noqa: F401


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    running = HubServer(tmp_path / "hub").start()
    yield running
    running.stop(signal.SIGKILL)


def _fill(server: HubServer, names: tuple[str, ...]) -> None:
    client = RawClient(server)
    for name in names:
        client.post("/api/repos/create", {"name": name}).raise_for_status()
        oid = client.upload(f"local/{name}", name.encode() * 1000)
        files = {"t.txt": name.encode()}
        large = {"a.bin": (oid, len(name) * 1000)}
        client.commit(f"local/{name}", files, oids=large).raise_for_status()


def _read(server: HubServer, name: str, file: str = "a.bin") -> httpx.Response:
    return RawClient(server).http.get(f"/local/{name}/resolve/main/{file}")


def _remove_database(server: HubServer) -> None:
    for path in server.root.glob("hub.sqlite*"):
        path.unlink()


def _run(server: HubServer, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hubkit.local_hub", action, "--root", str(server.root)]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=240
    )


def _folders(server: HubServer) -> list[str]:
    return sorted(path.name for path in (server.root / "repos").iterdir())


@pytest.mark.attack
@pytest.mark.parametrize("how", ["missing", "empty", "new"])
def test_a_lost_database_deletes_nothing(server: HubServer, how: str) -> None:
    _fill(server, ("one", "two"))
    token = server.token
    server.stop()
    folders = _folders(server)
    _remove_database(server)
    if how == "empty":
        (server.root / "hub.sqlite").touch()
    elif how == "new":
        HubServer(server.root.with_name("other")).start().stop()
        shutil.copy(server.root.with_name("other") / "hub.sqlite", server.root / "hub.sqlite")
    with pytest.raises(RuntimeError, match=r"2 repositories.*hubkit hub adopt"):
        server.start()
    server.stop()
    assert _folders(server) == folders
    code, result = upkeep(server, "adopt")
    assert code == 0
    assert result["adopted"] == ["local/one", "local/two"]
    server.start()
    assert server.token == token
    assert _read(server, "one").content == b"one" * 1000
    assert server.api().repo_info("local/two").private
    assert upkeep(server, "verify")[1]["problems"] == []


@pytest.mark.attack
def test_what_an_older_database_does_not_know_is_kept(server: HubServer, tmp_path: Path) -> None:
    _fill(server, ("old",))
    server.stop()
    shutil.copy(server.root / "hub.sqlite", tmp_path / "older.sqlite")
    server.start()
    _fill(server, ("new", "spare"))
    server.stop()
    _remove_database(server)
    shutil.copy(tmp_path / "older.sqlite", server.root / "hub.sqlite")
    server.start()
    assert len(_folders(server)) == 3
    code, verified = upkeep(server, "verify")
    assert code == 1
    assert len(verified["problems"]) == 2
    assert all("hubkit hub adopt" in problem for problem in verified["problems"])
    code, collected = upkeep(server, "gc", "--grace-s", "0")
    assert (code, collected["large_files"], collected["git_objects"]) == (1, 0, 0)
    assert collected["problems"]
    spare = next(name for name in _folders(server) if "--spare--" in name)
    new = next(name for name in _folders(server) if "--new--" in name)
    assert upkeep(server, "set-aside", spare)[0] == 0
    server.stop()
    assert upkeep(server, "adopt", new) == (0, {"adopted": ["local/new"]})
    server.start()
    assert _read(server, "new").content == b"new" * 1000
    assert upkeep(server, "gc", "--grace-s", "0")[0] == 0
    assert _read(server, "old").content == b"old" * 1000
    assert (server.root / "aside" / spare / "HEAD").exists()
    sizes = {path.stat().st_size for path in (server.root / "objects").rglob("*") if path.is_file()}
    assert len(b"spare" * 1000) in sizes, "what was moved aside keeps its large files"


def test_a_crash_within_create_or_delete_is_finished_or_undone(server: HubServer) -> None:
    _fill(server, ("deleting", "creating", "gone"))
    server.stop(signal.SIGKILL)
    repos = server.root / "repos"
    paths = {name.split("--")[2]: repos / name for name in _folders(server)}
    for name in ("deleting", "creating"):
        paths[name].rename(repos / f"{paths[name].name}.{name}")
    shutil.copytree(paths["gone"], repos / "models--local--half--0123456789.git.creating")
    with sqlite3.connect(server.root / "hub.sqlite") as database:
        database.execute("PRAGMA foreign_keys=ON")
        database.execute("DELETE FROM repos WHERE name = 'gone'")
    paths["gone"].rename(repos / f"{paths['gone'].name}.deleting")
    server.start()
    assert _folders(server) == sorted(paths[name].name for name in ("deleting", "creating"))
    assert _read(server, "deleting", "t.txt").content == b"deleting"
    assert upkeep(server, "verify")[1]["problems"] == []


def test_a_pack_without_its_index_gets_one(server: HubServer) -> None:
    client = RawClient(server)
    client.post("/api/repos/create", {"name": "packed"}).raise_for_status()
    client.commit("local/packed", {f"{n}.txt": b"%d" % n for n in range(50)}).raise_for_status()
    server.stop()
    packs = next((server.root / "repos").iterdir()) / "objects" / "pack"
    next(packs.glob("*.idx")).unlink()
    (packs / "pack-0000000000000000000000000000000000000000.pack").write_bytes(b"PACK, torn")
    server.start()
    assert _read(server, "packed", "7.txt").content == b"7"
    assert upkeep(server, "verify")[1]["problems"] == []
    fsck(packs.parent.parent)
    assert list(packs.glob("*.unreadable")), "what cannot be read is kept too"


# damage


def _large_file(server: HubServer, name: str) -> Path:
    size = len(name) * 1000
    paths = [path for path in (server.root / "objects").rglob("*") if path.is_file()]
    return next(path for path in paths if path.stat().st_size == size)


@pytest.mark.attack
@pytest.mark.parametrize("how", ["missing", "flipped", "short"])
@pytest.mark.parametrize("part", ["whole", "range", "head"])
def test_a_damaged_large_file_is_never_served(server: HubServer, how: str, part: str) -> None:
    _fill(server, ("sick",))
    path = _large_file(server, "sick")
    path.chmod(0o644)
    if how == "missing":
        path.unlink()
    elif how == "flipped":
        path.write_bytes(b"sicK" + b"sick" * 999)
    else:
        path.write_bytes(b"sick")
    client = RawClient(server)
    url = "/local/sick/resolve/main/a.bin"
    if part == "range":
        answer = client.http.get(url, headers={"Range": "bytes=100-199"})
        assert answer.status_code == (410 if how != "short" else 416)
    elif part == "whole":
        try:
            answer = client.http.get(url)
        except httpx.RemoteProtocolError:
            answer = client.http.get(url)  # found on the way; from now on it is known
        assert answer.status_code == 410
        assert "hubkit hub verify" in answer.json()["error"]
        assert b"git-lfs" not in answer.content
    elif how == "missing":
        assert client.http.head(url).status_code == 410
    problems = upkeep(server, "verify")[1]["problems"]
    assert any("upload the same file again" in problem for problem in problems)
    client.upload("local/sick", b"sick" * 1000)
    assert client.http.get(url).content == b"sick" * 1000
    assert upkeep(server, "verify")[1]["problems"] == []


def test_bytes_that_went_bad_are_uploaded_again_without_being_read_first(server: HubServer) -> None:
    _fill(server, ("sick",))
    path = _large_file(server, "sick")
    path.chmod(0o644)
    path.write_bytes(b"SICK" * 1000)
    RawClient(server).upload("local/sick", b"sick" * 1000)
    assert _read(server, "sick").content == b"sick" * 1000


@pytest.mark.attack
def test_one_damaged_repository_does_not_hide_the_others(server: HubServer) -> None:
    _fill(server, ("sick", "well"))
    api = server.api()
    blob = api.get_paths_info("local/sick", ["t.txt"])[0].blob_id
    folder = next(path for path in (server.root / "repos").iterdir() if "--sick--" in path.name)
    head = api.repo_info("local/sick").sha
    server.stop()
    good = (folder / "objects" / head[:2] / head[2:]).read_bytes()
    for sha in (blob, head):
        path = folder / "objects" / sha[:2] / sha[2:]
        path.chmod(0o644)
        path.write_bytes(b"not zlib")
    server.start()
    client = RawClient(server)
    assert {model["id"] for model in client.http.get("/api/models").json()} >= {"local/well"}
    assert [m.id for m in server.api().list_models(full=True) if not m.disabled] == ["local/well"]
    page = client.http.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert "local/well" in page.text
    answer = client.http.get("/api/models/local/sick")
    assert answer.status_code == 500
    assert "hubkit hub verify" in answer.json()["error"]
    (folder / "objects" / head[:2] / head[2:]).write_bytes(good)
    problems = upkeep(server, "verify")[1]["problems"]
    assert len(problems) == 1
    assert "commit the same file again" in problems[0]
    client.commit("local/sick", {"t.txt": b"sick"}).raise_for_status()
    assert upkeep(server, "verify")[1]["problems"] == []
    assert _read(server, "sick", "t.txt").content == b"sick"


def _pack_references(folder: Path, *names: str) -> Path:
    """What `git pack-refs` does with these."""
    lines = [b"# pack-refs with: peeled fully-peeled sorted "]
    for name in sorted(names):
        sha = (folder / name).read_bytes().strip()
        lines.append(sha + b" " + name.encode())
        if name.startswith("refs/tags/"):
            lines.append(b"^" + (folder / "refs/heads/main").read_bytes().strip())
    for name in names:
        (folder / name).unlink()
    packed = folder / "packed-refs"
    packed.write_bytes(b"\n".join(lines) + b"\n")
    return packed


def _in_fork(server: HubServer, action: str) -> tuple[int, dict[str, Any]]:
    """`upkeep` by a fork of this process, which is quicker."""
    status, result, said = run_hub_command(server.root, action)
    assert status in (0, 1), said
    return status, result


@pytest.mark.attack
def test_packed_references_are_taken_apart_and_their_damage_is_named(server: HubServer) -> None:
    client = RawClient(server)
    _fill(server, ("one",))
    for branch in ("side", "far/off"):
        client.post(f"/api/models/local/one/branch/{branch}", {}).raise_for_status()
    body = {"tag": "v1", "message": "a version"}
    client.post("/api/models/local/one/tag/main", body).raise_for_status()
    server.stop()
    folder = server.root / "repos" / _folders(server)[0]
    refs = ("refs/heads/side", "refs/heads/far/off", "refs/heads/main", "refs/tags/v1")
    ids = {name: (folder / name).read_bytes() for name in refs}
    packed = _pack_references(folder, *refs)
    code, verified = _in_fork(server, "verify")
    assert code == 1, "nothing else says how these branches are called"
    assert re.search(r"no checksum.*\(refs/heads/far/off, refs/heads/side\)", *verified["problems"])
    good = packed.read_bytes()
    for was, now in ((b"tags/v1", b"tags/v0"), (b"heads/side", b"heads/si~e"), (b"\n^", b"\n_")):
        packed.write_bytes(good.replace(was, now))
        assert served(server.root, lambda client: None).status == 0
        assert packed.exists(), "kept for who repairs it"
        code, verified = _in_fork(server, "verify")
        assert code == 1
        assert any(re.search("(?i)packed.?ref", problem) for problem in verified["problems"])
        assert all("hubkit hub restore" in problem for problem in verified["problems"])
    packed.write_bytes(good)
    assert served(server.root, lambda client: None).status == 0
    assert not packed.exists()
    assert {name: (folder / name).read_bytes() for name in refs} == ids
    assert _in_fork(server, "verify")[1]["problems"] == []
    fsck(folder)


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["xorb", "map"])
def test_damage_of_an_upload_by_xet_is_named_and_sent_again(server: HubServer, kind: str) -> None:
    """Also where the client does not say what the whole file hashes to."""
    _fill(server, ("one",))
    client = RawClient(server)

    def space() -> tuple[str, dict[str, str]]:
        answer = client.http.get("/api/models/local/one/xet-write-token/main").json()
        return answer["casUrl"], {"Authorization": f"Bearer {answer['accessToken']}"}

    def put_together(base: str, headers: dict[str, str]) -> int:
        body = shard(name, 6, 1, sha)
        return client.http.post(f"{base}/v1/shards", content=body, headers=headers).status_code

    name, sha = "ab" * 32, hashlib.sha256(b"chunks").hexdigest()
    base, headers = space()
    upload = {"content": chunk(b"chunks", 0, 6), "headers": headers}
    client.http.post(f"{base}/v1/xorbs/default/{name}", **upload).raise_for_status()
    if kind == "map":
        assert put_together(base, headers) == 200
    (stored,) = (server.root / "xet").glob(f"*/{name}.{kind}")
    for at in (0, len(stored.read_bytes()) // 2, -1):
        good = stored.read_bytes()
        damaged = bytearray(good)
        damaged[at] ^= 1
        stored.write_bytes(damaged)
        code, verified = _in_fork(server, "verify")
        assert code == 1
        assert re.search(rf"Xet upload .*{name}\.{kind}: damaged.*hub gc", *verified["problems"])
        stored.write_bytes(good)
    stored.write_bytes(damaged)
    assert put_together(base, headers) == 400
    again, headers = space()
    assert again != base, "the client sends everything again"
    upload = {"content": chunk(b"chunks", 0, 6), "headers": headers}
    client.http.post(f"{again}/v1/xorbs/default/{name}", **upload).raise_for_status()
    assert put_together(again, headers) == 200
    (stored,) = (server.root / "xet").glob(f"*/{name}.map")
    stored.write_bytes(stored.read_bytes()[:-1])
    assert _in_fork(server, "gc")[0] == 0
    assert not stored.exists()
    assert _in_fork(server, "verify")[1]["problems"] == []


def test_verify_reads_every_object_reference_and_the_database(server: HubServer) -> None:
    _fill(server, ("sick",))
    folder = next((server.root / "repos").iterdir())
    orphan = folder / "objects" / "ab" / ("cd" * 19)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"damaged")
    (folder / "refs" / "tags" / "bad").write_text("not a commit id\n")
    with sqlite3.connect(server.root / "hub.sqlite") as database:
        database.execute("INSERT INTO held VALUES (?, 4711)", ("ab" * 32,))
    problems = upkeep(server, "verify")[1]["problems"]
    for word in ("ab" + "cd" * 19, "refs/tags/bad", "settings database"):
        assert any(word in problem for problem in problems)


@pytest.mark.attack
def test_a_damaged_database_is_told_in_a_sentence(server: HubServer) -> None:
    _fill(server, ("one",))
    server.stop()
    (server.root / "hub.sqlite").write_bytes(b"this is not a database" * 1000)
    with pytest.raises(RuntimeError) as error:
        server.start()
    assert "hubkit hub restore" in str(error.value)
    assert "Traceback" not in str(error.value)
    for action in ("verify", "gc"):
        process = _run(server, action)
        assert process.returncode == 1
        assert "hubkit hub restore" in process.stderr
        assert "Traceback" not in process.stderr
    _remove_database(server)
    assert upkeep(server, "adopt")[0] == 0
    server.start()
    assert _read(server, "one").content == b"one" * 1000


# backup, restore and copies


@pytest.mark.attack
def test_a_backup_while_clients_write_is_whole(server: HubServer, tmp_path: Path) -> None:
    _fill(server, ("busy",))
    stop, acknowledged = threading.Event(), []

    def write() -> None:
        client = RawClient(server)
        for number in range(10_000):
            if stop.is_set():
                return
            oid = client.upload("local/busy", b"%d" % number * 500)
            large = {f"{number}.bin": (oid, len(b"%d" % number * 500))}
            client.commit("local/busy", {}, oids=large).raise_for_status()
            acknowledged.append(number)

    thread = threading.Thread(target=write)
    thread.start()
    while len(acknowledged) < 5:
        thread.join(0.01)
    before = len(acknowledged)
    code, result = upkeep(server, "backup", str(tmp_path / "saved"))
    stop.set()
    thread.join()
    assert (code, result["problems"], result["repositories"]) == (0, [], 1)
    copy = HubServer(tmp_path / "saved").start()
    try:
        files = copy.api().list_repo_files("local/busy")
        assert {f"{number}.bin" for number in range(before)} <= set(files)
        assert copy.token == server.token
        assert copy.url != server.url
    finally:
        copy.stop()


def test_restore_moves_the_present_hub_aside(server: HubServer, tmp_path: Path) -> None:
    _fill(server, ("first",))
    assert upkeep(server, "backup", str(tmp_path / "saved"))[0] == 0
    assert _run(server, "backup", str(tmp_path / "saved")).returncode == 1, "never over another"
    _fill(server, ("second",))
    refused = _run(server, "restore", str(tmp_path / "saved"))
    assert refused.returncode == 3
    assert "already running" in refused.stderr
    server.stop()
    code, result = upkeep(server, "restore", str(tmp_path / "saved"))
    assert code == 0
    server.start()
    assert [model.id for model in server.api().list_models()] == ["local/first"]
    server.stop()
    former = HubServer(Path(result["former"])).start()
    try:
        assert len(list(former.api().list_models())) == 2
    finally:
        former.stop()
    large = next(path for path in (tmp_path / "saved" / "objects").rglob("*") if path.is_file())
    large.chmod(0o644)
    large.write_bytes(b"rotten")
    process = _run(server, "restore", str(tmp_path / "saved"))
    assert process.returncode == 1
    assert "damaged, nothing was changed" in process.stderr
    server.start()
    assert _read(server, "first").content == b"first" * 1000


@pytest.mark.attack
def test_an_incomplete_copy_of_a_running_hub_is_refused(server: HubServer, tmp_path: Path) -> None:
    _fill(server, ("one",))
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    shutil.copytree(server.root, whole)
    shutil.copytree(server.root, torn)
    next(path for path in (torn / "objects").rglob("*") if path.is_file()).unlink()
    copy = HubServer(whole).start()
    assert copy.url != server.url
    assert _read(copy, "one").content == b"one" * 1000
    copy.stop()
    with pytest.raises(RuntimeError, match="hubkit hub backup"):
        HubServer(torn).start()


def test_backup_and_restore_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubkit.hub import connect, embedded

    monkeypatch.setenv("HUBKIT_HOME", str(tmp_path / "home"))

    hubkit = partial(command.run, "hub")
    try:
        connect().make("local/kept")
        saved = str(tmp_path / "saved")
        backup = hubkit("backup", saved)
        assert backup.returncode == 0, backup.stderr
        assert "1 repositories" in backup.stdout
        connect().make("local/later")
        running = hubkit("restore", saved)
        assert running.returncode == 1
        assert "already running" in running.stderr
        embedded.stop()
        while embedded.running():
            threading.Event().wait(0.05)
        restored = hubkit("restore", saved)
        assert restored.returncode == 0, restored.stderr
        assert "the former one is now" in restored.stdout
        assert [model.id for model in connect().api.list_models()] == ["local/kept"]
        assert hubkit("verify").returncode == 0
        assert "moved to nothing" in hubkit("set-aside").stdout
    finally:
        embedded.stop()


# a full disk


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
@pytest.mark.parametrize("reserve", [True, False])
def test_a_full_disk_can_be_emptied(tmp_path: Path, reserve: bool) -> None:
    root = tmp_path / "small"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(root)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount")
    server = HubServer(root).start()
    try:
        _fill(server, ("kept", "gone"))
        client = RawClient(server)
        client.upload("local/kept", os.urandom(2**20))
        server.stop()
        assert (root / "reserve").exists()
        if not reserve:
            (root / "reserve").unlink()
        with (root / "filler").open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(b"\0" * 4096)
        if not reserve:  # enough to open the database, not to write
            os.truncate(root / "filler", (root / "filler").stat().st_size - 65536)
            server.start()
            assert _read(server, "kept").content == b"kept" * 1000
            assert RawClient(server).post("/api/repos/create", {"name": "x"}).status_code == 507
            return
        server.start()
        client = RawClient(server)
        assert _read(server, "kept").content == b"kept" * 1000
        for path, body in (
            ("/api/repos/create", {"name": "more"}),
            ("/api/models/local/kept/branch/b", {}),
            ("/api/models/local/kept/discussions", {"title": "t"}),
        ):
            answer = client.post(path, body)
            assert answer.status_code == 507
            assert "space" in answer.json()["error"]
        assert client.commit("local/kept", {"x.txt": b"x"}).status_code == 507
        answer = client.http.request("DELETE", "/api/repos/delete", json={"name": "gone"})
        assert answer.status_code == 200
        code, result = upkeep(server, "gc", "--grace-s", "0")
        assert (code, result["large_files"]) == (0, 2)
        (root / "filler").unlink()
        assert client.commit("local/kept", {"x.txt": b"x"}).status_code == 200
        assert upkeep(server, "verify")[1]["problems"] == []
    finally:
        server.stop(signal.SIGKILL)
        subprocess.run(["umount", "-l", str(root)], check=False)
