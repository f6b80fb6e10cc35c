"""Reading through: an embedded Hub whose upstream is another one, or a hostile one."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from support.hub_server import HubServer, RawClient, send, upkeep
from support.waiting import until

WEIGHTS = os.urandom(3 * 2**20 + 17)


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[HubServer]:
    running = HubServer(tmp_path / "upstream").start()
    _publish(running, "qwen/base", {"README.md": b"---\nlicense: apache-2.0\n---\n# Base\n"})
    yield running
    running.stop(signal.SIGKILL)


@pytest.fixture
def hub(tmp_path: Path, upstream: HubServer) -> Iterator[HubServer]:
    running = HubServer(tmp_path / "hub", ("--upstream", upstream.url)).start()
    yield running
    running.stop(signal.SIGKILL)


def _publish(server: HubServer, repo: str, files: dict[str, bytes], **settings: Any) -> str:
    client, (namespace, name) = RawClient(server), repo.split("/")
    body = {"name": name, "organization": namespace}
    client.post("/api/repos/create", body).raise_for_status()
    oid = client.upload(repo, WEIGHTS)
    large = {"sub/model.safetensors": (oid, len(WEIGHTS))}
    sha = client.commit(repo, files, oids=large).raise_for_status().json()["commitOid"]
    if settings:
        url = f"/api/models/{repo}/settings"
        client.http.put(url, json=settings).raise_for_status()
    return str(sha)


def _snapshot(server: HubServer, repo: str, cache: Path, **options: Any) -> Path:
    options = {"token": server.token, "endpoint": server.url, "cache_dir": cache, **options}
    return Path(snapshot_download(repo, **options))


def test_a_repository_of_the_upstream_is_read_once_and_stays(
    hub: HubServer, upstream: HubServer, tmp_path: Path
) -> None:
    info = upstream.api().repo_info("qwen/base")
    assert hub.api().repo_info("qwen/base").sha == info.sha, "pinned to its commit"
    assert hub.api().repo_info("qwen/base").card_data.license == "apache-2.0"
    objects = [path for path in (hub.root / "objects").rglob("*") if path.is_file()]
    assert objects == [], "large files come when they are read"
    assert upkeep(hub, "verify")[1]["problems"] == []
    folder = _snapshot(hub, "qwen/base", tmp_path / "cache")
    assert folder.name == info.sha
    assert (folder / "sub" / "model.safetensors").read_bytes() == WEIGHTS
    upstream.stop()
    again = _snapshot(hub, "qwen/base", tmp_path / "another", revision=info.sha)
    assert (again / "sub" / "model.safetensors").read_bytes() == WEIGHTS
    assert (again / "README.md").read_text().startswith("---")
    assert upkeep(hub, "verify")[1]["problems"] == []
    assert upkeep(hub, "gc", "--grace-s", "0")[1]["large_files"] == 0
    hub.stop()
    hub.start()
    assert _snapshot(hub, "qwen/base", tmp_path / "third").name == info.sha


def test_other_revisions_are_pinned_too(hub: HubServer, upstream: HubServer) -> None:
    api = upstream.api()
    first = api.repo_info("qwen/base").sha
    api.create_tag("qwen/base", tag="v1.0")
    second = RawClient(upstream).commit("qwen/base", {"new.txt": b"new"}).json()["commitOid"]
    assert hub.api().repo_info("qwen/base").sha == second
    assert hub.api().repo_info("qwen/base", revision="v1.0").sha == first
    assert hub.api().repo_info("qwen/base", revision=first).sha == first
    third = RawClient(upstream).commit("qwen/base", {"more.txt": b"more"}).json()["commitOid"]
    assert hub.api().repo_info("qwen/base").sha == second, "main stays where it was read"
    assert hub.api().file_exists("qwen/base", "more.txt", revision=third)
    with pytest.raises(HfHubHTTPError):
        hub.api().repo_info("qwen/base", revision="v9")


def test_a_local_repository_wins_and_its_namespace_is_never_asked_for(
    hub: HubServer, upstream: HubServer
) -> None:
    _publish(upstream, "both/base", {"t.txt": b"upstream"})
    hub.stop()
    hub.options += ("--own-namespace", "Qwen")
    hub.start()
    with pytest.raises(RepositoryNotFoundError):
        hub.api().repo_info("qwen/base")
    _publish(hub, "both/other", {"t.txt": b"local"})
    with pytest.raises(RepositoryNotFoundError):
        hub.api().repo_info("both/base")
    client = RawClient(hub)
    client.post("/api/repos/create", {"name": "base", "organization": "both"}).raise_for_status()
    client.commit("both/base", {"t.txt": b"local"}).raise_for_status()
    assert client.http.get("/both/base/resolve/main/t.txt").content == b"local"


def test_a_mirror_is_read_only_and_nothing_is_written_upstream(
    hub: HubServer, upstream: HubServer
) -> None:
    before = upstream.api().repo_info("qwen/base").sha
    hub.api().repo_info("qwen/base")
    client = RawClient(hub)
    answers = [
        client.commit("qwen/base", {"t.txt": b"x"}),
        client.post("/api/models/qwen/base/tag/main", {"tag": "v2"}),
        client.post("/api/models/qwen/base/branch/b", {}),
        client.post("/api/models/qwen/base/discussions", {"title": "t"}),
        client.http.put("/api/models/qwen/base/settings", json={"visibility": "private"}),
        client.post("/api/repos/move", {"fromRepo": "qwen/base", "toRepo": "local/base"}),
    ]
    assert {answer.status_code for answer in answers} == {403}
    assert "read-only" in answers[0].json()["error"]
    assert upstream.api().repo_info("qwen/base").sha == before
    copy = {"repository": "local/copy"}
    answer = client.post("/api/models/qwen/base/duplicate", copy)
    assert answer.status_code == 409
    assert "download" in answer.json()["error"]
    client.http.get("/qwen/base/resolve/main/sub/model.safetensors").raise_for_status()
    client.post("/api/models/qwen/base/duplicate", copy).raise_for_status()
    assert client.commit("local/copy", {"t.txt": b"mine"}).status_code == 200
    hub.api().delete_repo("qwen/base")
    assert upkeep(hub, "verify")[1]["problems"] == []
    assert upstream.api().repo_exists("qwen/base")
    assert hub.api().repo_info("qwen/base").sha == before, "and can be read again"


def test_only_the_owner_makes_the_hub_ask_and_gates_stay(
    tmp_path: Path, upstream: HubServer
) -> None:
    _publish(upstream, "qwen/gated", {"t.txt": b"x"}, gated="manual")
    token = tmp_path / "upstream-token"
    environment = os.environ.copy()
    os.environ["HUBKIT_UPSTREAM_TOKEN_PATH"] = str(token)
    hub = HubServer(tmp_path / "hub", ("--upstream", upstream.url)).start()
    try:
        assert send(hub, "GET", "/api/models/qwen/base", token=None).status == 401
        answer = send(hub, "GET", "/api/models/qwen/gated")
        assert answer.status == 403
        assert "hf auth login" in answer.json()["error"]
        assert send(hub, "GET", "/qwen/gated/resolve/main/t.txt").status == 403
        token.write_text(upstream.token)
        assert send(hub, "GET", "/qwen/gated/resolve/main/t.txt").body == b"x"
        import subprocess
        import sys

        command = [sys.executable, "-m", "hubkit.local_hub", "account", "--root", str(hub.root)]
        guest = subprocess.check_output([*command, "--user", "guest"], text=True).strip()
        assert send(hub, "GET", "/qwen/gated/resolve/main/t.txt", token=guest).status == 403
    finally:
        hub.stop(signal.SIGKILL)
        os.environ.clear()
        os.environ.update(environment)


def test_an_upstream_that_is_down_is_one_sentence(hub: HubServer, upstream: HubServer) -> None:
    upstream.stop()
    with pytest.raises(RepositoryNotFoundError, match="cannot be reached"):
        hub.api().repo_info("qwen/base")
    started = time.monotonic()
    with pytest.raises(RepositoryNotFoundError):
        hub.api().repo_info("qwen/another")
    assert time.monotonic() - started < 5, "it is not asked each time"


# hostile upstreams


class Hostile(http.server.BaseHTTPRequestHandler):
    """A Hub that says and sends what it was told to."""

    info: dict[str, Any]
    files: dict[str, bytes]
    redirect: str
    pause: Callable[[], None]
    seen: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Range", "")))
        path = self.path.partition("?")[0]
        if path.startswith("/api/"):
            return self._send(200, json.dumps(self.info).encode())
        if self.redirect:
            self.send_response(302)
            self.send_header("Location", self.redirect)
            self.end_headers()
            return None
        data = self.files.get(path.rpartition("/")[2], b"")
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        return self._send(206 if start else 200, data[start:])

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        middle = len(body) // 2
        self.wfile.write(body[:middle])
        self.wfile.flush()
        if len(body) > 100_000:
            self.pause()
        self.wfile.write(body[middle:])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[Any]:
    data, small = WEIGHTS, b"hello"
    oid = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n"

    def blob(content: bytes) -> str:
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    large = {"sha256": oid, "size": len(data), "pointerSize": len(pointer)}
    siblings = [
        {"rfilename": "small.txt", "size": len(small), "blobId": blob(small)},
        {"rfilename": "big.bin", "size": len(data), "blobId": blob(pointer.encode()), "lfs": large},
    ]
    info = {"id": "evil/base", "sha": "ab" * 20, "siblings": siblings}
    files = {"small.txt": small, "big.bin": data}
    values = {"info": info, "files": files, "redirect": "", "seen": [], "pause": lambda self: None}
    handler = type("Handler", (Hostile,), values)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        handler.url = f"http://127.0.0.1:{site.server_port}"
        yield handler
        site.shutdown()


@pytest.fixture
def victim(tmp_path: Path, hostile: Any) -> Iterator[HubServer]:
    running = HubServer(tmp_path / "hub", ("--upstream", hostile.url)).start()
    yield running
    running.stop(signal.SIGKILL)


@pytest.mark.attack
@pytest.mark.parametrize(
    "lie",
    [
        {"rfilename": "../../evil.txt"},
        {"rfilename": ".git/hooks/post-commit"},
        {"rfilename": "/etc/passwd"},
        {"rfilename": "small.txt\\..\\x"},
        {"rfilename": "big.bin"},
        {"size": -1},
        {"size": 4},
        {"size": 10**12},
        {"blobId": "00" * 20},
        {"blobId": "zz"},
        {"lfs": {"sha256": "../../x", "size": 5}},
    ],
    ids=str,
)
def test_what_an_upstream_lists_is_checked(
    victim: HubServer, hostile: Any, lie: dict[str, Any]
) -> None:
    hostile.info["siblings"][0] |= lie
    answer = send(victim, "GET", "/api/models/evil/base")
    assert answer.status == 404
    assert "upstream" in answer.json()["error"]
    assert list((victim.root / "repos").iterdir()) == []
    assert send(victim, "GET", "/api/models").json() == []


@pytest.mark.attack
@pytest.mark.parametrize(
    "redirect", ["http://127.0.0.1:1/x", "http://169.254.169.254/latest", "file:///etc/passwd"]
)
def test_an_upstream_redirects_nowhere_else(victim: HubServer, hostile: Any, redirect: str) -> None:
    hostile.redirect = redirect
    answer = send(victim, "GET", "/api/models/evil/base")
    assert answer.status == 404
    assert "redirects to" in answer.json()["error"] or "answers 302" in answer.json()["error"]


@pytest.mark.attack
@pytest.mark.parametrize("how", ["flipped", "short", "long"])
def test_a_large_file_with_other_bytes_is_never_whole(
    victim: HubServer, hostile: Any, how: str
) -> None:
    if how == "flipped":
        hostile.files["big.bin"] = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
    else:
        hostile.files["big.bin"] = WEIGHTS[:-100] if how == "short" else WEIGHTS + b"more"
    client = RawClient(victim)
    with pytest.raises(httpx.RemoteProtocolError):
        client.http.get("/evil/base/resolve/main/big.bin")
    assert [path for path in (victim.root / "objects").rglob("*") if path.is_file()] == []
    hostile.files["big.bin"] = WEIGHTS
    assert client.http.get("/evil/base/resolve/main/big.bin").content == WEIGHTS


def test_a_transfer_is_resumed_after_a_kill(
    victim: HubServer, hostile: Any, tmp_path: Path
) -> None:
    paused, resume = threading.Event(), threading.Event()

    def pause(self: Any) -> None:
        paused.set()
        resume.wait(240)

    hostile.pause = pause
    assert send(victim, "GET", "/evil/base/resolve/main/small.txt").body == b"hello"
    errors: list[BaseException] = []

    def read() -> None:
        try:
            RawClient(victim).http.get("/evil/base/resolve/main/big.bin")
        except httpx.HTTPError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert paused.wait(240)
    partial = victim.root / "upstream"
    until(lambda: any(path.stat().st_size >= 2**20 for path in partial.glob("*.partial")))
    victim.stop(signal.SIGKILL)
    thread.join()
    assert errors
    resume.set()
    hostile.pause = lambda self: None
    victim.start()
    path = hf_hub_download(
        "evil/base",
        "big.bin",
        endpoint=victim.url,
        token=victim.token,
        cache_dir=tmp_path / "cache",
    )
    assert Path(path).read_bytes() == WEIGHTS
    assert any(header for path, header in hostile.seen if path.endswith("big.bin"))
    assert list(partial.glob("*.partial")) == []
    assert upkeep(victim, "verify")[1]["problems"] == []
