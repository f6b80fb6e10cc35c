"""Inference Endpoints of the embedded Hub, as the stock client drives them, with a real engine
behind each.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support.hub_server import HubServer
from support.tiny_models import tiny_base
from support.waiting import until

HARDWARE = {"accelerator": "cpu", "instance_size": "x1", "instance_type": "intel-spr"}
PLACE = {"region": "us-east-1", "vendor": "aws", "framework": "pytorch", "type": "authenticated"}
IMAGE = {
    "url": "ghcr.io/huggingface/text-generation-inference:3.3.7",
    "healthRoute": "/health",
    "port": 80,
}


def tiny_model(folder: Path) -> Path:
    """A two-layer model that can chat."""
    from hubkit.chat_templates import for_base

    tiny_base(folder)
    (folder / "chat_template.jinja").write_text(for_base(folder).source("assistant"), "utf-8")
    return folder


class Client:
    """The stock client, its endpoints' address redirected as `hubkit.hub` does it."""

    def __init__(self, server: HubServer) -> None:
        from hubkit.hub import Hub

        self.server = server
        self.hub = Hub(server.url, server.token, "local", embedded=True)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            with self.hub.inference() as api:
                return getattr(api, f"{name}_inference_endpoint")(
                    *args, namespace="local", token=self.server.token, **options
                )

        return call

    def make(self, name: str, repository: str = "local/tiny", **options: Any) -> Any:
        image = options.pop("custom_image", IMAGE)
        return self.create(
            name, repository=repository, custom_image=image, **{**HARDWARE, **PLACE, **options}
        )

    def until(self, name: str, *states: str, timeout_s: float = 240) -> Any:
        deadline, seen = time.monotonic() + timeout_s, []
        while time.monotonic() < deadline:
            endpoint = self.get(name)
            seen.append(endpoint.status)
            if endpoint.status in states:
                endpoint.seen = list(dict.fromkeys(seen))
                return endpoint
            time.sleep(0.05)
        raise AssertionError(
            f"{name} is never {states}: {seen[-1]}, {endpoint.raw['status']['message']}"
        )

    def chat(self, url: str, **options: Any) -> httpx.Response:
        body = {
            "model": "tgi",
            "messages": [{"role": "user", "content": "How do I bake bread?"}],
            "max_tokens": 4,
        }
        headers = {"Authorization": f"Bearer {self.server.token}"}
        return httpx.post(
            f"{url}/v1/chat/completions", json=body, headers=headers, timeout=240, **options
        )


def engines() -> list[psutil.Process]:
    """Every engine on this machine that was started by a Hub below this process, and what they
    started.
    """
    found = [
        p
        for p in psutil.process_iter(["cmdline"])
        if "hubkit.local_engine" in (p.info["cmdline"] or [])
    ]
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    server = HubServer(tmp_path_factory.mktemp("hub")).start()
    api = server.api()
    api.create_repo("local/tiny")
    base = tiny_model(tmp_path_factory.mktemp("tiny"))
    api.upload_folder(repo_id="local/tiny", folder_path=base)
    api.create_repo("local/no-model")
    yield server
    server.stop()


@pytest.fixture
def client(server: HubServer) -> Iterator[Client]:
    client = Client(server)
    yield client
    with client.hub.inference() as api:
        for endpoint in api.list_inference_endpoints("local", token=server.token):
            api.delete_inference_endpoint(endpoint.name, namespace="local", token=server.token)
    until(lambda: not [p for p in engines() if p.ppid() == server.info["pid"]])


def test_an_endpoint_comes_up_answers_pauses_resumes_and_is_deleted(client: Client) -> None:
    made = client.make("tiny-all", tags=["hubkit"])
    assert made.status == "pending" and made.url is None and made.raw["tags"] == ["hubkit"]
    up = client.until("tiny-all", "running")
    assert (
        "initializing" in up.seen and up.repository == "local/tiny" and up.health_route == "/health"
    )
    with client.hub.inference():
        up.wait(timeout=240, refresh_every=1)
    answer = client.chat(up.url)
    assert (
        answer.status_code == 200 and answer.json()["choices"][0]["message"]["role"] == "assistant"
    )
    assert httpx.get(f"{up.url}/info", timeout=240).status_code == 401
    assert client.pause("tiny-all").status == "paused"
    assert not [p for p in engines() if p.ppid() == client.server.info["pid"]]
    assert client.chat(up.url).status_code == 400
    client.resume("tiny-all")
    again = client.until("tiny-all", "running")
    assert again.url == up.url and client.chat(again.url).status_code == 200
    assert client.resume("tiny-all").status == "running"
    client.delete("tiny-all")
    assert client.chat(up.url).status_code == 404


def test_scaled_to_zero_the_first_request_wakes_it(client: Client) -> None:
    client.make("tiny-zero", min_replica=0)
    url = client.until("tiny-zero", "running").url
    assert client.scale_to_zero("tiny-zero").status == "scaledToZero"
    assert not [p for p in engines() if p.ppid() == client.server.info["pid"]]
    first = client.chat(url)
    assert first.status_code == 503 and first.headers["retry-after"] == "1"
    client.until("tiny-zero", "running")
    assert client.chat(url).status_code == 200


def test_an_endpoint_that_cannot_start_fails_with_a_message(client: Client) -> None:
    client.make("no-model", "local/no-model")
    failed = client.until("no-model", "failed")
    assert "no-model" in failed.raw["status"]["message"]
    from huggingface_hub.errors import InferenceEndpointError

    with pytest.raises(InferenceEndpointError, match="failed to deploy"):
        failed.wait(timeout=240)


def test_an_update_serves_the_old_until_the_new_is_ready(client: Client) -> None:
    client.make("tiny-update")
    url = client.until("tiny-update", "running").url
    sha = client.server.api().repo_info("local/tiny").sha
    updated = client.update(
        "tiny-update", revision=sha, env={"MAX_TOTAL_TOKENS": "256"}, custom_image=IMAGE
    )
    assert updated.status == "updating" and updated.revision == sha
    assert client.chat(url).status_code == 200
    client.until("tiny-update", "running")
    headers = {"Authorization": f"Bearer {client.server.token}"}
    assert httpx.get(f"{url}/info", headers=headers, timeout=240).json()["max_total_tokens"] == 256
    client.update("tiny-update", repository="local/no-model")
    assert client.until("tiny-update", "updateFailed").raw["status"]["message"]
    assert client.chat(url).status_code == 200


def test_what_is_wrong_with_a_request_is_said(client: Client) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError, match="not on this Hub") as refused:
        client.make("nothing-there", "local/nothing-there")
    assert refused.value.response.status_code == 400
    with pytest.raises(HfHubHTTPError, match="Invalid name"):
        client.make("Not A Name")
    with pytest.raises(HfHubHTTPError, match="not found") as missing:
        client.get("never-made")
    assert missing.value.response.status_code == 404
    client.make("tiny-twice")
    with pytest.raises(HfHubHTTPError, match="already exists"):
        client.make("tiny-twice")


def test_other_peoples_endpoints_are_theirs(client: Client) -> None:
    client.make("tiny-mine")
    url = f"{client.server.url}/v2/endpoint/local"
    assert httpx.get(url, timeout=240).status_code == 401
    from hubkit.local_hub.storage.store import Store as Folder

    folder = Folder(client.server.root)
    folder.accounts.add_user("eve")
    token = folder.accounts.add_token("eve")
    folder.settings.close()
    eve = {"Authorization": f"Bearer {token}"}
    assert httpx.get(url, headers=eve, timeout=240).status_code == 403
    assert httpx.delete(f"{url}/tiny-mine", headers=eve, timeout=240).status_code == 403
    up = client.until("tiny-mine", "running")
    assert httpx.get(f"{up.url}/info", headers=eve, timeout=240).status_code == 403


def test_hardware_is_listed_as_the_client_reads_it(client: Client) -> None:
    with client.hub.inference() as api:
        found = api.list_inference_endpoints_hardware(namespace="local", token=client.server.token)
    assert {(h.vendor, h.instance_type, h.price_per_hour) for h in found} >= {
        ("aws", "intel-spr", 0.0)
    }


def test_state_outlives_the_hub_and_no_engine_does(tmp_path: Path) -> None:
    server = HubServer(tmp_path / "hub").start()
    server.api().create_repo("local/tiny")
    server.api().upload_folder(repo_id="local/tiny", folder_path=tiny_model(tmp_path / "tiny"))
    client = Client(server)
    client.make("up")
    client.make("resting")
    client.until("up", "running")
    client.until("resting", "running")
    client.pause("resting")
    mine = [p for p in engines() if p.ppid() == server.info["pid"]]
    assert len(mine) == 1
    below = [*mine, *(c for p in mine for c in p.children(recursive=True))]
    server.port = int(server.url.rpartition(":")[2])
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    _, alive = psutil.wait_procs(below, timeout=240)
    assert not alive, alive
    server.start()
    client = Client(server)
    assert client.get("resting").status == "paused"
    up = client.until("up", "running")
    assert client.chat(up.url).status_code == 200
    below = [p for p in engines() if p.ppid() == server.info["pid"]]
    assert server.stop() == 0
    assert not psutil.wait_procs(below, timeout=240)[1]
