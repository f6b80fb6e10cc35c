"""Runs the pushed Spaces on this machine: their files as they are on the Hub, the embedded engine behind them.

Takes a `Hub` and a recipe whose models and Spaces are pushed there; gives the addresses of the pages.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from hubkit import endpoint
from hubkit.errors import EngineError
from hubkit.hub import Hub, environment
from hubkit.hub.places import cache
from hubkit.progress import Progress, silent
from hubkit.publish.metadata import is_adapter
from hubkit.publish.spaces import SPACES
from hubkit.recipe import Recipe

_START_TIMEOUT_S = 120.0


@contextlib.contextmanager
def running(hub: Hub, recipe: Recipe, *, port: int = 7860, progress: Progress = silent) -> Iterator[dict[str, str]]:
    """Serve both models and both Spaces for the length of the block: Space's name (chat, asker) → address.

    Pages listen on loopback, at `port` and the ports behind it. Raises `RepoMissingError` when something is not pushed
    and `EngineError` when engine or page does not start.
    """
    with contextlib.ExitStack() as stack:
        progress(0, len(SPACES) + 1, "starting the engine")
        addresses = _engines(stack, hub, recipe)
        variables = {f"{role.upper()}_ENDPOINT": url for role, url in addresses.items()}
        pages = {}
        for number, space in enumerate(SPACES):
            progress(number + 1, len(SPACES) + 1, f"starting the {space.folder} Space")
            ref = hub.resolve(hub.qualify(getattr(recipe.repos, space.named_after)), repo_type="space")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"space-{space.folder}-")))
            shutil.copytree(hub.snapshot(ref), folder, dirs_exist_ok=True)
            pages[space.folder] = start(stack, folder, port + number, {**environment(), **variables})
        progress(len(SPACES) + 1, len(SPACES) + 1, "the Spaces are up")
        yield pages


def start(stack: contextlib.ExitStack, folder: Path, port: int, variables: Mapping[str, str]) -> str:
    """Start the Space whose files lie in `folder`; `stack` stops it. Its address once it answers."""
    _refuse_taken(port)
    env = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", **variables, "GRADIO_SERVER_PORT": str(port)}
    log = folder / "space.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=env, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL
        )
    stack.callback(_stop, process)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=5):
            return url
        time.sleep(0.2)
    said = (log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
    raise EngineError(f"the Space in {folder.name} did not start: {said}")


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise EngineError(f"port {port} is taken on this machine; choose another one with --port")


def _engines(stack: contextlib.ExitStack, hub: Hub, recipe: Recipe) -> dict[str, str]:
    """Addresses of asker, chat and base, from one engine when both are adapters of one base."""
    repos = {"asker": hub.qualify(recipe.repos.asker), "chat": hub.qualify(recipe.repos.chat)}
    env, place = environment(), cache("engine")
    shared = recipe.asker.base == recipe.chat.base and is_adapter(recipe.asker) and is_adapter(recipe.chat)
    if shared:
        engine = endpoint.start_engine(
            recipe.chat.base, repos, listen=["asker", "chat", "base"], env=env, cache_dir=place
        )
        return stack.enter_context(engine).addresses
    addresses = {}
    for role, training in (("asker", recipe.asker), ("chat", recipe.chat)):
        adapters = {role: repos[role]} if is_adapter(training) else {}
        model = training.base if adapters else repos[role]
        listen = [role, "base"] if adapters else ["base"]
        found = stack.enter_context(
            endpoint.start_engine(model, adapters, listen=listen, env=env, cache_dir=place)
        ).addresses
        addresses[role] = found[role] if adapters else found["base"]
        if role == "chat" and adapters:
            addresses["base"] = found["base"]
    return addresses


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
