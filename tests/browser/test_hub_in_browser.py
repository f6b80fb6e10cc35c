"""The embedded Hub's pages in a real browser: on a phone, by keyboard, and with nothing loaded from
elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.hub_server import HubServer

pytestmark = pytest.mark.browser
PHONE = {"width": 360, "height": 740}
PAGES = (
    "",
    "/tree/main",
    "/blob/main/README.md",
    "/commits/main",
    "/commit/main",
    "/rows",
    "/viewer/default/train",
    "/discussions/1",
)

CARD = """---
license: apache-2.0
tags: [dialogue, synthetic]
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train.jsonl}
---
# Talks

| a wide column | another wide column | a third wide column | a fourth wide column | a fifth |
| --- | --- | --- | --- | --- |
| ThisIsOneVeryLongWordThatDoesNotFitOnAPhoneAnyhowWhateverOneDoes | x | y | z | 1 |

[files](data/train.jsonl) <script>document.title = "broken in"</script> <img src="https://evil.example/x.png">
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    from huggingface_hub import CommitOperationAdd

    running = HubServer(tmp_path_factory.mktemp("hub")).start()
    api = running.api()
    api.create_repo("local/talks", repo_type="dataset")
    turns = [
        {"role": "user", "content": "Why is the sky blue? " * 20},
        {"role": "assistant", "content": "Air."},
    ]
    rows = "\n".join(json.dumps({"id": n, "messages": turns}) for n in range(45))
    files = [
        CommitOperationAdd("README.md", CARD.encode()),
        CommitOperationAdd("data/train.jsonl", rows.encode()),
    ]
    api.create_commit(
        "local/talks", operations=files, commit_message="rows and a card", repo_type="dataset"
    )
    api.create_tag("local/talks", tag="v1.0", repo_type="dataset")
    api.create_discussion(
        "local/talks", title="A question", description="*Why?*", repo_type="dataset"
    )
    api.create_repo("local/secret", private=True)
    yield running
    running.stop()


@pytest.fixture
def tab(server: HubServer, browser: Any) -> Iterator[Any]:
    """A phone's browser tab. Whatever it wants to load from elsewhere, or complains about, fails
    the test.
    """
    elsewhere: list[str] = []
    page = browser.new_page(viewport=PHONE, base_url=server.url)
    page.on("requestfinished", lambda request: elsewhere.append(request.url))
    page.on("pageerror", lambda error: elsewhere.append(f"error: {error}"))
    yield page
    page.close()
    assert [url for url in elsewhere if not url.startswith(server.url)] == []


def test_pages_fit_a_phone(tab: Any) -> None:
    for path in ("/", "/datasets", "/login", *(f"/datasets/local/talks{page}" for page in PAGES)):
        assert tab.goto(path).status == 200, path
        assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
        assert tab.title() != "broken in"
        small = tab.evaluate(
            "[...document.querySelectorAll('button, input, select')].map(e => e.offsetHeight)"
        )
        assert all(height == 0 or height >= 32 for height in small), path


def test_by_keyboard_to_the_second_page_of_rows(tab: Any) -> None:
    tab.goto("/")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to content"
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "local/talks"
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/datasets/local/talks")
    tab.get_by_role("link", name="Rows").focus()
    tab.keyboard.press("Enter")
    tab.get_by_text("Row 19").wait_for()
    assert tab.get_by_text("Why is the sky blue?").count() == 20
    tab.get_by_role("link", name="Next").focus()
    tab.keyboard.press("Enter")
    tab.get_by_text("Row 20").wait_for()


def test_tags_in_the_revision_list_lead_there(tab: Any) -> None:
    tab.goto("/datasets/local/talks/tree/main")
    tab.get_by_label("Revision").select_option("v1.0")
    tab.get_by_role("button", name="Show").click()
    tab.wait_for_url("**/tree/v1.0")
    tab.get_by_role("link", name="data/").click()
    tab.get_by_role("link", name="train.jsonl").click()
    tab.get_by_text("Download").wait_for()


def test_logging_in_shows_what_is_private(tab: Any, server: HubServer) -> None:
    tab.goto("/models")
    assert tab.get_by_text("local/secret").count() == 0
    tab.get_by_role("link", name="Log in").click()
    tab.get_by_label("Access token").fill("hf_wrongwrongwrong")
    tab.get_by_role("button", name="Log in").click()
    tab.get_by_role("alert").wait_for()
    tab.get_by_label("Access token").fill(server.token)
    tab.get_by_role("button", name="Log in").click()
    tab.get_by_role("link", name="local/secret").click()
    assert tab.get_by_text("private", exact=True).count() == 1
    tab.get_by_role("button", name="Log out local").click()
    assert tab.get_by_text("local/secret").count() == 0


def test_a_split_has_its_address_its_count_and_folded_rows(tab: Any) -> None:
    tab.goto("/datasets/local/talks/viewer")
    tab.get_by_role("link", name="default / train").click()
    tab.wait_for_url("**/viewer/default/train")
    tab.get_by_text("45 rows in this file; here are rows 0 to 19").wait_for()
    assert tab.locator("details[open]").count() == 3
    folded = tab.locator("summary", has_text="Row 7")
    folded.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("details[open]").count() == 4
    tab.get_by_role("link", name="Next").click()
    tab.wait_for_url("**/viewer/default/train?*start=20")
    assert tab.goto("/datasets/local/talks/viewer/default/nothing").status == 404


def test_code_has_a_copy_button_and_a_card_runs_no_script(tab: Any, browser: Any) -> None:
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto("/datasets/local/talks")
    tab.get_by_role("button", name="Copy this code").last.click()
    tab.get_by_text("Copied").wait_for()
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert 'load_dataset("local/talks")' in copied
    assert tab.title() != "broken in" and tab.locator("link[rel=icon]").count() == 1


NAMELESS = """() => {
  const visible = (e) => e.offsetParent !== null;
  const named = (e) => (e.innerText || "").trim() || e.getAttribute("aria-label") || e.title
    || (e.labels && e.labels.length) || (e.getAttribute("aria-labelledby"));
  const luminance = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const bad = [];
  for (const e of document.querySelectorAll("a, button, input, select, summary, iframe")) {
    if (visible(e) && e.type !== "hidden" && !named(e)) bad.push("no name: " + e.outerHTML);
  }
  for (const e of document.querySelectorAll("img:not(.card img)")) {
    if (!e.hasAttribute("alt")) bad.push("no alt");
  }
  for (const e of document.querySelectorAll("main *, header *")) {
    if (!visible(e) || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const pair = [luminance(getComputedStyle(e).color), luminance(ground(e))];
    const [a, b] = pair.sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push("contrast: " + e.outerHTML.slice(0, 120));
  }
  if (document.documentElement.lang !== "en") bad.push("no language");
  if (document.querySelectorAll("main").length !== 1) bad.push("not one main");
  if (document.querySelectorAll("h1").length < 1) bad.push("no heading");
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) bad.push("an id twice");
  return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_a_language_and_contrast(tab: Any, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    for path in ("/", "/datasets", "/login", *(f"/datasets/local/talks{page}" for page in PAGES)):
        tab.goto(path)
        assert tab.evaluate(NAMELESS) == [], path
