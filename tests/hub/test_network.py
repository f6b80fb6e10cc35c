"""The Hub is found behind any proxy and without the internet, and a gateway's 502 ends nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hubkit import loopback
from hubkit.errors import RecipeError
from hubkit.hub import Hub, connect
from hubkit.recipe import SeatConfig
from hubkit.serving.budget import check_prices

DEAD_PROXY = "http://127.0.0.1:9"


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh process."""
    import os

    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=240, env={**os.environ, **env}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "env",
    [
        {"http_proxy": DEAD_PROXY, "https_proxy": DEAD_PROXY, "HTTP_PROXY": DEAD_PROXY},
        {"ALL_PROXY": "socks5://127.0.0.1:9"},
        {"HF_HUB_OFFLINE": "1"},
    ],
    ids=["proxy", "socks", "offline"],
)
def test_the_embedded_hub_is_reached_and_the_internet_as_configured(
    hubkit_home: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    hub = connect()
    name = f"net-{tmp_path.name[-12:].lower().replace('_', '-')}"
    (tmp_path / "repo").mkdir()
    for version in ("one", "two"):
        (tmp_path / "repo" / "data.jsonl").write_text(json.dumps({"text": version}) + "\n")
        hub.commit(hub.qualify(name), tmp_path / "repo", version, repo_type="dataset")
        code = f"""
            import hubkit
            from hubkit.hub import connect
            from hubkit.hub.embedded import running
            assert running(), "the embedded Hub was not found"
            print(hubkit.load_dataset({name!r}, split="train")["text"])
            try:
                from huggingface_hub import HfApi
                HfApi(endpoint="http://far.invalid", token=False).model_info("a/b")
            except Exception as error:
                print(type(error).__name__, error)
        """
        done = python(code, **env)
        assert done.returncode == 0, done.stderr
        assert f"['{version}']" in done.stdout  # never an old version in silence
    if "HF_HUB_OFFLINE" in env:
        assert "OfflineModeIsEnabled" in done.stdout
    if "ALL_PROXY" in env:
        assert "SOCKS proxy" in done.stdout


@contextmanager
def flaky(statuses: list[int]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers with these statuses in turn, and then with 200."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status = statuses.pop(0) if statuses else 200
            body = json.dumps({"name": "me", "type": "user"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Not a word."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


def test_one_502_of_a_hub_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubkit.hub.network._FIRST_WAIT_S", 0.01)
    with flaky([502, 503]) as (url, asked):
        hub = Hub(url, "hf_x", None, embedded=False)
        assert hub.api.whoami()["name"] == "me" and len(asked) == 3


@pytest.mark.attack
def test_only_this_machine_is_this_machine() -> None:
    """What a price, a proxy, a token or a page depends on is told by the host, never by how it
    begins.
    """
    for host in ("127.0.0.1", "127.9.9.9", "[::1]", "localhost", "LOCALHOST.", "a.localhost"):
        assert loopback.on_loopback(f"http://{host}:8080/v1"), host
    for host in ("0.0.0.0", "[::]", "[::ffff:127.0.0.1]"):
        assert loopback.on_loopback(f"http://{host}:8080/v1"), host
    for host in (
        "127.0.0.1.evil.example", "127.evil.example", "localhost.evil.example", "notlocalhost",
        "10.0.0.1", "[::2]", "[::ffff:10.0.0.1]", "127.0.0.1@evil.example", "",
    ):  # fmt: skip
        assert not loopback.on_loopback(f"http://{host}:8080/v1"), host
    for host in ("0.0.0.0", "::", "", "127.evil.example"):
        assert not loopback.is_loopback(host), host


@pytest.mark.attack
def test_an_address_that_begins_like_this_machine_is_not_free() -> None:
    elsewhere = SeatConfig(repo="me/chat", endpoints=["http://127.evil.example/v1"])
    priced = SeatConfig(repo="me/ask", usd_per_million_input=1, usd_per_million_output=1)
    with pytest.raises(RecipeError, match="chat has no prices"):
        check_prices(1.0, {"asker": priced, "chat": elsewhere})
