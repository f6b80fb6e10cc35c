"""Starting, finding and stopping the embedded Hub: a process of its own, known only by its address.

The server writes ``server.json`` (its URL and pid) when it listens and exits by itself after
`IDLE_S` seconds without a request, so nobody has to start or stop it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hubkit import extras
from hubkit.errors import DiskFullError, HubError, HubUnreachableError
from hubkit.hub.network import DIRECT, exempt_loopback
from hubkit.hub.places import LOCAL, cache, local_root, settings

IDLE_S = 900
START_TIMEOUT_S = 60.0
_ALREADY_RUNNING = 3  # the server's exit status


def running() -> dict[str, Any] | None:
    """The embedded Hub's ``{url, pid, …}`` when it answers, else None."""
    try:
        state: dict[str, Any] = json.loads((local_root() / "server.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and _answers(state) else None


def ensure_running(*, jobs: bool = False, spaces: bool = False) -> str:
    """The embedded Hub's URL, starting it when it does not run. One that does not allow `jobs`, or
    does not run the apps of `spaces`, is started again where they are wanted. Raises
    `HubUnreachableError` or `DiskFullError`."""
    wanted = {name for name, is_wanted in (("jobs", jobs), ("spaces", spaces)) if is_wanted}
    if state := running():
        allowed = {name for name in ("jobs", "spaces") if state.get(name)}
        if wanted <= allowed:
            return str(state["url"])
        wanted |= allowed
        stop()
    exempt_loopback()
    root = local_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "start.lock", timeout=START_TIMEOUT_S):
            return str((running() or _start(root, wanted))["url"])
    except Timeout:
        raise HubUnreachableError(
            f"another process has been starting the embedded Hub in {root} for {START_TIMEOUT_S:.0f} s; see server.log"
        ) from None
    except HubError:
        raise
    except OSError as error:
        kind = DiskFullError if error.errno == errno.ENOSPC else HubUnreachableError
        raise kind(
            f"{root} cannot hold the embedded Hub: {error.strerror}; set HUBKIT_HOME elsewhere"
        ) from None


def _start(root: Path, allowed: set[str]) -> dict[str, Any]:
    extras.require("local", "the embedded Hub")
    log = root / "server.log"
    idle_s = os.environ.get("HUBKIT_HUB_IDLE_S", str(IDLE_S))
    command = [
        sys.executable,
        "-m",
        "hubkit.local_hub",
        "--root",
        str(root),
        "--idle-timeout-s",
        idle_s,
    ]
    command += [f"--{name}" for name in sorted(allowed)]
    with log.open("ab") as out:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if state := running():
            return state
        if server.poll() not in (
            None,
            _ALREADY_RUNNING,
        ):  # that one will say within a second where it is
            break
        time.sleep(0.05)
    else:
        server.kill()
    last = (log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
    raise HubUnreachableError(
        f"the embedded Hub in {root} did not start: {last.rstrip('.')}; its log is {log}"
    )


def stop(*, timeout_s: float = 10.0) -> bool:
    """Stop the embedded Hub, letting requests in flight finish. True when it ran."""
    state = running()
    if state is None:
        return False
    os.kill(state["pid"], signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and _answers(state):
        time.sleep(0.05)
    return True


def token() -> str | None:
    """The embedded Hub's write token, which its first start wrote for this user alone."""
    try:
        return token_path().read_text("ascii").strip()
    except (OSError, ValueError):
        return None


def token_path() -> Path:
    """The file that holds it."""
    return local_root() / "token"


def environment() -> dict[str, str]:
    """Environment under which stock Hugging Face libraries talk to the configured Hub (for ``hubkit
    hub env``).

    The token is named by its file, never by its value. The caches are ours for the embedded Hub, so
    that a repo of the same name on huggingface.co is never mixed up with it."""
    configured = settings()
    if configured.url:
        return {"HF_ENDPOINT": configured.url}
    return {
        "HF_ENDPOINT": ensure_running(),
        "HF_TOKEN_PATH": str(token_path()),
        "HF_HUB_CACHE": str(cache("hub")),
        "HF_DATASETS_CACHE": str(cache("datasets")),
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }


def default_namespace() -> str:
    """Whose repos we make on the embedded Hub."""
    return settings().namespace or LOCAL


def _answers(state: dict[str, Any]) -> bool:
    """Whether the server of `state` answers at its address, and not another one that took its port
    since.
    """
    try:
        with DIRECT.open(f"{state['url']}/healthz", timeout=5) as answer:
            return bool(json.load(answer).get("pid") == state["pid"])
    except (OSError, ValueError, KeyError, AttributeError):
        return False
