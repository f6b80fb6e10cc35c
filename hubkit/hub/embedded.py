"""Starting, finding and stopping the embedded Hub: a process of its own, known only by its address.

The server writes ``server.json`` (its URL and pid) when it listens and exits by itself after
`idle_limit_s` seconds without a request while no process holds it, so it need not be started or
stopped."""

from __future__ import annotations

import errno
import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from hubkit import extras
from hubkit.errors import DiskFullError, HubError, HubUnreachableError, LocksMissingError
from hubkit.hub.network import DIRECT, exempt_loopback
from hubkit.hub.places import (
    LOCAL,
    cache,
    local_root,
    make_private,
    relays,
    settings,
    upstream,
)
from hubkit.hub.proof import Challenge
from hubkit.locks import FileLock, Timeout
from hubkit.loopback import CLIENT_TIMEOUTS
from hubkit.settings import HUB_IDLE_S, HUB_RELAYS, UPSTREAM, value
from hubkit.untrusted import JsonObject, count_in, parse_json

IDLE_S = 900
START_TIMEOUT_S = 60.0
_ALREADY_RUNNING = 3  # the server's exit status


def running() -> JsonObject | None:
    """The embedded Hub's ``{url, pid, …}`` when it answers, else None."""
    try:
        state: JsonObject = parse_json((local_root() / "server.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and _answers(state) else None


def ensure_running(*, jobs: bool = False, spaces: bool = False) -> str:
    """The embedded Hub's URL, starting it when it does not run. One that does not allow `jobs`, or
    does not run the apps of `spaces`, is started again where they are wanted. Raises
    `HubUnreachableError` or `DiskFullError`."""
    required = {name for name, flag in (("jobs", jobs), ("spaces", spaces)) if flag}
    exempt_loopback()
    if state := running():
        allowed = {name for name in ("jobs", "spaces") if state.get(name)}
        if required <= allowed and _as_configured(state):
            return str(state["url"])
        required |= allowed
        stop()
    root = local_root()
    try:
        make_private(root)
        with FileLock(root / "start.lock", timeout=START_TIMEOUT_S):
            return str((running() or _start(root, required))["url"])
    except Timeout:
        raise HubUnreachableError(
            f"another process has been starting the embedded Hub in {root} for "
            f"{START_TIMEOUT_S:.0f} s; see server.log"
        ) from None
    except (HubError, LocksMissingError):
        raise
    except OSError as error:
        kind = DiskFullError if error.errno == errno.ENOSPC else HubUnreachableError
        raise kind(
            f"{root} cannot hold the embedded Hub: {error.strerror}; set HUBKIT_HOME elsewhere"
        ) from None


def _as_configured(state: JsonObject) -> bool:
    """Whether the running server has what the environment sets of its own."""
    has_upstream = UPSTREAM not in os.environ or state.get("upstream") == upstream()
    has_relays = HUB_RELAYS not in os.environ or state.get("relays", []) == sorted(relays())
    return has_upstream and has_relays


def idle_limit_s() -> float:
    """After how many seconds without a request the embedded Hub stops; 0: never.

    Raises:
        HubError: ``HUBKIT_HUB_IDLE_S`` is no such number.
    """
    text = value(HUB_IDLE_S, str(IDLE_S))
    try:
        idle_s = float(text)
    except ValueError:
        idle_s = -1.0
    if not 0 <= idle_s < float("inf"):
        raise HubError(
            f"{HUB_IDLE_S} is {text!r}; set it to seconds, such as {IDLE_S}, or to 0, and the "
            f"embedded Hub never stops by itself"
        )
    return idle_s


def stops_when() -> str:
    """When the embedded Hub stops by itself, as a sentence."""
    if not (idle_s := idle_limit_s()):
        return "It runs until `hubkit hub stop`."
    after = f"{idle_s / 60:g} minutes" if idle_s >= 120 else f"{idle_s:g} seconds"
    return f"It stops after {after} without a request and without a command that uses it."


def _start(root: Path, allowed: set[str]) -> JsonObject:
    extras.require("local", "the embedded Hub")
    log = root / "server.log"
    idle_s = str(idle_limit_s())
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
    command += [f"--relay={name}" for name in sorted(relays())]
    if url := upstream():
        command += ["--upstream", url, "--own-namespace", default_namespace()]
    with log.open("ab") as out:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if state := running():
            return state
        if server.poll() not in (None, _ALREADY_RUNNING):
            break
        if server.poll() == _ALREADY_RUNNING and time.monotonic() > deadline - START_TIMEOUT_S + 10:
            raise HubUnreachableError(
                f"a process holds {root / 'lock'} and does not prove that it is the Hub of this "
                f"folder (an older version of hubkit?): {_description(root)}; end it and try "
                f"again"
            )
        time.sleep(0.05)
    else:
        server.kill()
    last = (log.read_text("utf-8", "replace").strip().splitlines() or ["no output"])[-1]
    raise HubUnreachableError(
        f"the embedded Hub in {root} did not start: {last.rstrip('.')}; its log is {log}"
    )


def stop(*, timeout_s: float = 10.0) -> bool:
    """Stop the embedded Hub, letting requests in flight finish. True when it ran."""
    state = running()
    if state is None:
        return False
    os.kill(count_in(state, "pid"), signal.SIGTERM)
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
    url = ensure_running()  # also keeps this machine off the proxies of the environment
    exempt = {name: os.environ[name] for name in ("NO_PROXY",) if name in os.environ}
    return exempt | {
        **CLIENT_TIMEOUTS,
        "HF_ENDPOINT": url,
        "HF_TOKEN_PATH": str(token_path()),
        "HF_HUB_CACHE": str(cache("hub")),
        "HF_DATASETS_CACHE": str(cache("datasets")),
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }


def default_namespace() -> str:
    """Whose repos we make on the embedded Hub."""
    return settings().namespace or LOCAL


def _answers(state: JsonObject) -> bool:
    """Whether the server of our folder answers at the address of `state`.

    Another program may have taken its port since, or the folder may be a copy of another Hub's: the
    server proves that it knows the key in our folder, for this folder and this port. No token is
    sent before.
    """
    try:
        url = str(state["url"])
        challenge = Challenge(local_root(), urlsplit(url).port)
        with DIRECT.open(url + challenge.path(), timeout=5) as response:
            answer = parse_json(response.read(10_000))
        return bool(answer["pid"] == state["pid"] and challenge.is_met_by(answer))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException):
        return False


def _description(root: Path) -> str:
    try:
        state = parse_json((root / "server.json").read_text("utf-8"))
        return f"process {int(state['pid'])} at {state['url']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its process is not known"
