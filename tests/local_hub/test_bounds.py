"""What one request, one row, one history may cost: bounds that hold whoever asks."""

from __future__ import annotations

import http.client
import json
import signal
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.hub_server import HubServer, send

from hubkit.local_hub.api.ignore_rules import ignore_rules
from hubkit.local_hub.app import App
from hubkit.local_hub.hub import Hub
from hubkit.local_hub.storage.git import GitRepo, NewObject, new_commit, opened

pytestmark = pytest.mark.attack
MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    running = HubServer(tmp_path_factory.mktemp("bounds") / "hub").start()
    send(running, "POST", "/api/repos/create", {"name": "r"})
    yield running
    running.stop(signal.SIGKILL)


def endless(server: HubServer, path: str, piece: bytes, pieces: int) -> int:
    """Send a body without saying its length, until it is refused; the status of the answer."""
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=240)
    connection.putrequest("POST", path)
    connection.putheader("Authorization", f"Bearer {server.token}")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    try:
        for _ in range(pieces):
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.send(b"0\r\n\r\n")
    except OSError:
        pass  # it hangs up on who does not stop
    try:
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/api/repos/create",
        "/api/validate-yaml",
        "/local/r.git/info/lfs/objects/batch",
        "/api/models/local/r/preupload/main",
        "/api/models/local/r/commit/main",
        "/api/models/local/r/discussions",
    ],
)
def test_a_body_of_a_hundred_megabytes_is_refused_and_not_kept(
    server: HubServer, path: str
) -> None:
    before = server.rss_mib()
    assert endless(server, path, b'{"a":"' + b"x" * MIB, 100) == 413
    assert server.rss_mib() - before < 80


@pytest.mark.parametrize("value", [b"{}", b"[]", b"0", b'{"a":[]}'])
def test_json_that_grows_in_memory_is_refused_before_it_is_built(
    server: HubServer, value: bytes
) -> None:
    before = server.rss_mib()
    many = b",".join([value] * (15 * MIB // (len(value) + 1)))
    body = b'{"name": "x", "files": [' + many + b"]}"
    answer = send(server, "POST", "/api/models/local/r/preupload/main", body)
    assert (answer.status, "values" in answer.json()["error"]) == (413, True)
    line = b'{"key": "header", "value": {"x": [' + many[: 12 * MIB].rpartition(b",")[0] + b"]}}"
    answer = send(server, "POST", "/api/models/local/r/commit/main", line)
    assert (answer.status, "values" in answer.json()["error"]) == (413, True)
    assert server.rss_mib() - before < 120


def test_a_text_full_of_commas_is_one_value(server: HubServer) -> None:
    table = "1,2,3,[4],{5}\n" * 300_000
    lines = [{"key": "header", "value": {"summary": "a table"}}]
    lines += [{"key": "file", "value": {"path": "t.csv", "content": table, "encoding": "utf-8"}}]
    body = "\n".join(map(json.dumps, lines)).encode()
    assert send(server, "POST", "/api/models/local/r/commit/main", body).status == 200


ENDLESS = {
    "stars": ("*a" * 60 + "b", "a" * 250),
    "stars in folders": ("/".join(["*a*a*a*b"] * 9), "/".join(["a" * 100] * 9)),
    "folders of any depth": ("**/a/" * 200 + "b", "a/" * 400 + "a"),
    "sets": ("[a-z]*" * 100 + "0", "a" * 250),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ENDLESS)
def test_patterns_that_never_end_are_answered(server: HubServer, name: str) -> None:
    pattern, path = ENDLESS[name]
    files = [{"path": path, "size": 1, "sample": ""}] * 100
    body = {"files": files, "gitIgnore": f"{pattern}\n" * 20}
    answer = send(server, "POST", "/api/models/local/r/preupload/main", body)
    assert answer.status == (413 if name == "folders of any depth" else 200)
    if answer.status == 200:
        assert not answer.json()["files"][0]["shouldIgnore"]


def test_patterns_are_read_as_git_reads_them() -> None:
    from dulwich.ignore import IgnoreFilter

    patterns = ["*.pyc", "build/", "/top", "a/b", "a/**", "**/x", "a/**/z", "!keep.txt", "*.txt"]
    patterns += ["foo*", "doc/*.md", "[ab].c", "[!a].c", "\\#x", "# c", "", "a?c", "/a/*"]
    patterns += ["**/logs/", "temp\\*", "*", "!*.py", "!a/", "a/"]
    names = "x a/x a/b a/b/c top sub/top build build/o s/build/o m.pyc s/m.pyc keep.txt t.txt"
    names += " a/q/z a/z doc/r.md doc/s/r.md a.c b.c z.c #x abc logs/1 s/logs/1 temp* tempx"
    for chosen in combinations(patterns, 2):
        ours = ignore_rules("\n".join(chosen))
        theirs = IgnoreFilter([pattern.encode() for pattern in chosen])
        for path in names.split():
            parts = path.split("/")
            folders = ["/".join(parts[:end]) + "/" for end in range(1, len(parts))]
            expected = any(theirs.is_ignored(candidate) for candidate in [*folders, path])
            assert ours(path) == expected, (chosen, path)


def test_a_page_of_a_long_history_reads_its_own_commits_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path / "hub")
    token = (hub.root / "token").read_text()
    headers = {"Authorization": f"Bearer {token}"}
    client = TestClient(App(hub), base_url="http://127.0.0.1", headers=headers)
    try:
        client.post("/api/repos/create", json={"name": "long"}).raise_for_status()
        _lengthen(next((hub.root / "repos").iterdir()), 8000)
        reads: Counter[str] = Counter()
        real = GitRepo._intact

        def counted(repo: GitRepo, sha: bytes) -> tuple[int, bytes]:
            reads["objects"] += 1
            return real(repo, sha)

        monkeypatch.setattr(GitRepo, "_intact", counted)
        url, titles = "/api/models/local/long/commits/main?limit=50", []
        for _ in range(3):
            reads.clear()
            answer = client.get(url)
            titles += [commit["title"] for commit in answer.json()]
            assert reads["objects"] < 200, "a page costs its own commits, not all of them"
            url = answer.links["next"]["url"]
        assert titles[:2] + titles[-1:] == ["n 7999", "n 7998", "n 7850"]
        for path in ("/local/long", "/local/long/commits/main", "/api/models/local/long"):
            reads.clear()
            assert client.get(path, headers={"Accept": "text/html"}).status_code == 200
            assert reads["objects"] < 400, path
    finally:
        hub.close()


def _lengthen(folder: Path, count: int) -> None:
    """Add `count` commits to a repository."""
    with opened(folder) as repo:
        head = first = repo.ref(b"refs/heads/main")
        assert head is not None
        tree = repo.commit(head).tree
        objects: list[Any] = []
        for number in range(count):
            commit = new_commit(tree, [head], f"n {number}", "local", number)
            objects.append(NewObject.of(commit))
            head = bytes(commit.id)
        repo.write(objects)
        assert repo.swap_ref(b"refs/heads/main", first, head)
