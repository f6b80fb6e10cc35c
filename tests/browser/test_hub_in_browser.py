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

from accessible import violations
from support.hub_server import HubServer

pytestmark = pytest.mark.browser
PHONE = {"width": 360, "height": 740}
EVERY_PAGE = (
    "/",
    "/models",
    "/datasets",
    "/spaces",
    "/collections",
    "/login",
    "/nobody/nothing",
    "/local",
    "/local/weights",
    "/spaces/local/talk",
    *(
        f"/datasets/local/talks{page}"
        for page in (
            "",
            "/tree/main",
            "/tree/main/data",
            "/blob/main/README.md",
            "/blob/main/data/train.jsonl",
            "/commits/main",
            "/commit/main",
            "/rows",
            "/viewer/default/train",
            "/discussions",
            "/discussions/1",
        )
    ),
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

[files](data/train.jsonl) <script>document.title = "broken in"</script> <img alt="" src="https://evil.example/x.png">
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
    api.create_repo("local/weights")
    api.create_repo("local/talk", repo_type="space", space_sdk="gradio")
    model = CARD.replace("configs:", "base_model: local/secret\nunused:")
    api.upload_file(
        path_or_fileobj=model.encode(), path_in_repo="README.md", repo_id="local/weights"
    )
    made = api.create_collection(title="All of it", namespace="local")
    api.add_collection_item(made.slug, item_id="local/talks", item_type="dataset")
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
    for path in EVERY_PAGE:
        assert tab.goto(path).status == (404 if "nothing" in path else 200), path
        assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
        assert tab.title() != "broken in"
        small = tab.evaluate(
            "[...document.querySelectorAll('button, input, select')].map(e => e.offsetHeight)"
        )
        assert all(height == 0 or height >= 32 for height in small), path


def test_by_keyboard_to_the_second_page_of_rows(tab: Any) -> None:
    tab.goto("/datasets")
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_clean_for_axe(tab: Any, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    found = {}
    for path in EVERY_PAGE:
        tab.goto(path)
        found |= {path: bad} if (bad := violations(tab)) else {}
    assert not found, json.dumps(found, indent=1)


MISSED = """() => [...document.querySelectorAll(
    'a[href], button, input, select, summary, [tabindex="0"]')]
  .filter((e) => e.offsetParent !== null && e.checkVisibility() && !e.dataset.reached)
  .map((e) => e.outerHTML.slice(0, 90))"""
FOCUSED = """() => {
  const e = document.activeElement, style = getComputedStyle(e);
  if (e === document.body) return "";
  e.dataset.reached = "yes";
  const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  return seen ? "" : "focus is not seen on " + e.outerHTML.slice(0, 90);
}"""


def test_tab_reaches_every_control_and_shows_where_it_is(tab: Any) -> None:
    for path in ("/datasets/local/talks", "/datasets/local/talks/viewer/default/train", "/login"):
        tab.goto(path)
        for _ in range(len(tab.evaluate(MISSED)) + 3):
            tab.keyboard.press("Tab")
            assert tab.evaluate(FOCUSED) == "", path
        assert tab.evaluate(MISSED) == [], path
