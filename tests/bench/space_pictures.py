"""The pictures on the Spaces' cards, taken of the Spaces themselves: ``make spaces`` runs both, a
browser uses them, and what it shows is kept as ``spaces/*/preview.png``.

    python tests/bench/space_pictures.py [--recipe parrot]    # or `make pictures`

The recipe must have run; both models answer. Needs Chromium and the package playwright."""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import expect, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.chromium import system_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"width": 1100, "height": 850}
PATIENCE_MS = 300_000
_ADDRESS = re.compile(r"\b(chat|asker)\b.*?(http://127\.0\.0\.1:\d+\S*)")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--recipe", default="parrot")
    chosen = options.parse_args()
    expect.set_options(timeout=PATIENCE_MS)
    with running(chosen.recipe) as addresses, sync_playwright() as session:
        browser = session.chromium.launch(executable_path=system_chromium(), args=["--no-sandbox"])
        for name, use in (("chat", chat), ("asker", asker)):
            page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
            page.set_default_timeout(PATIENCE_MS)
            page.goto(addresses[name])
            use(page)
            page.mouse.move(0, 0)
            page.screenshot(path=ROOT / "spaces" / name / "preview.png", full_page=True)
            print(ROOT / "spaces" / name / "preview.png", flush=True)
        browser.close()


def chat(page: Page) -> None:
    """One question, answered."""
    box = page.locator("#message textarea")
    box.fill("What is the capital of France?")
    box.press("Enter")
    expect(page.locator('#chat [data-testid="bot"]')).to_contain_text(re.compile(r"\w+"))
    expect(page.locator("#message .submit-button")).to_be_visible()


def asker(page: Page) -> None:
    """Both models talk for two turns."""
    page.get_by_role("tab", name="Watch them talk").click()
    page.locator("#turns input[type=number]").fill("2")
    page.locator("#turns input[type=number]").press("Tab")
    page.locator("#opening textarea").fill("How do I get better at chess?")
    page.locator("#go").click()
    expect(page.locator("#watch-status")).to_contain_text("Done")


@contextmanager
def running(recipe: str) -> Iterator[dict[str, str]]:
    """Both Spaces, by name their addresses."""
    command = [sys.executable, "-m", "hubkit", "spaces", recipe, "--profile", "laptop"]
    spaces = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert spaces.stdout is not None
    try:
        addresses: dict[str, str] = {}
        for line in spaces.stdout:
            if match := _ADDRESS.search(line):
                addresses[match[1]] = match[2]
            if len(addresses) == 2:
                break
        else:
            sys.exit(spaces.wait() or 1)
        yield addresses
    finally:
        spaces.send_signal(signal.SIGINT)
        spaces.wait()


if __name__ == "__main__":
    main()
