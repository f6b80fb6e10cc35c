"""A real headless Chromium, a scripted endpoint behind the pages, and the Spaces as processes of
their own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import ROOT, Endpoint, Script
from support import space_process
from support.chromium import system_chromium

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 120_000  # for what has to appear, on a machine that is busy with something else


@pytest.fixture(scope="session")
def endpoints() -> Iterator[dict[str, Endpoint]]:
    """One scripted endpoint per role."""
    made = {role: Endpoint() for role in ("chat", "base", "asker")}
    yield made
    for endpoint in made.values():
        endpoint.close()


@pytest.fixture(autouse=True)
def _fresh_scripts(endpoints: dict[str, Endpoint]) -> None:
    for endpoint in endpoints.values():
        endpoint.script = Script()


@pytest.fixture(scope="session")
def start_space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Start a Space from a folder of files under an environment; gives its address."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path, **env: str) -> str:
            place = tmp_path_factory.mktemp(folder.name)
            shutil.copytree(
                folder, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
            clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            return space_process.start(stack, place, {**clean, "RATE_PER_MINUTE": "600", **env})

        yield start


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium: the system's where there is one, else Playwright's own.

    Ends with its module: while it runs, this thread has an event loop, and no other test could
    start one."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs the Python package playwright"
    )
    playwright.expect.set_options(timeout=PATIENCE_MS)
    with playwright.sync_playwright() as session:
        try:
            started = session.chromium.launch(executable_path=system_chromium(), args=FLAGS)
        except playwright.Error as error:
            pytest.skip(
                "no Chromium: install Debian's `chromium`, "
                f"or `playwright install chromium` ({error.message[:80]})"
            )
        yield started
        started.close()


SHOTS = Path(os.environ.get("SCREENSHOTS", ROOT / ".pytest_cache" / "screenshots"))


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A new page in a new profile; a screenshot of how the test left it is kept."""
    context = browser.new_context(viewport={"width": 1100, "height": 850}, accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)
    opened = context.new_page()
    opened.problems = []
    opened.on("dialog", lambda dialog: (opened.problems.append(dialog.message), dialog.dismiss()))
    yield opened
    SHOTS.mkdir(parents=True, exist_ok=True)
    opened.screenshot(path=SHOTS / f"{request.node.name}.png")
    context.close()
