"""What was acknowledged stays: many clients at once, a full disk, garbage collection, verify."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError
from support.hub_server import HubServer, RawClient, fsck, run_client, upkeep


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    running = HubServer(tmp_path / "hub").start()
    yield running
    running.stop(signal.SIGKILL)


def test_64_clients_at_once_make_one_history(server: HubServer) -> None:
    api = server.api()
    api.create_repo("local/busy")
    clients = [RawClient(server) for _ in range(64)]

    def commit(number: int) -> int:
        return clients[number].commit("local/busy", {f"{number}.txt": b"x"}).status_code

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(commit, range(64))) == [200] * 64
    titles = [commit.title for commit in api.list_repo_commits("local/busy")]
    assert sorted(titles) == sorted([*(f"add {n}.txt" for n in range(64)), "initial commit"])
    assert len(api.list_repo_files("local/busy")) == 65


def test_64_clients_on_one_parent_one_wins(server: HubServer) -> None:
    api = server.api()
    api.create_repo("local/race")
    parent = api.repo_info("local/race").sha
    clients = [RawClient(server) for _ in range(64)]
    with ThreadPoolExecutor(64) as pool:
        codes = list(
            pool.map(
                lambda n: clients[n].commit("local/race", {f"{n}.txt": b"x"}, parent).status_code,
                range(64),
            )
        )
    assert sorted(codes) == [200] + [412] * 63
    assert len(api.list_repo_commits("local/race")) == 2


def test_garbage_goes_and_what_is_used_stays(server: HubServer) -> None:
    client, api = RawClient(server), server.api()
    api.create_repo("local/kept")
    api.create_repo("local/gone")
    kept, gone, orphan = (
        client.upload(repo, name.encode() * 1000)
        for repo, name in (("local/kept", "kept"), ("local/gone", "gone"), ("local/kept", "orphan"))
    )
    client.commit("local/kept", {}, oids={"a.bin": (kept, 4000)}).raise_for_status()
    client.commit("local/gone", {}, oids={"a.bin": (gone, 4000)}).raise_for_status()
    api.delete_repo("local/gone")
    assert upkeep(server, "gc")[1]["large_files"] == 0, "young files are left alone"
    code, result = upkeep(server, "gc", "--grace-s", "0")
    assert (code, result["large_files"], result["kept"]) == (0, 2, 1)
    objects = {path.name for path in (server.root / "objects").rglob("*") if path.is_file()}
    assert objects == {kept}
    assert orphan not in objects
    assert client.http.get("/local/kept/resolve/main/a.bin").content == b"kept" * 1000
    assert client.upload("local/kept", b"orphan" * 1000) == orphan, (
        "what was collected can be sent again"
    )
    assert upkeep(server, "verify") == (
        0,
        {"repositories": 1, "git_objects": 6, "large_files": 2, "problems": []},
    )


def test_verify_finds_what_is_damaged(server: HubServer) -> None:
    client, api = RawClient(server), server.api()
    api.create_repo("local/sick")
    one, two = (
        client.upload("local/sick", b"one" * 1000),
        client.upload("local/sick", b"two" * 1000),
    )
    client.commit(
        "local/sick", {"t.txt": b"text"}, oids={"1.bin": (one, 3000), "2.bin": (two, 3000)}
    ).raise_for_status()
    blob = api.get_paths_info("local/sick", ["t.txt"])[0].blob_id
    objects = {path.name: path for path in (server.root / "objects").rglob("*") if path.is_file()}
    objects[one].chmod(0o644)
    objects[one].write_bytes(b"ONE" * 1000)
    objects[two].unlink()
    folder = next((server.root / "repos").iterdir())
    (folder / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(httpx.RemoteProtocolError):
        client.http.get("/local/sick/resolve/main/1.bin")
    code, result = upkeep(server, "verify")
    assert code == 1
    assert len(result["problems"]) == 3
    for word in (one, two, blob):
        assert any(word in problem for problem in result["problems"])
    assert client.http.get("/local/sick/resolve/main/2.bin").status_code == 410


def test_a_move_and_a_delete_leave_nothing_behind(server: HubServer) -> None:
    api = server.api()
    api.create_repo("local/first")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id="local/first")
    api.move_repo("local/first", "local/second")
    assert api.repo_info("local/first").id == "local/second"
    assert api.file_exists("local/first", "a")
    api.create_repo("local/first")
    assert api.repo_info("local/first").id == "local/first"
    with pytest.raises(HfHubHTTPError) as error:
        api.move_repo("local/first", "local/second")
    assert error.value.response.status_code == 409
    api.delete_repo("local/second")
    api.delete_repo("local/first")
    assert list((server.root / "repos").iterdir()) == []


def test_a_multipart_upload(tmp_path: Path) -> None:
    limits = ("--multipart-above-mib", "1", "--part-mib", "1")
    server = HubServer(tmp_path / "hub", limits).start()
    try:
        client, data = RawClient(server), os.urandom(3 * 2**20 + 5)
        server.api().create_repo("local/parts")
        oid = hashlib.sha256(data).hexdigest()
        body = {
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": [{"oid": oid, "size": len(data)}],
        }
        action = client.post("/local/parts.git/info/lfs/objects/batch", body).json()["objects"][0][
            "actions"
        ]["upload"]
        size = int(action["header"]["chunk_size"])
        urls = [action["header"][str(n)] for n in range(1, 5)]
        done = {"oid": oid, "parts": [{"partNumber": n, "etag": "x"} for n in range(1, 5)]}
        assert client.post(action["href"], done).status_code == 400, "no part is here yet"
        pieces = [data[i * size : (i + 1) * size] for i in range(4)]
        assert client.http.put(urls[0], content=pieces[1][:-1]).status_code == 400
        for url, piece in zip(urls, [pieces[1], pieces[0], *pieces[2:]], strict=True):
            assert client.http.put(url, content=piece).headers["etag"]
        assert client.post(action["href"], done).status_code == 400, (
            "parts in the wrong order have another hash"
        )
        for url, piece in zip(urls, pieces, strict=True):
            client.http.put(url, content=piece).raise_for_status()
        client.post(action["href"], done).raise_for_status()
        assert not list((server.root / "tmp").glob("mp-*"))
        client.commit("local/parts", {}, oids={"p.bin": (oid, len(data))}).raise_for_status()
        assert client.http.get("/local/parts/resolve/main/p.bin").content == data
        code = """
from huggingface_hub import HfApi
HfApi().upload_file(path_or_fileobj="f.bin", path_in_repo="f.bin", repo_id="local/parts")
"""
        (tmp_path / "f.bin").write_bytes(os.urandom(2 * 2**20 + 1))
        run_client(server, code, tmp_path, HF_HUB_DISABLE_XET="1")
        assert (
            client.http.get("/local/parts/resolve/main/f.bin").content
            == (tmp_path / "f.bin").read_bytes()
        )
    finally:
        server.stop()


UPLOAD_BIG = """
from huggingface_hub import HfApi
HfApi().upload_file(path_or_fileobj="big.bin", path_in_repo="big.bin", repo_id="local/full")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
def test_a_full_disk_is_said_and_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(root)], capture_output=True
    ).returncode:
        pytest.skip("no right to mount")
    server = HubServer(root).start()
    try:
        client, api = RawClient(server), server.api()
        api.create_repo("local/full")
        before = client.commit("local/full", {"a": b"1"}).json()["commitOid"]
        data = os.urandom(13 * 2**20)
        oid = hashlib.sha256(data).hexdigest()
        body = {
            "operation": "upload",
            "transfers": ["basic"],
            "objects": [{"oid": oid, "size": len(data)}],
        }
        href = client.post("/local/full.git/info/lfs/objects/batch", body).json()["objects"][0][
            "actions"
        ]["upload"]["href"]
        answer = client.http.put(href, content=data)
        assert answer.status_code == 507
        assert "space" in answer.json()["error"]
        assert not list((root / "tmp").iterdir())
        (tmp_path / "big.bin").write_bytes(data)
        with pytest.raises(
            AssertionError, match="413"
        ):  # a stock client, by Xet: at once, not after minutes of retries
            run_client(server, UPLOAD_BIG, tmp_path)
        assert not list((root / "tmp").iterdir())
        filler = root / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
            while True:
                file.write(b"\0" * 65536)
        codes = {
            client.commit("local/full", {f"{n}.txt": os.urandom(3000).hex().encode()}).status_code
            for n in range(5)
        }
        assert codes <= {200, 507}
        assert 507 in codes
        assert client.post("/api/repos/create", {"name": "another"}).status_code == 507
        filler.unlink()
        assert api.repo_info("local/full").sha
        assert client.commit("local/full", {"b": b"2"}).status_code == 200
        titles = [commit.title for commit in api.list_repo_commits("local/full")]
        assert before in [commit.commit_id for commit in api.list_repo_commits("local/full")]
        assert titles[0] == "add b"
        assert upkeep(server, "verify")[1]["problems"] == []
        for folder in (root / "repos").iterdir():
            fsck(folder)
    finally:
        server.stop(signal.SIGKILL)
        subprocess.run(["umount", "-l", str(root)], check=False)


def test_a_long_assembly_goes_on_after_its_acknowledgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients do not wait for ever: a shard of a huge file is acknowledged early, and the commit
    waits for the file.
    """
    from hubkit.local_hub.errors import Refusal
    from hubkit.local_hub.hub import Hub
    from hubkit.local_hub.storage import repos, xet_format, xet_store
    from hubkit.local_hub.storage.objects import sealed

    monkeypatch.setattr(xet_store, "SHARD_PATIENCE_S", 0)
    hub = Hub(tmp_path)
    who = hub.accounts.reader("local")
    assert who is not None
    repo = repos.make(hub, "model", "local", "slow", who)
    space = hub.xet.space("local")
    data, name = b"content", "ab" * 32
    (hub.xet.folder(space) / f"{name}.xorb").write_bytes(sealed(b"\0\7\0\0\0\7\0\0" + data))
    segments = (xet_format.Segment(name, len(data), 0, 1),)
    good, wrong = hashlib.sha256(data).hexdigest(), "0" * 64
    hub.xet.accept(space, repo, [xet_format.ShardFile(segments, good)])
    hub.xet.settle(good)
    assert hub.objects.size(good) == len(data)
    with pytest.raises(Refusal, match="sha256"):
        hub.xet.accept(space, repo, [xet_format.ShardFile(segments, wrong)])
        hub.xet.settle(wrong)
    hub.close()
