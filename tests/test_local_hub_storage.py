"""What was acknowledged stays: many clients at once, a killed server, a full disk, garbage collection, verify."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hub_server import ROOT, HubServer, run_client
from huggingface_hub.errors import HfHubHTTPError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    running = HubServer(tmp_path / "hub").start()
    yield running
    running.stop(signal.SIGKILL)


def upkeep(server: HubServer, action: str, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "hubkit.local_hub", action, "--root", str(server.root), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    return done.returncode, json.loads(done.stdout)


def fsck(folder: Path) -> None:
    done = subprocess.run(["git", "fsck", "--full"], cwd=folder, capture_output=True, text=True, timeout=120)
    said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("dangling")]
    assert (done.returncode, said) == (0, []), folder


class RawClient:
    """Just enough of a client to say what was acknowledged: one connection, no retries, no caches."""

    def __init__(self, server: HubServer) -> None:
        headers = {"Authorization": f"Bearer {server.token}"}
        self.http = httpx.Client(base_url=server.url, headers=headers, timeout=30)

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def commit(
        self,
        repo: str,
        files: dict[str, bytes],
        parent: str | None = None,
        oids: dict[str, tuple[str, int]] | None = None,
    ) -> httpx.Response:
        header = {"summary": "add " + ", ".join([*files, *(oids or {})])}
        lines: list[dict[str, Any]] = [
            {"key": "header", "value": header | ({"parentCommit": parent} if parent else {})}
        ]
        lines += [
            {"key": "file", "value": {"path": p, "content": c.decode(), "encoding": "utf-8"}} for p, c in files.items()
        ]
        lines += [
            {"key": "lfsFile", "value": {"path": p, "algo": "sha256", "oid": oid, "size": size}}
            for p, (oid, size) in (oids or {}).items()
        ]
        body = "\n".join(json.dumps(line) for line in lines)
        return self.http.post(f"/api/models/{repo}/commit/main", content=body)

    def upload(self, repo: str, data: bytes) -> str:
        oid = hashlib.sha256(data).hexdigest()
        body = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": len(data)}]}
        answer = self.post(f"/{repo}.git/info/lfs/objects/batch", body).raise_for_status().json()["objects"][0]
        if "actions" in answer:
            self.http.put(answer["actions"]["upload"]["href"], content=data).raise_for_status()
        return oid


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
            pool.map(lambda n: clients[n].commit("local/race", {f"{n}.txt": b"x"}, parent).status_code, range(64))
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
    assert client.upload("local/kept", b"orphan" * 1000) == orphan, "what was collected can be sent again"
    assert upkeep(server, "verify") == (0, {"repositories": 1, "git_objects": 6, "large_files": 2, "problems": []})


def test_verify_finds_what_is_damaged(server: HubServer) -> None:
    client, api = RawClient(server), server.api()
    api.create_repo("local/sick")
    one, two = client.upload("local/sick", b"one" * 1000), client.upload("local/sick", b"two" * 1000)
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
    assert len(result["problems"]) == 4
    for word in (one, two, blob):
        assert any(word in problem for problem in result["problems"])
    assert client.http.get("/local/sick/resolve/main/2.bin").status_code in (200, 404)


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
        action = client.post("/local/parts.git/info/lfs/objects/batch", body).json()["objects"][0]["actions"]["upload"]
        size = int(action["header"]["chunk_size"])
        urls = [action["header"][str(n)] for n in range(1, 5)]
        done = {"oid": oid, "parts": [{"partNumber": n, "etag": "x"} for n in range(1, 5)]}
        assert client.post(action["href"], done).status_code == 400, "no part is here yet"
        pieces = [data[i * size : (i + 1) * size] for i in range(4)]
        assert client.http.put(urls[0], content=pieces[1][:-1]).status_code == 400
        for url, piece in zip(urls, [pieces[1], pieces[0], *pieces[2:]], strict=True):
            assert client.http.put(url, content=piece).headers["etag"]
        assert client.post(action["href"], done).status_code == 400, "parts in the wrong order have another hash"
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
        assert client.http.get("/local/parts/resolve/main/f.bin").content == (tmp_path / "f.bin").read_bytes()
    finally:
        server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
def test_a_full_disk_is_said_and_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(root)], capture_output=True).returncode:
        pytest.skip("no right to mount")
    server = HubServer(root).start()
    try:
        client, api = RawClient(server), server.api()
        api.create_repo("local/full")
        before = client.commit("local/full", {"a": b"1"}).json()["commitOid"]
        data = os.urandom(13 * 2**20)
        oid = hashlib.sha256(data).hexdigest()
        body = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": len(data)}]}
        href = client.post("/local/full.git/info/lfs/objects/batch", body).json()["objects"][0]["actions"]["upload"][
            "href"
        ]
        answer = client.http.put(href, content=data)
        assert answer.status_code == 507
        assert "space" in answer.json()["error"]
        assert not list((root / "tmp").iterdir())
        filler = root / "filler"
        with filler.open("wb") as file, pytest.raises(OSError, match="space"):
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        codes = {
            client.commit("local/full", {f"{n}.txt": os.urandom(3000).hex().encode()}).status_code for n in range(5)
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


# kill -9


class Chaos:
    """Clients that write at random and remember what was acknowledged; a server that is killed meanwhile."""

    def __init__(self, server: HubServer, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.started = threading.Event()
        self.acked: dict[str, list[str]] = {}  # repo → commits
        self.tags: dict[str, dict[str, str]] = {}
        self.gone: set[str] = set()
        self.unsure: set[str] = set()  # a request about it was not answered

    def round(self, number: int) -> None:
        stop = threading.Event()
        self.started.clear()
        threads = [threading.Thread(target=self._client, args=(number, n, stop)) for n in range(4)]
        for thread in threads:
            thread.start()
        self.started.wait(timeout=20)
        time.sleep(self.random.uniform(0.0, 0.6))
        self.server.stop(signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join()
        self.server.start()

    def _client(self, number: int, who: int, stop: threading.Event) -> None:
        dice = random.Random(number * 100 + who)
        client, repo = RawClient(self.server), f"local/r{number}-{who}"
        client.http.timeout = httpx.Timeout(10)
        try:
            self._write(client, dice, repo, stop)
        except httpx.HTTPError:
            pass
        finally:
            client.http.close()

    def _write(self, client: RawClient, dice: random.Random, repo: str, stop: threading.Event) -> None:
        name = repo.partition("/")[2]
        client.post("/api/repos/create", {"name": name}).raise_for_status()
        self.acked[repo], self.tags[repo] = [], {}
        self.started.set()
        for step in range(1000):
            if stop.is_set():
                return
            action = dice.choices(
                ["commit", "large", "many", "shared", "tag", "move", "delete"], [6, 3, 1, 3, 2, 1, 0.5]
            )[0]
            if action == "commit":
                self._ack(repo, client.commit(repo, {f"d{dice.randrange(5)}/{step}.txt": b"x" * dice.randrange(2000)}))
            elif action == "many":
                self._ack(repo, client.commit(repo, {f"m{step}/{n}.txt": b"%d" % n for n in range(30)}))
            elif action == "shared":
                self._ack("local/shared", client.commit("local/shared", {f"{name}-{step}.txt": b"x"}))
            elif action == "large":
                data = dice.randbytes(dice.randrange(1, 200_000))
                self._ack(repo, client.commit(repo, {}, oids={f"{step}.bin": (client.upload(repo, data), len(data))}))
            elif action == "tag" and self.acked[repo]:
                target = dice.choice(self.acked[repo])
                client.post(f"/api/models/{repo}/tag/{target}", {"tag": f"t{step}", "message": "m"}).raise_for_status()
                self.tags[repo][f"t{step}"] = target
            elif action == "move":
                repo = self._move(client, repo, step)
            elif action == "delete":
                self.unsure.add(repo)
                client.http.request("DELETE", "/api/repos/delete", json={"name": name}).raise_for_status()
                self.gone.add(repo)
                return

    def _ack(self, repo: str, answer: httpx.Response) -> None:
        answer.raise_for_status()
        with self.lock:
            self.acked[repo].append(answer.json()["commitOid"])

    def _move(self, client: RawClient, repo: str, step: int) -> str:
        new = f"{repo.split('_')[0]}_{step}"
        client.post("/api/repos/move", {"fromRepo": repo, "toRepo": new, "type": "model"}).raise_for_status()
        self.acked[new], self.tags[new] = self.acked.pop(repo), self.tags.pop(repo)
        return new

    def check(self) -> None:
        client = RawClient(self.server)
        client.http.follow_redirects = True
        for repo, commits in self.acked.items():
            if repo in self.unsure:
                continue
            history = self._history(client, repo)
            assert set(commits) <= set(history), repo
            refs = client.http.get(f"/api/models/{repo}/refs").raise_for_status().json()
            tags = {tag["name"]: tag["targetCommit"] for tag in refs["tags"]}
            assert self.tags.get(repo, {}).items() <= tags.items(), repo
        for repo in self.gone:
            assert client.http.get(f"/api/models/{repo}").status_code == 404
        assert not list((self.server.root / "tmp").iterdir())

    def _history(self, client: RawClient, repo: str) -> list[str]:
        found, url = [], f"/api/models/{repo}/commits/main?limit=1000"
        while url:
            answer = client.http.get(url).raise_for_status()
            found += [commit["id"] for commit in answer.json()]
            url = answer.links.get("next", {}).get("url", "")
        return found


def _survive(server: HubServer, rounds: int, seed: int, check_every: int) -> None:
    server.api().create_repo("local/shared")
    chaos = Chaos(server, seed)
    chaos.acked["local/shared"] = []
    for number in range(rounds):
        chaos.round(number)
        if number % check_every == check_every - 1:
            chaos.check()
    chaos.check()
    assert sum(len(commits) for commits in chaos.acked.values()) > rounds
    for folder in (server.root / "repos").iterdir():
        fsck(folder)
    code, result = upkeep(server, "verify")
    assert (code, result["problems"]) == (0, [])


def test_killed_at_random_nothing_acknowledged_is_lost(server: HubServer) -> None:
    _survive(server, rounds=4, seed=1, check_every=2)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_two_hundred_times(server: HubServer) -> None:
    _survive(server, rounds=200, seed=2, check_every=10)
