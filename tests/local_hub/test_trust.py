"""What a stranger on this machine, a guest of the Hub, or an app that it runs may not do."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import json
import shutil
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from support.hub_server import HubServer, RawClient, send

from hubkit.errors import EndpointError, HubError, HubUnreachableError
from hubkit.hub import Hub, connect, connect_to, embedded
from hubkit.hub.places import cache, home, local_root, runs
from hubkit.serving.client.transport import HttpClient

pytestmark = pytest.mark.attack


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    running = HubServer(tmp_path / "hub").start()
    yield running
    running.stop(signal.SIGKILL)


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HUBKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HUBKIT_HUB", raising=False)
    monkeypatch.setenv("HUBKIT_HUB_IDLE_S", "60")
    yield tmp_path / "home"
    monkeypatch.setenv("HUBKIT_HOME", str(tmp_path / "home"))
    embedded.stop()


class _Impostor(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub would, for whoever believes it, and keeps what it was sent."""

    received: list[str]
    pid: int

    def do_GET(self) -> None:
        self.received.append(self.headers.get("Authorization", ""))
        body = json.dumps({"status": "ok", "pid": self.pid, "proof": "0" * 64}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_program_that_took_the_port_is_sent_no_token(own_home: Path) -> None:
    hub = connect()
    state = embedded.running()
    assert state is not None
    port = int(hub.url.rpartition(":")[2])
    embedded.stop()
    handler = type("Handler", (_Impostor,), {"received": [], "pid": state["pid"]})
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as impostor:
        threading.Thread(target=impostor.serve_forever, daemon=True).start()
        (local_root() / "server.json").write_text(json.dumps(state))
        assert embedded.running() is None
        again = connect()
        assert again.url != hub.url
        assert again.api.whoami()["name"] == "local"
        impostor.shutdown()
    assert handler.received
    assert not any(handler.received)


def test_a_client_that_goes_on_for_long_sends_no_token_to_who_took_the_port_since(
    own_home: Path,
) -> None:
    hub = connect()
    hub.make("local/one")
    ref = hub.resolve("local/one")
    state = embedded.running()
    assert state is not None
    embedded.stop()
    handler = type("Handler", (_Impostor,), {"received": [], "pid": state["pid"]})
    port = int(hub.url.rpartition(":")[2])
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as impostor:
        threading.Thread(target=impostor.serve_forever, daemon=True).start()
        for use in (
            lambda: hub.api.whoami(),
            lambda: hub.resolve("local/one"),
            lambda: hub.read(ref, ".gitattributes"),
            lambda: hub.snapshot(ref),
            lambda: hub.make("local/two"),
        ):
            with pytest.raises(HubUnreachableError, match="another program answers"):
                use()
        impostor.shutdown()
    assert handler.received, "it was asked to prove itself"
    assert not any(handler.received), "a token was sent to it"


@contextmanager
def relayed(target: int) -> Iterator[tuple[int, list[bytes]]]:
    """A program that passes everything on to a port, and reads along: its own port, and what it
    read.
    """
    seen: list[bytes] = []

    class Relay(socketserver.BaseRequestHandler):
        """One connection."""

        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", target)) as real:
                back = threading.Thread(target=pass_on, args=(real, self.request), daemon=True)
                back.start()
                own = b"%d" % self.server.server_address[1]
                while data := self.request.recv(65536):
                    seen.append(data)
                    real.sendall(data.replace(own, b"%d" % target))

    def pass_on(source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                to.sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        """Clients keep their connections open: it ends without them."""

        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Relay) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        yield int(relay.server_address[1]), seen
        relay.shutdown()


def test_an_answer_of_the_hub_itself_proves_nothing_at_another_port(own_home: Path) -> None:
    hub = connect()
    with relayed(int(hub.url.rpartition(":")[2])) as (port, seen):
        elsewhere = Hub(f"http://127.0.0.1:{port}", hub.token, "local", embedded=True)
        with pytest.raises(HubUnreachableError, match=r"another program.*HUBKIT_HUB_RELAYS"):
            elsewhere.api.whoami()
    assert seen
    assert str(hub.token).encode() not in b"".join(seen)


def test_a_reverse_proxy_is_sent_the_token_once_its_owner_names_it(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = connect()
    with relayed(int(hub.url.rpartition(":")[2])) as (port, seen):
        for named in ("127.0.0.1:1", "hub.example"):
            monkeypatch.setenv("HUBKIT_HUB_RELAYS", named)
            with pytest.raises(HubUnreachableError):
                Hub(f"http://127.0.0.1:{port}", hub.token, "local", embedded=True).api.whoami()
        monkeypatch.setenv("HUBKIT_HUB_RELAYS", f"hub.example, 127.0.0.1:{port}")
        through = Hub(f"http://127.0.0.1:{port}", hub.token, "local", embedded=True)
        assert through.api.whoami()["name"] == "local"
    assert str(hub.token).encode() in b"".join(seen)


def test_a_hub_answers_under_the_name_of_a_named_reverse_proxy_to_who_has_a_token(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect().make("local/one")

    def status(host: str, *, token: str | None = None) -> int:
        headers = {"Host": host} | ({"Authorization": f"Bearer {token}"} if token else {})
        asked = http.client.HTTPConnection(*str(connect().url).removeprefix("http://").split(":"))
        with closing(asked):
            asked.request("GET", "/api/models/local/one", headers=headers)
            return asked.getresponse().status

    token = embedded.token()
    assert status("hub.example", token=token) == 403
    monkeypatch.setenv("HUBKIT_HUB_RELAYS", "Hub.Example, proxy.example:8443")
    for host in ("hub.example", "hub.example:9", "proxy.example:8443"):
        assert (status(host), status(host, token=token)) == (401, 200)
    for host in ("proxy.example", "proxy.example:1", "x.hub.example", "[", "a:b:c"):
        assert status(host, token=token) == 403, host
    assert status("127.0.0.1") == 200
    for wrong in ("https://hub.example", "me@hub.example", "[::"):
        monkeypatch.setenv("HUBKIT_HUB_RELAYS", wrong)
        with pytest.raises(HubError, match="HUBKIT_HUB_RELAYS holds"):
            connect()
    monkeypatch.delenv("HUBKIT_HUB_RELAYS")


def test_the_embedded_hubs_token_is_sent_to_no_other_hub(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell with the environment of ``hubkit hub env`` names it as the person's own."""
    token = str(connect().token)
    monkeypatch.setenv("HF_TOKEN", token)
    handler = type("Handler", (_Impostor,), {"received": [], "pid": 0})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "localhost", "127.0.0.2"):
            url = f"http://{host}:{other.server_port}"
            monkeypatch.setenv("HUBKIT_HUB", url)
            for hub in (connect(), connect_to(url)):
                with pytest.raises(HubUnreachableError):
                    _ = hub.resolve("local/one")
        other.shutdown()
    assert not any(handler.received)
    monkeypatch.setenv("HUBKIT_HUB", "https://hub.invalid")
    with pytest.raises(HubUnreachableError, match="was not sent the token of the embedded Hub"):
        connect().resolve("local/one")


def test_models_at_the_embedded_hub_are_asked_over_proven_connections(own_home: Path) -> None:
    hub = connect()
    url = f"{hub.url}/v2/serve/none/v1/chat/completions"
    state = embedded.running()
    assert state is not None

    async def ask(url: str) -> None:
        client = HttpClient(token=hub.token)
        try:
            await client.post(url, {"messages": []})
        finally:
            await client.close()

    with pytest.raises(EndpointError) as refused:
        asyncio.run(ask(url))
    assert refused.value.status == 404, "the Hub has proven itself, and has no such endpoint"
    embedded.stop()
    handler = type("Handler", (_Impostor,), {"received": [], "pid": state["pid"]})
    port = int(hub.url.rpartition(":")[2])
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as impostor:
        threading.Thread(target=impostor.serve_forever, daemon=True).start()
        with pytest.raises(EndpointError, match="another program answers"):
            asyncio.run(ask(url))
        impostor.shutdown()
    assert handler.received, "it was asked to prove itself"
    assert not any(handler.received), "a token was sent to it"
    with pytest.raises(EndpointError, match="was not sent the token of the embedded Hub"):
        asyncio.run(ask(url.replace("127.0.0.1", "127.0.0.2")))


def test_a_copied_home_never_speaks_to_the_originals_hub(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = connect()
    original.make("local/one")
    shutil.copytree(own_home, tmp_path / "copy")
    monkeypatch.setenv("HUBKIT_HOME", str(tmp_path / "copy"))
    try:
        assert embedded.running() is None
        copy = connect()
        assert copy.url != original.url
        copy.make("local/two")
        assert not original.api.repo_exists("local/two")
    finally:
        embedded.stop()


def test_no_proxy_of_the_environment_sees_the_token(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = type("Handler", (_Impostor,), {"received": [], "pid": 0})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        assert connect().api.whoami()["name"] == "local"
        proxy.shutdown()
    assert handler.received == []


def test_homes_caches_and_runs_are_for_their_owner_alone(own_home: Path) -> None:
    own_home.mkdir(mode=0o755)
    (own_home / "runs").mkdir(mode=0o755)
    connect()
    for folder in (local_root(), cache("hub").parent, runs()):
        assert folder.stat().st_mode & 0o077 == 0, folder
    shutil.rmtree(own_home / "cache")
    embedded.stop()
    shutil.rmtree(home())
    runs()
    assert home().stat().st_mode & 0o077 == 0


# sessions of browsers


def _login(server: HubServer, token: str) -> str:
    answer = send(server, "POST", "/login", b"token=" + token.encode(), token=None)
    return str(answer.headers["Set-Cookie"].partition(";")[0])


def test_a_session_is_bound_to_its_port_and_dies_with_its_token(server: HubServer) -> None:
    RawClient(server).post("/api/repos/create", {"name": "secret", "private": True})
    cookie = _login(server, server.token)
    page = send(server, "GET", "/local/secret", token=None, Cookie=cookie)
    assert page.status == 200
    server.stop()
    server.port = 0
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(cookie.partition("=")[0].rpartition("_")[2])))
        taken.listen()
        server.start()
        name = f"hub_session_{server.url.rpartition(':')[2]}"
        moved = f"{name}={cookie.partition('=')[2]}"
        assert send(server, "GET", "/local/secret", token=None, Cookie=moved).status == 401
    cookie = _login(server, server.token)
    assert send(server, "GET", "/local/secret", token=None, Cookie=cookie).status == 200
    old = server.token
    server.stop()
    (server.root / "token").unlink()
    with sqlite3.connect(server.root / "hub.sqlite") as database:
        database.execute("DELETE FROM tokens")
    server.start()
    assert server.token != old
    name = f"hub_session_{server.url.rpartition(':')[2]}"
    cookie = f"{name}={cookie.partition('=')[2]}"
    assert send(server, "GET", "/local/secret", token=None, Cookie=cookie).status == 401


def test_an_app_never_sees_the_session_of_the_hub() -> None:
    from hubkit.local_hub.apps.app_proxy import _head_for_app

    head = (
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: keep-alive\r\n"
        b"Cookie: a=1; hub_session_7364=local~write~abc~1.2; b=2\r\n\r\n"
    )
    seen = _head_for_app(head)
    assert b"hub_session" not in seen
    assert b"Cookie: a=1; b=2\r\n" in seen
    assert b"Connection: close" in seen, "so that every request on it is seen here"
    socket_head = head.replace(b"keep-alive", b"Upgrade\r\nUpgrade: websocket")
    assert b"Connection: Upgrade" in _head_for_app(socket_head)


# tokens of least scope


def _account(server: HubServer, user: str, *options: str) -> str:
    command = [sys.executable, "-m", "hubkit.local_hub", "account", "--root", str(server.root)]
    output = subprocess.check_output([*command, "--user", user, *options], text=True)
    return output.strip()


def test_a_scoped_token_reads_what_it_is_for_and_nothing_else(server: HubServer) -> None:
    from hubkit.local_hub.storage.store import Store

    client = RawClient(server)
    for name in ("base", "other", "open"):
        client.post("/api/repos/create", {"name": name, "private": name != "open"})
        client.commit(f"local/{name}", {"t.txt": b"x"}).raise_for_status()
    store = Store(server.root)
    token = store.accounts.add_token("local", "read", name="space:1:1", scope={"model:local/base"})
    store.close()
    statuses = {
        name: send(server, "GET", f"/local/{name}/resolve/main/t.txt", token=token).status
        for name in ("base", "other", "open")
    }
    assert statuses == {"base": 200, "other": 404, "open": 200}
    listed = send(server, "GET", "/api/models", token=token).json()
    assert {model["id"] for model in listed} == {"local/base", "local/open"}
    assert send(server, "GET", "/api/jobs/local", token=token).status == 403
    body = {"name": "x"}
    assert send(server, "POST", "/api/repos/create", body, token=token).status == 403


def test_an_adapter_of_a_guest_does_not_open_the_owners_private_base(server: HubServer) -> None:
    from hubkit.local_hub.apps.scopes import scope_of_models
    from hubkit.local_hub.storage.store import Store

    guest = _account(server, "guest")
    owner = RawClient(server)
    owner.post("/api/repos/create", {"name": "base", "private": True})
    owner.commit("local/base", {"config.json": b"{}"}).raise_for_status()
    client = RawClient(server)
    client.http.headers["Authorization"] = f"Bearer {guest}"
    client.post("/api/repos/create", {"name": "adapter", "organization": "guest"})
    config = json.dumps({"base_model_name_or_path": "local/base"}).encode()
    client.commit("guest/adapter", {"adapter_config.json": config}).raise_for_status()
    store = Store(server.root)
    scope = scope_of_models(store, ["guest/adapter"])
    token = store.accounts.add_token("guest", "read", name="endpoint:1:1", scope=scope)
    store.close()
    assert "model:local/base" in scope, "it is asked for, and then refused"
    read = send(server, "GET", "/local/base/resolve/main/config.json", token=token)
    assert read.status == 404
    own = send(server, "GET", "/guest/adapter/resolve/main/adapter_config.json", token=token)
    assert own.status == 200


def test_a_gated_repository_is_gated_on_every_road(server: HubServer) -> None:
    guest = _account(server, "guest")
    client = RawClient(server)
    client.post("/api/repos/create", {"name": "gated"}).raise_for_status()
    oid = client.upload("local/gated", b"weights" * 100)
    files = {"t.txt": b"the text"}
    head = client.commit("local/gated", files, oids={"w.bin": (oid, 700)}).json()["commitOid"]
    settings = {"gated": "manual"}
    client.http.put("/api/models/local/gated/settings", json=settings).raise_for_status()
    send(server, "POST", "/api/repos/create", {"name": "mine", "organization": "guest"}, guest)
    lfs = {"operation": "download", "objects": [{"oid": oid, "size": 700}]}
    roads = {
        "file": send(server, "GET", "/local/gated/resolve/main/t.txt", token=guest).status,
        "raw": send(server, "GET", "/local/gated/raw/main/t.txt", token=guest).status,
        "lfs": send(server, "POST", "/local/gated.git/info/lfs/objects/batch", lfs, guest).status,
        "page": send(server, "GET", "/local/gated/blob/main/t.txt", token=guest).status,
        "commit page": send(server, "GET", f"/local/gated/commit/{head}", token=guest).status,
        "duplicate": send(
            server,
            "POST",
            "/api/models/local/gated/duplicate",
            {"repository": "guest/copy"},
            guest,
        ).status,
    }
    assert roads == dict.fromkeys(roads, 403)
    own = send(server, "POST", "/guest/mine.git/info/lfs/objects/batch", lfs, guest).json()
    assert own["objects"][0]["error"]["code"] == 404, "a known hash opens nothing"
    upload = {**lfs, "operation": "upload"}
    own = send(server, "POST", "/guest/mine.git/info/lfs/objects/batch", upload, guest).json()
    assert "actions" in own["objects"][0]
    line = {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": oid}}
    body = "\n".join(map(json.dumps, [{"key": "header", "value": {"summary": "take"}}, line]))
    commit = send(server, "POST", "/api/models/guest/mine/commit/main", body.encode(), guest)
    assert commit.status == 404


# bounds


def test_connections_that_stall_are_closed_and_do_not_keep_the_hub_awake(tmp_path: Path) -> None:
    options = ("--stall-timeout-s", "1", "--idle-timeout-s", "2")
    server = HubServer(tmp_path / "hub", options).start()
    try:
        host, port = server.url.removeprefix("http://").split(":")
        token = server.token
        half_open = socket.create_connection((host, int(port)))
        slow_head = socket.create_connection((host, int(port)))
        slow_head.sendall(b"GET /api/models HTTP/1.1\r\nHost: 127")
        stalled = socket.create_connection((host, int(port)))
        stalled.sendall(
            b"POST /api/repos/create HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n"
            b"Authorization: Bearer " + token.encode() + b"\r\n\r\n{"
        )
        for connection in (half_open, slow_head, stalled):
            connection.settimeout(20)
        assert stalled.recv(1000).startswith(b"HTTP/1.1 408")
        assert half_open.recv(1000) == b""
        assert slow_head.recv(1000) == b""
        assert server.process is not None
        assert server.process.wait(timeout=240) == 0, "idle, in spite of them"
    finally:
        server.stop(signal.SIGKILL)


def test_the_history_is_read_a_page_at_a_time(server: HubServer) -> None:
    client = RawClient(server)
    client.post("/api/repos/create", {"name": "long"}).raise_for_status()
    for number in range(30):
        client.commit("local/long", {"n.txt": b"%d" % number}).raise_for_status()
    titles, pages, url = [], 0, "/api/models/local/long/commits/main?limit=7"
    while url:
        answer = client.http.get(url)
        titles += [commit["id"] for commit in answer.json()]
        url, pages = answer.links.get("next", {}).get("url", ""), pages + 1
    assert (len(titles), len(set(titles)), pages) == (31, 31, 5)
    folder = next((server.root / "repos").iterdir())
    oldest = titles[-1]
    (folder / "objects" / oldest[:2] / oldest[2:]).unlink()
    first = client.http.get("/api/models/local/long/commits/main?limit=7")
    assert first.status_code == 200, "what is not shown is not read"
