"""The door to a Hub: one commit a call, nobody overwritten, every failure a sentence of its own
class.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hubkit.errors import DiskFullError, HubError, HubUnreachableError, RepoMissingError
from hubkit.hub import Hub, Ref, connect, embedded, environment
from hubkit.loopback import CLIENT_TIMEOUTS

CLIENTS = 64


@pytest.fixture
def hub(hubkit_home: Path) -> Hub:
    return connect()


def _folder(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / f"folder{len(list(tmp_path.iterdir()))}"
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def test_a_commit_makes_the_repo_and_can_be_read_back(hub: Hub, tmp_path: Path) -> None:
    ref = hub.commit("local/one", _folder(tmp_path, a="1", b__c="2"), "First [x:1]")
    assert hub.resolve("local/one") == ref
    assert hub.read(ref, "b/c") == b"2"
    folder = hub.snapshot(ref, allow_patterns=["b/*"])
    assert (folder / "b" / "c").read_text("utf-8") == "2" and not (folder / "a").exists()


def test_replace_deletes_what_is_stale_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    hub.commit("local/two", _folder(tmp_path, data__x="1", data__y="1", keep="1"), "First")
    ref = hub.commit("local/two", _folder(tmp_path, data__x="2"), "Second", replace=["data/*"])
    assert sorted(f for f in hub.api.list_repo_files("local/two") if not f.startswith(".")) == [
        "data/x",
        "keep",
    ]
    assert hub.read(ref, "data/x") == b"2"


def test_commits_at_once_all_land_in_one_line_of_history(hub: Hub, tmp_path: Path) -> None:
    folders = [_folder(tmp_path, **{f"file{n}": str(n)}) for n in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        refs = list(
            pool.map(lambda n: hub.commit("local/many", folders[n], f"Commit {n}"), range(CLIENTS))
        )
    titles = {c.title for c in hub.api.list_repo_commits("local/many")}
    assert len({ref.revision for ref in refs}) == CLIENTS
    assert {f"Commit {n}" for n in range(CLIENTS)} <= titles
    assert {f"file{n}" for n in range(CLIENTS)} <= set(hub.api.list_repo_files("local/many"))


def test_equal_large_files_of_one_commit_all_arrive(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "twins"
    folder.mkdir()
    for n in range(6):
        (folder / f"{n}.safetensors").write_bytes(b"same" * 500_000)
    ref = hub.commit("local/twins", folder, "First")
    assert {hub.read(ref, f"{n}.safetensors") for n in range(6)} == {b"same" * 500_000}


def test_a_commit_is_found_by_its_mark(hub: Hub, tmp_path: Path) -> None:
    ref = hub.commit("local/marked", _folder(tmp_path, a="1"), "Made [stage:abc]")
    hub.commit("local/marked", _folder(tmp_path, a="2"), "Later")
    assert hub.find_commit("local/marked", "[stage:abc]") == ref
    assert hub.find_commit("local/marked", "[stage:def]") is None
    assert hub.find_commit("local/absent", "[stage:abc]") is None


def test_what_is_not_there_is_a_lookup_error(hub: Hub, tmp_path: Path) -> None:
    ref = hub.commit("local/three", _folder(tmp_path, a="1"), "First")
    for call in (
        lambda: hub.resolve("local/absent"),
        lambda: hub.resolve("local/three", revision="absent"),
        lambda: hub.read(ref, "absent"),
        lambda: hub.snapshot(Ref("local/absent", "dataset", "main")),
    ):
        with pytest.raises(RepoMissingError, match=r"has no (such repo|revision)") as caught:
            call()
        assert isinstance(caught.value, LookupError)


def test_a_tag_never_moves(hub: Hub, tmp_path: Path) -> None:
    first = hub.commit("local/tagged", _folder(tmp_path, a="1"), "First")
    second = hub.commit("local/tagged", _folder(tmp_path, a="2"), "Second")
    hub.tag(first, "v1", "one")
    with pytest.raises(HubError) as caught:
        hub.tag(second, "v1", "two")
    assert caught.value.status == 409 and hub.tags("local/tagged")["v1"] == first.revision


def test_a_dead_hub_and_a_refused_token_are_said_plainly(hub: Hub, tmp_path: Path) -> None:
    dead = Hub("http://127.0.0.1:9", None, "x", embedded=False)
    with pytest.raises(HubUnreachableError, match="does not answer") as caught:
        dead.resolve("x/y")
    assert isinstance(caught.value, ConnectionError)
    stranger = Hub(hub.url, None, "local", embedded=True)
    with pytest.raises(HubError) as refused:
        stranger.commit("local/stolen", _folder(tmp_path, a="1"), "First")
    assert refused.value.status in (401, 403) and str(embedded.token_path()) in str(refused.value)
    foreign = Hub(hub.url, None, "local", embedded=False)
    with pytest.raises(HubError, match="hf auth login"):
        foreign.commit("local/stolen", _folder(tmp_path, a="1"), "First")


def test_a_missing_login_is_asked_for_only_where_a_hub_answers(hub: Hub) -> None:
    with pytest.raises(HubError, match="HUBKIT_NAMESPACE") as caught:
        _ = Hub(hub.url, None, None, embedded=False).namespace
    assert caught.value.status == 401
    with pytest.raises(HubUnreachableError, match="does not answer"):
        _ = Hub("http://127.0.0.1:9", None, None, embedded=False).namespace


class _Page(BaseHTTPRequestHandler):
    """A web site that is no Hub: the same page at every address."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    def log_message(self, *_: object) -> None:
        """Not a word."""


@pytest.mark.parametrize("token", [None, "x"])
def test_a_web_site_that_is_no_hub_is_told_from_one(token: str | None) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        hub = Hub(f"http://127.0.0.1:{site.server_port}", token, None, embedded=False)
        for call in (lambda: hub.namespace, lambda: hub.resolve("x/y"), lambda: hub.tags("x/y")):
            with pytest.raises(HubError, match="not as a Hub does"):
                call()
        site.shutdown()


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"[1"])
def test_a_damaged_address_or_token_file_is_no_stack_trace(hub: Hub, damage: bytes) -> None:
    root = embedded.local_root()
    (root / "token").write_bytes(damage)
    (root / "server.json").write_bytes(damage)
    again = connect()  # the server says where it is once more
    assert again.url == hub.url
    with pytest.raises(HubError, match="token"):
        again.api and again.commit("local/x", _folder(root.parent, a="1"), "First")
    embedded.stop()
    (root / "token").unlink()
    again = connect()
    again.commit("local/x", _folder(root.parent, a="1"), "First")


def test_the_environment_names_the_token_s_file_never_the_token(hub: Hub) -> None:
    printed = environment()
    assert hub.token and hub.token not in " ".join(printed.values())
    assert Path(printed["HF_TOKEN_PATH"]).read_text("ascii").strip() == hub.token
    assert Path(printed["HF_TOKEN_PATH"]).stat().st_mode & 0o077 == 0


@pytest.mark.slow  # the stock client's own ten seconds pass first
def test_a_hub_that_is_slow_on_a_busy_machine_is_waited_for(hub: Hub, tmp_path: Path) -> None:
    hub.commit("local/slow", _folder(tmp_path, a="1"), "First", repo_type="dataset")
    state = embedded.running()
    inherited = {key: value for key, value in os.environ.items() if key not in CLIENT_TIMEOUTS}
    env = inherited | environment()
    assert state is not None
    command = (
        "from huggingface_hub import hf_hub_download;"
        "print(hf_hub_download('local/slow', 'a', repo_type='dataset'))"
    )
    os.kill(int(state["pid"]), signal.SIGSTOP)
    try:
        child = subprocess.Popen([sys.executable, "-c", command], env=env, stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=20)
    finally:
        os.kill(int(state["pid"]), signal.SIGCONT)
    assert child.communicate()[0] and child.returncode == 0


@pytest.mark.parametrize("value", ["nowhere", "ftp://x", "https://"])
def test_a_setting_that_is_no_hub_is_named(monkeypatch: Any, value: str) -> None:
    monkeypatch.setenv("HUBKIT_HUB", value)
    with pytest.raises(HubError, match="HUBKIT_HUB"):
        connect()


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="a small disk needs root to mount it"
)
def test_a_full_disk_is_said_plainly_and_leaves_the_repo_as_it_was(
    tmp_path: Path, monkeypatch: Any
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode()}")
    monkeypatch.setenv("HUBKIT_HOME", str(small))
    try:
        hub = connect()
        before = hub.commit("local/x", _folder(tmp_path, a="1"), "First")
        big = tmp_path / "big"
        big.mkdir()
        (big / "big.bin").write_bytes(os.urandom(40 * 2**20))
        with pytest.raises(DiskFullError, match="full"):
            hub.commit("local/x", big, "Second")
        assert hub.resolve("local/x") == before
        assert hub.commit("local/x", _folder(tmp_path, b="2"), "Third") != before
    finally:
        embedded.stop()
        subprocess.run(["umount", "-l", str(small)], check=False)
