"""Apps of Spaces on the embedded Hub, as the stock clients start, watch and use them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from huggingface_hub.errors import HfHubHTTPError
from support.hub_server import HubServer, run_client, send
from support.waiting import until

APP = """
import http.server, json, os, sys
print("hello from the app", flush=True)
if os.environ.get("FAIL"):
    sys.exit("it cannot start like this")
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        told = {k: v for k, v in os.environ.items()
                if k.startswith(("SPACE", "HF_ENDPOINT", "MY_"))}
        token = urllib_get(os.environ["HF_ENDPOINT"] + "/api/whoami-v2",
                           open(os.environ["HF_TOKEN_PATH"]).read())
        told |= {"version": open("version.txt").read(), "home": os.environ["HOME"], "token": token}
        self.wfile.write(json.dumps(told).encode())
def urllib_get(url, token):
    import urllib.request
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + token})
    return json.load(urllib.request.urlopen(request))["auth"]["accessToken"]["role"]
address = os.environ["GRADIO_SERVER_NAME"], int(os.environ["GRADIO_SERVER_PORT"])
http.server.ThreadingHTTPServer(address, Page).serve_forever()
"""
README = "---\ntitle: A <b>title</b>\nsdk: gradio\napp_file: {app_file}\n---\n# A Space\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    server = HubServer(tmp_path_factory.mktemp("hub"), options=("--spaces",)).start()
    yield server
    server.stop()


@pytest.fixture
def api(server: HubServer) -> Any:
    return server.api()


def push(api: Any, name: str, *, app: str = APP, app_file: str = "main.py", **files: str) -> str:
    """A Space with a small app of its own; its id."""
    made = api.create_repo(
        f"local/{name}", repo_type="space", space_sdk="gradio", exist_ok=True
    ).repo_id
    from huggingface_hub import CommitOperationAdd

    contents = {
        "README.md": README.format(app_file=app_file),
        "main.py": app,
        "version.txt": "1",
        **files,
    }
    contents["requirements.txt"] = "no-such-package>=3\nhuggingface_hub>=2\n"
    operations = [CommitOperationAdd(path, text.encode()) for path, text in contents.items()]
    api.create_commit(made, operations, commit_message="push", repo_type="space")
    return str(made)


def ready(api: Any, repo: str, stage: str = "RUNNING") -> Any:
    found = api.wait_for_space(repo, timeout=240, poll_interval=0.1)
    assert found.stage == stage, (found.raw, list(api.fetch_space_logs(repo)))
    return found


def ask(api: Any, repo: str) -> dict[str, Any]:
    return dict(json.load(urllib.request.urlopen(api.space_info(repo).host, timeout=240)))


def test_a_pushed_space_runs_from_its_own_files_with_its_settings(
    api: Any, server: HubServer
) -> None:
    repo = push(api, "first")
    assert api.get_space_runtime(repo).stage == "STOPPED" and api.space_info(repo).host is None
    api.add_space_secret(repo, "MY_SECRET", "s3cret")
    api.add_space_variable(repo, "MY_VARIABLE", "blue")
    assert api.restart_space(repo).stage in ("BUILDING", "APP_STARTING")
    runtime = ready(api, repo)
    assert runtime.hardware == "cpu-basic" and runtime.raw["replicas"]["current"] == 1
    told = ask(api, repo)
    assert (told["MY_SECRET"], told["MY_VARIABLE"], told["SPACE_ID"]) == (
        "s3cret",
        "blue",
        "local/first",
    )
    assert told["HF_ENDPOINT"] == server.url and told["token"] == "read"
    assert told["SPACE_HOST"] == api.space_info(repo).host.removeprefix("http://")
    assert Path(told["home"]).is_relative_to(server.root / "spaces")
    built = list(api.fetch_space_logs(repo, build=True))
    assert any("no-such-package>=3" in line for line in built) and not any(
        "huggingface_hub" in x for x in built
    )
    seen = [
        " ".join(p.cmdline()) for p in psutil.Process(server.process.pid).children(recursive=True)
    ]
    kept = [p for p in server.root.rglob("*") if p.is_file() and b"s3cret" in p.read_bytes()]
    assert seen and not any("hf_" in line or "s3cret" in line for line in seen)
    assert all(path.name.startswith("hub.sqlite") for path in kept), kept
    api.pause_space(repo)
    lines = list(api.fetch_space_logs(repo))
    assert lines[0].startswith("===== Application started at") and "hello from the app" in lines


def test_a_new_commit_replaces_the_app_and_its_address_stays(api: Any) -> None:
    repo = push(api, "changing")
    api.restart_space(repo)
    ready(api, repo)
    before = api.space_info(repo).host
    api.upload_file(
        path_or_fileobj=b"2", path_in_repo="version.txt", repo_id=repo, repo_type="space"
    )
    assert api.get_space_runtime(repo).stage in ("RUNNING_BUILDING", "RUNNING_APP_STARTING")
    assert ask(api, repo)["version"] in ("1", "2"), "the old one answers until the new one does"
    ready(api, repo)
    assert ask(api, repo)["version"] == "2" and api.space_info(repo).host == before
    api.add_space_variable(repo, "MY_COLOUR", "red")
    ready(api, repo)
    assert ask(api, repo)["MY_COLOUR"] == "red"


def test_pause_restart_sleep_and_wake(api: Any, server: HubServer) -> None:
    repo = push(api, "resting")
    api.restart_space(repo)
    ready(api, repo)
    home = Path(ask(api, repo)["home"])
    address = api.space_info(repo).host
    assert api.pause_space(repo).stage == "PAUSED" and not home.exists()
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(address, timeout=240)
    api.restart_space(repo)
    ready(api, repo)
    assert api.set_space_sleep_time(repo, 1).sleep_time == 1
    until(lambda: api.get_space_runtime(repo).stage == "SLEEPING")
    page = urllib.request.Request(address, headers={"Accept": "text/html"})
    with pytest.raises(urllib.error.HTTPError) as waking:
        urllib.request.urlopen(page, timeout=240)
    assert b"http-equiv" in (said := waking.value.read()) and b"starting" in said
    api.set_space_sleep_time(repo, -1)
    assert ask(api, repo)["SPACE_ID"] == repo, "a program is kept waiting until the app is up"


def test_an_app_that_fails_says_so(api: Any) -> None:
    repo = push(api, "failing")
    api.add_space_variable(repo, "FAIL", "1")
    api.restart_space(repo)
    found = ready(api, repo, "RUNTIME_ERROR")
    assert found.raw["errorMessage"] == "Exit code: 1. It last said: it cannot start like this"
    assert "it cannot start like this" in list(api.fetch_space_logs(repo))
    api.restart_space(push(api, "no-app", app_file="nowhere.py"))
    assert "nowhere.py" in ready(api, "local/no-app", "NO_APP_FILE").raw["errorMessage"]
    api.create_repo("local/other-sdk", repo_type="space", space_sdk="docker")
    api.restart_space("local/other-sdk")
    assert "docker" in ready(api, "local/other-sdk", "CONFIG_ERROR").raw["errorMessage"]


def test_an_app_that_dies_later_is_noticed(api: Any) -> None:
    repo = push(api, "dying", app=APP.replace("class Page", "import threading\n"
                "threading.Timer(2, os._exit, [7]).start()\nclass Page"))  # fmt: skip
    api.restart_space(repo)
    ready(api, repo)
    until(lambda: api.get_space_runtime(repo).stage == "RUNTIME_ERROR")
    assert api.get_space_runtime(repo).raw["errorMessage"].startswith("Exit code: 7.")


def test_apps_are_off_unless_enabled_and_only_for_writers(
    api: Any, server: HubServer, tmp_path: Path
) -> None:
    off = HubServer(tmp_path / "hub").start()
    repo = push(off.api(), "first")
    with pytest.raises(HfHubHTTPError, match="hubkit hub start --spaces") as refused:
        off.api().restart_space(repo)
    assert refused.value.response.status_code == 403
    off.stop()
    from hubkit.local_hub.storage.store import Store as Folder

    folder = Folder(server.root)
    reader = folder.accounts.add_token("local", "read")
    folder.settings.close()
    push(api, "guarded")
    for call in ("restart_space", "pause_space"):
        with pytest.raises(HfHubHTTPError, match="read role"):
            getattr(server.api(reader), call)("local/guarded")
    assert send(server, "GET", "/api/spaces/local/guarded/logs/run", token=reader).status == 403
    assert send(server, "POST", "/spaces/local/guarded/start", token=None).status == 403
    assert (
        send(
            server, "POST", "/api/spaces/local/guarded/restart", Origin="http://127.0.0.1:1"
        ).status
        == 403
    )


def test_the_page_of_a_space_has_its_app_and_its_owners_buttons(
    api: Any, server: HubServer
) -> None:
    repo = push(api, "shown")
    cookie = send(server, "POST", "/login", b"token=" + server.token.encode(), token=None).headers[
        "Set-Cookie"
    ]
    mine = {"Cookie": cookie.partition(";")[0]}
    page = send(server, "GET", f"/spaces/{repo}", token=None).body.decode()
    assert "Not running." in page and "/start" not in page
    assert "/start" in send(server, "GET", f"/spaces/{repo}", token=None, **mine).body.decode()
    forged = {"Cookie": mine["Cookie"].replace("~write~", "~admin~")}
    assert send(server, "POST", f"/spaces/{repo}/start", b"", token=None, **forged).status == 403
    elsewhere = {"Origin": "http://127.0.0.1:1", **mine}
    assert send(server, "POST", f"/spaces/{repo}/start", b"", token=None, **elsewhere).status == 403
    assert send(server, "POST", f"/spaces/{repo}/start", b"", token=None, **mine).status == 303
    ready(api, repo)
    address = api.space_info(repo).host
    answer = send(server, "GET", f"/spaces/{repo}", token=None)
    assert f'<iframe src="{address}"' in answer.body.decode() and "sandbox=" in answer.body.decode()
    assert f"frame-src {address}" in answer.headers["Content-Security-Policy"]
    assert (
        "frame-src" not in send(server, "GET", "/", token=None).headers["Content-Security-Policy"]
    )
    assert send(server, "POST", f"/spaces/{repo}/pause", b"", token=None, **mine).status == 303
    assert api.get_space_runtime(repo).stage == "PAUSED"


def test_an_address_does_not_answer_under_a_name_of_another_site(api: Any) -> None:
    repo = push(api, "named")
    api.restart_space(repo)
    ready(api, repo)
    address = api.space_info(repo).host.removeprefix("http://")
    for host, status in (("evil.example", 403), (address, 200)):
        connection = http.client.HTTPConnection(address, timeout=240)
        connection.request("GET", "/", headers={"Host": host})
        assert connection.getresponse().status == status
        connection.close()


def test_apps_die_with_their_hub_and_wake_under_the_next(tmp_path: Path) -> None:
    server = HubServer(tmp_path / "hub", options=("--spaces",)).start()
    repo = push(server.api(), "first")
    server.api().restart_space(repo)
    ready(server.api(), repo)
    address = server.api().space_info(repo).host
    processes = psutil.Process(server.process.pid).children(recursive=True)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    assert len(processes) >= 2 and not psutil.wait_procs(processes, timeout=240)[1]
    server.start()
    assert server.api().get_space_runtime(repo).stage == "SLEEPING"
    assert (
        server.api().space_info(repo).host == address
        and ask(server.api(), repo)["SPACE_ID"] == repo
    )
    processes = psutil.Process(server.process.pid).children(recursive=True)
    server.stop()
    assert processes and not psutil.wait_procs(processes, timeout=240)[1]


def test_a_deleted_space_takes_its_app_along(api: Any) -> None:
    repo = push(api, "gone")
    api.restart_space(repo)
    ready(api, repo)
    address = api.space_info(repo).host
    api.delete_repo(repo, repo_type="space")

    def closed() -> bool:
        try:
            urllib.request.urlopen(address, timeout=5)
        except (OSError, urllib.error.URLError):
            return True
        return False

    until(closed)


def test_a_stock_gradio_client_finds_a_space_by_its_name(
    api: Any, server: HubServer, tmp_path: Path
) -> None:
    app = (
        "import gradio as gr\ngr.Interface(lambda name: f'hello {name}', 'text', 'text', "
        "api_name='greet').launch()\n"
    )
    repo = push(api, "greeter", app=app)
    api.restart_space(repo)
    ready(api, repo)
    code = (
        f"from gradio_client import Client; print(Client({repo!r}, "
        "verbose=False).predict('you', api_name='/greet'))"
    )
    assert run_client(server, code, tmp_path).strip().endswith("hello you")
