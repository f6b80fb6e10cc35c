"""The asker Space in a real browser: be the assistant, watch two models talk, tell people from
models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accessible import violations
from scripted import Endpoint

pytest.importorskip("playwright", reason="needs the Python package playwright")

from playwright.sync_api import Page, expect
from support.spaces import write_sources

pytestmark = pytest.mark.browser
END = "[END]"
TABS = (
    ("Be the assistant", "#start"),
    ("Watch them talk", "#go"),
    ("Who is human?", "#deal"),
)
SAID = '{0} [data-testid="user"], {0} [data-testid="bot"]'
REAL = [
    {"role": "user", "content": "how do i fix a flat tyre"},
    {"role": "assistant", "content": "Take the wheel off first."},
    {"role": "user", "content": "ok its off, what now"},
    {"role": "assistant", "content": "Lever the tyre off the rim."},
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Space with an end mark, and with real conversations in a file of its own instead of on a
    Hub.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = tmp_path_factory.mktemp("asker") / "asker"
    write_sources("asker", place)
    rows = pa.table({"id": ["1"], "messages": [REAL], "source": ["test"]})
    (place / "conversations").mkdir()
    pq.write_table(rows, place / "conversations" / "test-00000-of-00001.parquet")
    settings = json.loads((place / "space.json").read_text())
    settings["asker"]["end_mark"] = END
    settings["conversations"] = {"repo_id": str(place / "conversations"), "split": "test"}
    (place / "space.json").write_text(json.dumps(settings))
    return place


@pytest.fixture(scope="session")
def asker_space(
    start_space: Callable[..., str], endpoints: dict[str, Endpoint], folder: Path
) -> str:
    return start_space(
        folder,
        ASKER_ENDPOINT=endpoints["asker"].url,
        CHAT_ENDPOINT=endpoints["chat"].url,
        ENDPOINT_WAIT_S="4",
    )


@pytest.fixture
def opened(page: Page, asker_space: str) -> Page:
    page.goto(asker_space)
    page.locator("#start").wait_for()
    return page


@pytest.fixture
def watch(opened: Page) -> Page:
    opened.get_by_role("tab", name="Watch them talk").click()
    opened.locator("#go").wait_for()
    return opened


def turns(page: Page, where: str) -> list[str]:
    return [text.strip() for text in page.locator(SAID.format(where)).all_inner_texts()]


def roles(asked: dict[str, Any]) -> list[str]:
    return [m["role"] for m in asked["messages"]]


def test_the_asker_opens_you_answer_it_asks_on(
    opened: Page, endpoints: dict[str, Endpoint]
) -> None:
    script = endpoints["asker"].script
    script.answers = ["How do I boil an egg?", "And how long?"]
    opened.locator("#start").click()
    expect(opened.locator("#be-status")).to_contain_text("your turn")
    opened.locator("#reply textarea").fill("In water.")
    opened.locator("#reply textarea").press("Enter")
    expect(opened.locator("#be")).to_contain_text("And how long?")
    expect(opened.locator("#reply textarea")).to_have_value("")
    assert roles(script.asked[0]) == ["system"] and roles(script.asked[1]) == [
        "system",
        "assistant",
        "user",
    ]
    assert [m["content"] for m in script.asked[1]["messages"][1:]] == [
        "How do I boil an egg?",
        "In water.",
    ]


@pytest.mark.slow
def test_your_own_topic_is_the_asker_s_first_turn(
    opened: Page, endpoints: dict[str, Endpoint]
) -> None:
    opened.locator("#topic input, #topic textarea").first.fill("Tell me about tea.")
    opened.locator("#start").click()
    expect(opened.locator("#be")).to_contain_text("Tell me about tea.")
    opened.locator("#reply textarea").fill("It is a drink.")
    opened.locator("#reply textarea").press("Enter")
    expect(opened.locator("#be")).to_contain_text("Answer number 1")
    assert endpoints["asker"].script.asked[0]["messages"][1]["content"] == "Tell me about tea."


@pytest.mark.slow
def test_ask_again_and_take_back(opened: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["asker"].script.answers = ["First?", "Second?", "Third?"]
    opened.locator("#start").click()
    expect(opened.locator("#be")).to_contain_text("First?")
    opened.locator("#again").click()
    expect(opened.locator("#be")).to_contain_text("Second?")
    expect(opened.locator("#be")).not_to_contain_text("First?")
    opened.locator("#reply textarea").fill("My answer.")
    opened.locator("#reply textarea").press("Enter")
    expect(opened.locator("#be")).to_contain_text("Third?")
    opened.locator("#back").click()
    expect(opened.locator("#be")).not_to_contain_text("My answer.")
    expect(opened.locator("#be")).to_contain_text("Second?")


@pytest.mark.slow
def test_the_asker_can_end_the_conversation(opened: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["asker"].script.answers = ["One thing?", f"Thanks, that is all. {END} and more"]
    opened.locator("#start").click()
    expect(opened.locator("#be-status")).to_contain_text("your turn")
    opened.locator("#reply textarea").fill("Sure.")
    opened.locator("#reply textarea").press("Enter")
    expect(opened.locator("#be-status")).to_contain_text("has ended the conversation")
    expect(opened.locator("#be")).to_contain_text("that is all.")
    expect(opened.locator("#be")).not_to_contain_text(END)


def test_watch_them_talk_until_the_end_mark_and_keep_it(
    watch: Page, endpoints: dict[str, Endpoint], tmp_path: Path
) -> None:
    endpoints["asker"].script.answers = ["Why is it dark?", f"Good night. {END}"]
    endpoints["chat"].script.answers = ["Because the sun is down.", "It turns.", "Sleep well."]
    watch.locator("#opening textarea, #opening input").first.fill("When does the sun set?")
    watch.locator("#go").click()
    expect(watch.locator("#watch-status")).to_contain_text("has ended the conversation")
    spoken = [
        "When does the sun set?",
        "Because the sun is down.",
        "Why is it dark?",
        "It turns.",
        "Good night.",
    ]
    assert turns(watch, "#watch") == spoken
    assert roles(endpoints["asker"].script.asked[0]) == ["system", "assistant", "user"]
    assert roles(endpoints["chat"].script.asked[1]) == ["user", "assistant", "user"]
    watch.wait_for_timeout(800)
    with watch.expect_download() as download:
        watch.locator("#watch-keep").click()
    download.value.save_as(tmp_path / "kept.json")
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [m["content"] for m in kept["messages"]] == spoken
    assert [m["role"] for m in kept["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert kept["written_by"] == {"user": "local/parrot-ask", "assistant": "local/parrot-chat"}


@pytest.mark.slow
def test_watch_stops_at_the_number_of_turns(watch: Page) -> None:
    watch.locator("#turns input[type=number]").fill("2")
    watch.locator("#turns input[type=number]").press("Tab")
    watch.locator("#opening textarea, #opening input").first.fill("Start")
    watch.locator("#go").click()
    expect(watch.locator("#watch-status")).to_contain_text("Done: 2 turns each")
    assert len(turns(watch, "#watch")) == 4


@pytest.mark.slow
def test_pause_keeps_whole_turns_and_go_on_goes_on(
    watch: Page, endpoints: dict[str, Endpoint]
) -> None:
    endpoints["chat"].script.answers = ["whole answer", "slow " * 200, "picked up again"]
    endpoints["chat"].script.word_s = 0.05
    watch.locator("#opening textarea, #opening input").first.fill("Start")
    watch.locator("#go").click()
    expect(watch.locator("#watch")).to_contain_text("slow slow")
    watch.locator("#pause").click()
    expect(watch.locator("#watch-status")).to_contain_text("Paused")
    expect(watch.locator("#watch")).not_to_contain_text("slow")
    assert turns(watch, "#watch") == ["Start", "whole answer", "Answer number 1 in a few words."]
    endpoints["chat"].script.answers = ["picked up again"]
    watch.locator("#step").click()
    expect(watch.locator("#watch")).to_contain_text("picked up again")
    watch.wait_for_timeout(500)
    assert len(turns(watch, "#watch")) == 4


@pytest.mark.slow
def test_temperature_reaches_both_models(watch: Page, endpoints: dict[str, Endpoint]) -> None:
    watch.get_by_role("button", name="Settings").click()
    number = watch.get_by_label("number input for Temperature")
    number.fill("0.2")
    number.press("Tab")
    watch.wait_for_timeout(500)
    watch.locator("#step").click()
    expect(watch.locator("#watch")).to_contain_text("Answer number 1")
    watch.locator("#step").click()
    expect(watch.locator(SAID.format("#watch"))).to_have_count(2)
    assert {e.script.asked[0]["temperature"] for e in (endpoints["asker"], endpoints["chat"])} == {
        0.2
    }


@pytest.mark.slow
def test_who_is_human(opened: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["asker"].script.answers = ["What tool do I need for that?"]
    opened.get_by_role("tab", name="Who is human?").click()
    expect(opened.locator("#pick-a")).to_be_disabled()
    expect(opened.locator("#deal")).to_have_text("Start")
    opened.locator("#deal").click()
    expect(opened.locator("#verdict")).to_contain_text("Which one did a person write?")
    expect(opened.locator("#blind")).to_contain_text("Take the wheel off first.")
    shown = [opened.locator(f"#turn-{side} textarea").input_value() for side in "ab"]
    assert sorted(shown) == sorted([REAL[2]["content"], "What tool do I need for that?"])
    opened.locator("#pick-a").click()
    expected = (
        "Right: a person wrote that."
        if shown[0] == REAL[2]["content"]
        else "No: the asker wrote that one."
    )
    expect(opened.locator("#verdict")).to_contain_text(expected)
    person = "AB"[shown.index(REAL[2]["content"])]
    expect(opened.locator("#verdict")).to_contain_text(f"{person} is the person's turn")
    expect(opened.locator("#pick-b")).to_be_disabled()
    expect(opened.locator("#deal")).to_be_focused()
    expect(opened.locator("#deal")).to_have_text("New round")


@pytest.mark.slow
def test_an_endpoint_that_is_down_gets_a_sentence(
    watch: Page, endpoints: dict[str, Endpoint]
) -> None:
    endpoints["chat"].script.refuse = [503] * 50
    watch.locator("#opening textarea, #opening input").first.fill("Start")
    watch.locator("#go").click()
    expect(watch.locator("#watch")).to_contain_text("waiting for it")
    expect(watch.locator("#watch-status")).to_contain_text("does not answer (asleep or starting)")
    expect(watch.locator("#watch").get_by_text("Start")).to_be_visible()
    assert "Traceback" not in watch.inner_text("body")
    endpoints["chat"].script.refuse = []
    endpoints["chat"].script.answers = ["Here I am."]
    watch.locator("#step").click()
    expect(watch.locator("#watch")).to_contain_text("Here I am.")
    expect(watch.locator("#watch-status")).to_contain_text("Turn 1")


def test_an_answer_that_the_asker_never_read_can_be_given_again(
    opened: Page, endpoints: dict[str, Endpoint]
) -> None:
    endpoints["asker"].script.answers = ["How do I boil an egg?", "And how long?"]
    opened.locator("#start").click()
    expect(opened.locator("#be-status")).to_contain_text("your turn")
    endpoints["asker"].script.refuse = [503] * 50
    box = opened.locator("#reply textarea")
    box.fill("In water.")
    box.press("Enter")
    expect(opened.locator("#be-status")).to_contain_text("does not answer (asleep or starting)")
    expect(opened.locator("#be")).to_contain_text("In water.")
    expect(box).to_have_value("In water.")
    endpoints["asker"].script.refuse = []
    expect(box).to_be_enabled()
    box.fill("In hot water.")
    box.press("Enter")
    expect(opened.locator("#be")).to_contain_text("And how long?")
    asked = endpoints["asker"].script.asked[-1]["messages"]
    assert [m["content"] for m in asked[1:]] == ["How do I boil an egg?", "In hot water."]


def test_a_phone_shows_it_all(page: Page, asker_space: str) -> None:
    opened = page
    opened.set_viewport_size({"width": 360, "height": 740})
    opened.goto(asker_space)
    opened.locator("#start").wait_for()
    opened.wait_for_timeout(500)
    for tab, there in (
        ("Watch them talk", "#go"),
        ("Who is human?", "#deal"),
        ("Be the assistant", "#start"),
    ):
        named = opened.get_by_role("tab", name=tab)
        expect(named).to_be_in_viewport()
        named.click()
        opened.locator(there).wait_for()
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_keys_are_enough_and_escape_stops(opened: Page, endpoints: dict[str, Endpoint]) -> None:
    endpoints["asker"].script.answers = ["How do I boil an egg?", "slow " * 400, "And how long?"]

    def tab_to(what: str) -> None:
        for _ in range(25):
            opened.keyboard.press("Tab")
            if opened.evaluate("what => document.activeElement.closest(what) !== null", what):
                return
        raise AssertionError(f"Tab does not reach {what}")

    for stop in ("[role=tab]", "#topic", "#start"):  # in the order in which one reads them
        tab_to(stop)
    opened.keyboard.press("Enter")
    expect(opened.locator("#be-status")).to_contain_text("your turn")
    endpoints["asker"].script.word_s = 0.05
    tab_to("#reply")
    opened.keyboard.type("In water.")
    opened.keyboard.press("Enter")
    expect(opened.locator("#be")).to_contain_text("slow slow")
    opened.keyboard.press("Escape")
    expect(opened.locator("#be-status")).to_contain_text("Stopped.")
    expect(opened.locator("#be")).not_to_contain_text("slow")
    for stop in ("#again", "#back", "#be-stop", "#be-keep"):
        tab_to(stop)


@pytest.mark.slow
def test_programs_get_the_next_turn(asker_space: str, endpoints: dict[str, Endpoint]) -> None:
    from gradio_client import Client

    endpoints["asker"].script.answers = ["And then?"]
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    client = Client(asker_space, verbose=False)
    assert client.predict(conversation, 0.0, api_name="/next_turn") == "And then?"
    assert roles(endpoints["asker"].script.asked[0]) == ["system", "assistant", "user"]


def test_a_turn_that_was_cut_off_stays_marked_and_no_model_reads_that(
    watch: Page, endpoints: dict[str, Endpoint]
) -> None:
    asker, chat = endpoints["asker"].script, endpoints["chat"].script
    asker.answers, chat.answers, chat.finish = ["And then?"], ["Half an", "Whole"], "length"
    watch.locator("#turns input[type=number]").fill("2")
    watch.locator("#turns input[type=number]").press("Tab")
    watch.locator("#opening textarea, #opening input").first.fill("Hello")
    watch.locator("#go").click()
    expect(watch.locator("#watch-status")).to_contain_text("Done")
    expect(watch.locator("#watch").get_by_text("Cut off at")).to_have_count(2)
    assert [m["content"] for m in asker.asked[0]["messages"]][1:] == ["Hello", "Half an"]
    assert [m["content"] for m in chat.asked[1]["messages"]] == ["Hello", "Half an", "And then?"]


@pytest.mark.slow
def test_the_first_button_says_start_until_something_has_begun(
    watch: Page, endpoints: dict[str, Endpoint]
) -> None:
    expect(watch.locator("#go")).to_have_text("Start")
    endpoints["chat"].script.finish = "length"
    watch.locator("#opening textarea, #opening input").first.fill("Hello")
    watch.locator("#step").click()
    expect(watch.locator("#go")).to_have_text("Go on")
    watch.locator("#step").click()
    expect(watch.locator("#watch")).to_contain_text("Cut off at")
    watch.locator("#fresh").click()
    expect(watch.locator("#go")).to_have_text("Start")


def test_a_new_round_is_answered_by_the_page_before_its_server(
    opened: Page, endpoints: dict[str, Endpoint]
) -> None:
    held: list[Any] = []
    released: list[bool] = []

    def hold(route: Any) -> None:
        route.continue_() if released else held.append(route)

    opened.route("**/queue/join*", hold)
    opened.get_by_role("tab", name="Who is human?").click()
    opened.locator("#deal").click()
    expect(opened.locator("#verdict")).to_contain_text("Looking for a real conversation …")
    assert endpoints["asker"].script.asked == []
    for route in held:  # those that follow are held no longer
        route.continue_()
    released.append(True)
    expect(opened.locator("#verdict")).to_contain_text("Which one did a person write?")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_is_clean_for_axe(
    opened: Page, endpoints: dict[str, Endpoint], scheme: str
) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.locator("#start").click()
    expect(opened.locator("#be-status")).to_contain_text("your turn")
    found = {}
    for tab, shown in TABS:
        opened.get_by_role("tab", name=tab).click()
        opened.locator(shown).wait_for()
        found |= {tab: bad} if (bad := violations(opened)) else {}
    assert not found, json.dumps(found, indent=1)
