"""Ten visitors vote in a real browser, one of them a spammer; two chat models are compared blind.
Their votes end in a dataset on the embedded Hub."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SHOTS
from scripted import Endpoint
from test_asker_space import REAL, folder  # noqa: F401 - a fixture

pytest.importorskip("playwright", reason="needs the Python package playwright")

from playwright.sync_api import Page, expect
from support.spaces import write_sources

from hubkit.evaluation import votes as library
from hubkit.hub import Hub, connect

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def hub(hubkit_home: Path) -> Hub:
    return connect()


@pytest.fixture
def visitor(browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[[int], Page]]:
    """A page of the visitor with this number, at an address of its own; what it did is recorded in
    ``<test>-<number>.zip`` (``playwright show-trace``)."""
    contexts: list[tuple[int, Any]] = []

    def enter(number: int) -> Page:
        context = browser.new_context(extra_http_headers={"x-forwarded-for": f"10.0.0.{number}"})
        context.set_default_timeout(120_000)
        context.tracing.start(screenshots=True)
        contexts.append((number, context))
        return context.new_page()

    yield enter
    SHOTS.mkdir(parents=True, exist_ok=True)
    for number, context in contexts:
        context.tracing.stop(path=SHOTS / f"{request.node.name}-{number}.zip")
        context.close()


def kept(hub: Hub, repo: str, number: int) -> list[Path]:
    """The files of votes, once they hold `number`."""
    deadline = time.monotonic() + 120
    while True:
        try:
            ref = hub.resolve(repo, repo_type="dataset")
            files = sorted(hub.snapshot(ref).glob("votes/*.jsonl"))
        except Exception:  # the first commit is still to come
            files = []
        if sum(len(file.read_text().splitlines()) for file in files) >= number:
            return files
        assert time.monotonic() < deadline, f"only {files} came"
        time.sleep(0.3)


def deal(page: Page) -> list[str]:
    page.locator("#deal").click()
    expect(page.locator("#verdict")).to_contain_text("Which one did a person write?")
    return [page.locator(f"#turn-{side} textarea").input_value() for side in "ab"]


def test_ten_visitors_one_of_them_a_spammer(
    visitor: Callable[[int], Page],
    start_space: Callable[..., str],
    endpoints: dict[str, Endpoint],
    folder: Path,  # noqa: F811
    hub: Hub,
) -> None:
    repo = hub.qualify("asker-votes")
    address = start_space(
        folder,
        ASKER_ENDPOINT=endpoints["asker"].url,
        CHAT_ENDPOINT=endpoints["chat"].url,
        HF_ENDPOINT=hub.url,
        SPACE_ID="me/asker",
        VOTES_REPO=repo,
        VOTES_TOKEN=str(hub.token),
        VOTES_EVERY_S="1",
        VOTES_PER_MINUTE="100",
    )
    for number in range(10):
        page = visitor(number)
        page.goto(address)
        page.get_by_role("tab", name="Who is human?").click()
        expect(page.locator("#blind-notice")).to_contain_text(f"dataset {repo}")
        spammer = number == 9
        for _ in range(8 if spammer else 1):
            shown = deal(page)
            side = 0 if spammer else shown.index(REAL[2]["content"])
            if not spammer:
                page.wait_for_timeout(1_100)  # a person reads
            page.locator(f"#pick-{'ab'[side]}").click()
            expect(page.locator("#verdict")).to_contain_text("so far")
    result = library.report(kept(hub, repo, 17))
    assert result.total == 17 and sum(result.screened.values()) == 8
    (standing,) = result.standings
    assert (standing.votes, standing.visitors) == (9, 9)
    (rate,) = standing.rates.values()
    assert rate.value == 0.0 and standing.strengths["local/parrot-ask"].value < -2


def test_two_models_are_compared_blind_in_a_conversation_of_one_s_own(
    visitor: Callable[[int], Page],
    start_space: Callable[..., str],
    endpoints: dict[str, Endpoint],
    hub: Hub,
    tmp_path: Path,
) -> None:
    repo = hub.qualify("chat-votes")
    address = start_space(
        write_sources("chat", tmp_path / "chat"),
        CHAT_ENDPOINT=endpoints["chat"].url,
        BASE_ENDPOINT=endpoints["base"].url,
        HF_ENDPOINT=hub.url,
        SPACE_ID="me/chat",
        VOTES_REPO=repo,
        VOTES_TOKEN=str(hub.token),
        VOTES_EVERY_S="1",
    )
    endpoints["chat"].script.answers = ["trained one", "trained two"]
    endpoints["base"].script.answers = ["plain one", "plain two"]
    page = visitor(1)
    page.goto(address)
    page.get_by_role("tab", name="Which is better?").click()
    for message, end in (("My own secret question", "one"), ("And then?", "two")):
        page.locator("#blind-both textarea").fill(message)
        page.locator("#blind-both textarea").press("Enter")
        for side in "ab":
            expect(page.locator(f"#blind-{side}")).to_contain_text(end)
        expect(page.locator("#blind-status")).to_contain_text("Go on, or choose.")
    assert "parrot" not in page.locator("#blind-status").inner_text()
    left_is_trained = "trained two" in page.locator("#blind-a").inner_text()
    page.wait_for_timeout(1_100)
    page.locator(f"#choose-{'left' if left_is_trained else 'right'}").click()
    expect(page.locator("#blind-status")).to_contain_text("Kept, thank you")
    expect(page.locator("#blind-status")).to_contain_text(
        f"{'A' if left_is_trained else 'B'} was local/parrot-chat"
    )
    (file,) = kept(hub, repo, 1)
    (vote,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert vote["turns"] == 2 and "secret" not in file.read_text()
    (standing,) = library.report([file]).standings
    assert standing.rates["HuggingFaceTB/SmolLM2-135M-Instruct", "local/parrot-chat"].value == 0.0
    assert len(endpoints["base"].script.asked[1]["messages"]) >= 3, "each has its own conversation"


def test_without_a_token_nothing_is_kept_and_the_page_says_so(
    visitor: Callable[[int], Page],
    start_space: Callable[..., str],
    endpoints: dict[str, Endpoint],
    folder: Path,  # noqa: F811
) -> None:
    page = visitor(1)
    page.goto(start_space(folder, ASKER_ENDPOINT=endpoints["asker"].url, VOTES_REPO="me/votes"))
    page.get_by_role("tab", name="Who is human?").click()
    expect(page.locator("#blind-notice")).to_contain_text("Choices are not kept here")
    deal(page)
    page.locator("#pick-a").click()
    expect(page.locator("#verdict")).to_contain_text("1 so far")
