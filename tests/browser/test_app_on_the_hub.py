"""A pushed Space at its page of the embedded Hub: started by its owner's button, used inside the
frame, paused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import Endpoint, Script

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.hub_server import HubServer
from support.spaces import write_sources

pytestmark = pytest.mark.browser
START_MS = 60_000


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, endpoints: dict[str, Endpoint]
) -> Iterator[HubServer]:
    running = HubServer(tmp_path_factory.mktemp("hub"), options=("--spaces",)).start()
    api = running.api()
    api.create_repo("local/talk", repo_type="space", space_sdk="gradio")
    api.upload_folder(repo_id="local/talk", repo_type="space", 
                      folder_path=write_sources(
                          "chat", tmp_path_factory.mktemp("space")))  # fmt: skip
    api.add_space_variable("local/talk", "CHAT_ENDPOINT", endpoints["chat"].url)
    yield running
    running.stop()


def test_start_use_and_pause_a_space_at_its_page(
    page: Any, server: HubServer, endpoints: dict[str, Endpoint], request: pytest.FixtureRequest
) -> None:
    from conftest import SHOTS

    endpoints["chat"].script = Script(answers=["From inside the frame."])
    page.goto(f"{server.url}/spaces/local/talk")
    assert page.get_by_text("Its owner can start it").is_visible()
    assert not page.get_by_role("button", name="Start").count()
    page.goto(f"{server.url}/login")
    page.get_by_label("Access token").fill(server.token)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Log out local").wait_for()
    page.goto(f"{server.url}/spaces/local/talk")
    page.get_by_role("button", name="Start").click()
    app = page.frame_locator("iframe")
    app.locator("#message textarea").fill("Hello from the Hub's page", timeout=START_MS)
    page.keyboard.press("Enter")
    app.get_by_text("From inside the frame.").wait_for()
    assert (
        endpoints["chat"].script.asked[0]["messages"][-1]["content"] == "Hello from the Hub's page"
    )
    page.screenshot(path=SHOTS / f"{request.node.name}-running.png")
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=SHOTS / f"{request.node.name}-phone.png")
    page.reload()
    page.frame_locator("iframe").get_by_text("Hello from the Hub's page").first.wait_for(
        timeout=START_MS
    )
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Start again").wait_for()
    assert server.api().get_space_runtime("local/talk").stage == "PAUSED" and not page.problems
