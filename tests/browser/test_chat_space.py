"""The chat Space in a real browser: what a person sees when they send, stop, retry, compare, and
when things break.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from accessible import violations
from scripted import Endpoint
from support.waiting import until

pytest.importorskip("playwright", reason="needs the Python package playwright")

from playwright.sync_api import Page, expect
from support.spaces import write_sources

pytestmark = pytest.mark.browser
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"alert('owned')\"> a<b"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources("chat", tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def chat_space(
    start_space: Callable[..., str], endpoints: dict[str, Endpoint], folder: Path
) -> str:
    return start_space(
        folder,
        CHAT_ENDPOINT=endpoints["chat"].url,
        BASE_ENDPOINT=endpoints["base"].url,
        ENDPOINT_WAIT_S="4",
    )


@pytest.fixture
def chat(page: Page, chat_space: str) -> Page:
    page.goto(chat_space)
    page.locator("#message textarea").wait_for()
    return page


def say(page: Page, text: str) -> None:
    page.locator("#message textarea").fill(text)
    page.locator("#message textarea").press("Enter")


def bubbles(page: Page, where: str = "#chat") -> Any:
    return page.locator(f"{where} .message-row")


def test_the_keyboard_is_in_the_box_and_the_box_has_an_edge(chat: Page) -> None:
    box = chat.locator("#message textarea")
    expect(box).to_be_focused()
    width, colour = box.locator("..").evaluate(
        "edge => [getComputedStyle(edge).borderTopWidth, getComputedStyle(edge).borderTopColor]"
    )
    red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
    assert width == "1px" and max(red, green, blue) < 160, (width, colour)


def test_send_and_stream(chat: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["chat"].script.answers = ["one two three four five six seven eight nine ten"]
    endpoints["chat"].script.word_s = 0.2
    say(chat, "count")
    expect(chat.locator("#chat")).to_contain_text("one two")
    assert "ten" not in chat.locator("#chat").inner_text()
    expect(chat.locator("#chat")).to_contain_text("nine ten")
    (asked,) = endpoints["chat"].script.asked
    assert asked["messages"] == [{"role": "user", "content": "count"}] and asked["stream"] is True


@pytest.mark.slow
def test_a_second_message_carries_the_first(chat: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["chat"].script.answers = ["Hello <b>you</b>.", "Fine."]
    say(chat, "hi <there>")
    expect(chat.locator("#chat")).to_contain_text("Hello <b>you</b>.")
    say(chat, "how are you?")
    expect(chat.locator("#chat")).to_contain_text("Fine.")
    assert endpoints["chat"].script.asked[1]["messages"] == [
        {"role": "user", "content": "hi <there>"},
        {"role": "assistant", "content": "Hello <b>you</b>."},
        {"role": "user", "content": "how are you?"},
    ]


def test_stop_ends_the_answer_and_the_request(chat: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["chat"].script.answers = ["word " * 400]
    endpoints["chat"].script.word_s = 0.05
    say(chat, "talk")
    expect(chat.locator("#chat")).to_contain_text("word word")
    chat.locator("#message .stop-button").click()
    expect(chat.locator("#message .submit-button")).to_be_visible()
    until(lambda: endpoints["chat"].script.broken_off == 1)
    expect(chat.locator("#message textarea")).to_be_focused()
    say(chat, "again")
    expect(chat.locator("#chat")).to_contain_text("Answer number 2")
    assert len(chat.locator("#chat").inner_text()) < 1500


@pytest.mark.slow
def test_escape_stops_too(chat: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["chat"].script.answers = ["word " * 400]
    endpoints["chat"].script.word_s = 0.05
    say(chat, "talk")
    expect(chat.locator("#chat")).to_contain_text("word word")
    chat.keyboard.press("Escape")
    expect(chat.locator("#message .submit-button")).to_be_visible()
    until(lambda: endpoints["chat"].script.broken_off == 1)
    expect(chat.locator("#message textarea")).to_be_enabled()


def test_retry_asks_again_and_undo_takes_back(chat: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["chat"].script.answers = ["First try.", "Second try."]
    say(chat, "go")
    expect(chat.locator("#chat")).to_contain_text("First try.")
    chat.get_by_role("button", name="Retry").click()
    expect(chat.locator("#chat")).to_contain_text("Second try.")
    expect(chat.locator("#chat")).not_to_contain_text("First try.")
    assert [m["content"] for m in endpoints["chat"].script.asked[1]["messages"]] == ["go"]
    chat.get_by_role("button", name="Undo").click()
    expect(chat.locator("#chat")).not_to_contain_text("Second try.")
    expect(chat.locator("#message textarea")).to_have_value("go")


def test_retry_waits_until_the_turn_is_kept(chat: Page, endpoints: dict[str, Endpoint]) -> None:
    """Gradio asks again what its own state holds, which has the turn a moment after the page."""
    endpoints["chat"].script.answers = ["First.", "Second.", "Third."]
    retry = chat.get_by_role("button", name="Retry")
    box = chat.locator("#message textarea")
    for question, answer in (("one", "First."), ("two", "Second.")):
        say(chat, question)
        expect(chat.locator("#chat")).to_contain_text(answer)
        expect(box).to_be_enabled()
    expect(retry).to_have_css("pointer-events", "auto")
    box.evaluate("box => box.disabled = true")
    expect(retry).to_have_css("pointer-events", "none")
    box.evaluate("box => box.disabled = false")
    retry.click()
    expect(chat.locator("#chat")).to_contain_text("Third.")
    assert endpoints["chat"].script.asked[2]["messages"][-1]["content"] == "two"


def test_switch_to_the_base_and_set_a_system_message(
    chat: Page, endpoints: dict[str, Endpoint]
) -> None:
    chat.get_by_role("button", name="Settings").first.click()
    chat.locator("#who").get_by_text("Its base").click()
    chat.get_by_label("System message").fill("Be brief.")
    endpoints["base"].script.answers = ["From the base."]
    say(chat, "hello")
    expect(chat.locator("#chat")).to_contain_text("From the base.")
    assert not endpoints["chat"].script.asked
    assert endpoints["base"].script.asked[0]["messages"][0] == {
        "role": "system",
        "content": "Be brief.",
    }


@pytest.mark.slow
def test_side_by_side(chat: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["chat"].script.answers, endpoints["base"].script.answers = (
        ["Trained says."],
        ["Base says."],
    )
    chat.get_by_role("tab", name="Beside its base").click()
    chat.locator("#both textarea").fill("compare")
    chat.locator("#both textarea").press("Enter")
    expect(chat.locator("#left")).to_contain_text("Trained says.")
    expect(chat.locator("#right")).to_contain_text("Base says.")
    expect(chat.locator("#right")).not_to_contain_text("Trained says.")


def test_markup_in_what_people_and_models_write_stays_text(
    chat: Page, endpoints: dict[str, Endpoint]
) -> None:
    endpoints["chat"].script.answers = [f"You wrote {HOSTILE} and `x<y`"]
    say(chat, HOSTILE)
    expect(chat.locator("#chat")).to_contain_text("You wrote")
    chat.wait_for_timeout(500)
    assert chat.locator("#chat").inner_text().count("<script>document.title='owned'</script>") == 2
    assert chat.title() != "owned" and chat.problems == []  # type: ignore[attr-defined]
    assert endpoints["chat"].script.asked[0]["messages"][0]["content"] == HOSTILE


@pytest.mark.slow
def test_a_sleeping_endpoint_is_waited_for(chat: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["chat"].script.refuse = [503, 503]
    say(chat, "wake up")
    expect(chat.locator("#chat")).to_contain_text("endpoint is asleep or starting; waiting for it")
    expect(chat.locator("#chat")).to_contain_text("Answer number 1")
    expect(chat.locator("#chat")).not_to_contain_text("waiting")


def test_an_endpoint_that_stays_down_gets_a_sentence(
    chat: Page, endpoints: dict[str, Endpoint]
) -> None:
    endpoints["chat"].script.refuse = [503] * 50
    say(chat, "anyone?")
    expect(chat.get_by_text("does not answer (asleep or starting)")).to_be_visible()
    assert "Traceback" not in chat.inner_text("body")
    expect(chat.get_by_text("This page, not the model:")).to_be_visible()
    expect(chat.locator("#message textarea")).to_be_enabled()
    expect(chat.locator("#message textarea")).to_have_value("anyone?")
    endpoints["chat"].script.refuse = []
    say(chat, "back again?")
    expect(chat.locator("#chat")).to_contain_text("Answer number 1")
    expect(chat.locator("#message textarea")).to_be_enabled()
    (asked,) = endpoints["chat"].script.asked
    assert asked["messages"] == [{"role": "user", "content": "back again?"}], (
        "no sentence of the page's own"
    )


@pytest.mark.slow
def test_one_side_that_is_down_leaves_the_other_its_answer(
    chat: Page, endpoints: dict[str, Endpoint]
) -> None:
    endpoints["chat"].script.refuse = [401]
    chat.get_by_role("tab", name="Beside its base").click()
    for text, side, said in (
        ("one", "#right", "Answer number 1"),
        ("two", "#left", "Answer number 1"),
    ):
        chat.locator("#both textarea").fill(text)
        chat.locator("#both textarea").press("Enter")
        expect(chat.locator(side)).to_contain_text(said)
        if text == "one":
            expect(chat.locator("#left")).to_contain_text("wants a token")
    assert [m["content"] for m in endpoints["chat"].script.asked[0]["messages"]] == ["two"]


@pytest.mark.slow
def test_a_refused_token_gets_a_sentence(chat: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["chat"].script.refuse = [401]
    say(chat, "hello?")
    expect(chat.get_by_text("wants a token; set the secret ENDPOINT_TOKEN")).to_be_visible()


@pytest.mark.slow
def test_history_outlives_a_reload(chat: Page) -> None:
    say(chat, "remember me please")
    expect(chat.get_by_text("remember me please")).to_have_count(2)  # said, and listed as kept
    chat.reload()
    chat.locator("#message textarea").wait_for()
    chat.get_by_text("remember me please").first.click()
    expect(chat.locator("#chat")).to_contain_text("Answer number 1")


def test_a_phone_has_no_sideways_scroll_and_keys_are_enough(chat: Page) -> None:
    chat.set_viewport_size({"width": 360, "height": 740})
    chat.locator("#message textarea").focus()
    chat.keyboard.type("from a phone")
    chat.keyboard.press("Enter")
    expect(chat.locator("#chat")).to_contain_text("Answer number 1")
    assert chat.evaluate("document.documentElement.scrollWidth") <= 360
    send = chat.locator("#message .submit-button").bounding_box()
    assert send and send["x"] + send["width"] <= 360


@pytest.mark.slow
def test_an_empty_message_is_not_sent(chat: Page, endpoints: dict[str, Endpoint]) -> None:
    say(chat, "   ")
    chat.wait_for_timeout(800)
    assert not endpoints["chat"].script.asked


@pytest.mark.slow
def test_programs_can_call_it(chat_space: str, endpoints: dict[str, Endpoint]) -> None:
    from gradio_client import Client

    endpoints["chat"].script.answers = ["For programs."]
    client = Client(chat_space, verbose=False)
    assert client.predict("hello", "", 0.0, 16, api_name="/complete") == "For programs."
    assert endpoints["chat"].script.asked[0]["temperature"] == 0.0
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/chat", "/complete"}


@pytest.mark.slow
def test_agents_find_its_tools(chat_space: str) -> None:
    anyio = pytest.importorskip("anyio")
    mcp = pytest.importorskip("mcp", reason="needs the Python package mcp")
    from mcp.client.streamable_http import streamablehttp_client

    async def tools() -> list[str]:
        async with (
            streamablehttp_client(f"{chat_space}/gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            return [tool.name for tool in (await session.list_tools()).tools]

    with ThreadPoolExecutor() as pool:  # this thread has a loop of its own: the browser's
        names = pool.submit(anyio.run, tools).result()
    assert any(name.endswith("complete") for name in names)


@pytest.mark.slow
def test_who_asks_too_fast_is_told_to_wait(
    page: Page, start_space: Callable[..., str], endpoints: dict[str, Endpoint], folder: Path
) -> None:
    page.goto(start_space(folder, CHAT_ENDPOINT=endpoints["chat"].url, RATE_PER_MINUTE="1"))
    page.locator("#message textarea").wait_for()
    say(page, "one")
    expect(page.locator("#chat")).to_contain_text("Answer number 1")
    say(page, "two")
    expect(page.get_by_text("more than 1 messages a minute")).to_be_visible()
    expect(page.locator("#message textarea")).to_be_enabled()
    assert len(endpoints["chat"].script.asked) == 1


def test_an_answer_that_was_cut_off_says_so_and_the_model_never_reads_that(
    chat: Page, endpoints: dict[str, Endpoint]
) -> None:
    script = endpoints["chat"].script
    script.answers, script.finish = ["Half an"], "length"
    say(chat, "tell me")
    expect(chat.locator("#chat")).to_contain_text("Cut off at")
    script.finish = "stop"
    say(chat, "go on")
    expect(chat.locator("#chat")).to_contain_text("Answer number 2")
    read = [message["content"] for message in script.asked[1]["messages"]]
    assert read == ["tell me", "Half an", "go on"]


@pytest.mark.slow
def test_what_answers_is_named_with_its_size_and_links(chat: Page) -> None:
    about = chat.locator("a", has_text="SmolLM2-135M-Instruct").first
    assert about.get_attribute("href").endswith("/HuggingFaceTB/SmolLM2-135M-Instruct")
    expect(chat.get_by_text("135M parameters").first).to_be_visible()


@pytest.mark.slow
def test_a_phone_has_both_conversations_and_the_box_in_sight(page: Page, chat_space: str) -> None:
    page.set_viewport_size({"width": 390, "height": 760})
    page.goto(chat_space)
    page.get_by_role("tab", name="Beside its base").click()
    page.locator("#both textarea").wait_for()
    page.locator("#right").scroll_into_view_if_needed()
    for part in ("#left", "#right", "#both textarea"):
        expect(page.locator(part)).to_be_in_viewport()


@pytest.mark.slow
def test_an_answer_cut_off_in_the_blind_comparison_says_so(
    chat: Page, endpoints: dict[str, Endpoint]
) -> None:
    endpoints["chat"].script.finish = "length"
    chat.get_by_role("tab", name="Which is better?").click()
    expect(chat.locator("#choose-tie")).to_be_disabled()
    chat.locator("#blind-both textarea").fill("Hello")
    chat.locator("#blind-both textarea").press("Enter")
    expect(chat.locator("#blind-status")).to_contain_text("Go on, or choose.")
    shown = [chat.locator(f"#blind-{side}").inner_text() for side in "ab"]
    assert sum("Cut off at" in text for text in shown) == 1
    chat.locator("#choose-tie").click()
    expect(chat.locator("#blind-status")).to_contain_text(" was local/")
    expect(chat.locator("#choose-tie")).to_be_disabled()
    expect(chat.locator("#blind-fresh")).to_be_focused()
    chat.locator("#blind-both textarea").fill("And then?")
    chat.locator("#blind-both textarea").press("Enter")
    expect(chat.locator("#blind-status")).to_contain_text("You have chosen. Press Start again")
    expect(chat.locator("#blind-status")).to_contain_text(" was local/")
    expect(chat.locator("#blind-both textarea")).to_have_value("And then?")
    expect(chat.locator("#blind-a")).not_to_contain_text("Error")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_is_clean_for_axe(chat: Page, scheme: str) -> None:
    chat.emulate_media(color_scheme=scheme)
    say(chat, "hello")
    expect(chat.locator("#chat")).to_contain_text("Answer number 1")
    found = {}
    for tab, shown in (
        ("Chat", "#message"),
        ("Beside its base", "#both"),
        ("Which is better?", "#blind-both"),
    ):
        chat.get_by_role("tab", name=tab).click()
        chat.locator(shown).wait_for()
        found |= {tab: bad} if (bad := violations(chat)) else {}
    assert not found, json.dumps(found, indent=1)
