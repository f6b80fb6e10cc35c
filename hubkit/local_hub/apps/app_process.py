"""One app of a Space: its files checked out, and the process that runs them.

As on the real Hub the app finds its secrets and variables in its environment, and who it is in
``SPACE_ID`` and its like (but no ``SYSTEM=spaces``, on which Gradio counts on packages that only
the real Hub's image has); and also the address of this Hub and (``HF_TOKEN_PATH``) a token for as
long as the app runs: it reads what is public, the Space itself, and what the Space's card names.
What its ``requirements.txt`` asks for is not installed: the app runs in this Python environment,
and the build log names what is missing there."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement

from hubkit.files import write_whole
from hubkit.local_hub.apps import logs
from hubkit.local_hub.apps.scopes import scope_of_space
from hubkit.local_hub.apps.subprocesses import ChildProcess, environment, supervised
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage import cards, trees
from hubkit.local_hub.storage.git import DEFAULT_BRANCH
from hubkit.local_hub.storage.paths import checked_path
from hubkit.local_hub.storage.repos import Repo, git

if TYPE_CHECKING:
    from hubkit.local_hub.storage.store import Store

MEMORY_MIB = 16 * 1024  # as much as the free hardware of the real Hub has
_REASONS = {"memory": "the app held more memory than it may", "canceled": "the app was ended"}


class SpaceError(Exception):
    """A Space cannot run. `stage` is what becomes of it; the text says why."""

    def __init__(self, stage: str, why: str) -> None:
        super().__init__(why)
        self.stage = stage


@dataclass(frozen=True)
class Checkout:
    """A Space's files in `folder`, the one to run, and its commit."""

    folder: Path
    app_file: str
    sha: str
    title: str


def check_out(hub: Store, repo: Repo, sha: str, work: Path, log: Path) -> Checkout:
    """Check a Space's files out below `work`. Raises `SpaceError` where this Hub cannot run it."""
    log.unlink(missing_ok=True)
    logs.note(log, f"===== Build started at commit {sha[:12]} =====")
    folder = work / "app"
    with git(hub, repo) as opened:
        entries = trees.files(opened, opened.commit(sha.encode()).tree)
        for entry in entries:
            path = folder / _inside(entry.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            pointer = trees.blob_info(opened, entry.sha).pointer
            if pointer is not None and hub.objects.size(pointer.oid) is not None:
                shutil.copyfile(hub.objects.path(pointer.oid), path)
            else:
                path.write_bytes(opened.blob(entry.sha))
    logs.note(log, f"{len(entries)} files")
    readme = folder / "README.md"
    card = cards.safe_metadata(readme.read_text("utf-8", "replace")) if readme.is_file() else {}
    sdk = card.get("sdk") or repo.sdk
    if sdk != "gradio":
        raise SpaceError(
            "CONFIG_ERROR",
            f"This Hub runs Spaces whose sdk is gradio; this one's is {str(sdk)[:40]!r}.",
        )
    app_file = str(card.get("app_file") or "app.py")
    if app_file not in {entry.path for entry in entries}:
        raise SpaceError(
            "NO_APP_FILE", f"There is no app file {app_file[:200]!r} on {DEFAULT_BRANCH}."
        )
    for line in _missing(folder / "requirements.txt"):
        logs.note(log, f"not in this Hub's Python environment: {line}")
    logs.note(log, "the files are in place")
    return Checkout(folder, app_file, sha, str(card.get("title") or repo.name))


def _inside(path: str) -> str:
    try:
        return checked_path(path)
    except Refusal as refusal:
        raise SpaceError("BUILD_ERROR", refusal.message) from None


def _missing(requirements: Path) -> Iterable[str]:
    """Lines of a requirements file that this environment does not fulfil."""
    text = requirements.read_text("utf-8", "replace") if requirements.is_file() else ""
    for line in (raw.partition("#")[0].strip() for raw in text.splitlines()[:1000]):
        if not line or line.startswith("-"):
            continue
        try:
            requirement = Requirement(line)
            version = importlib.metadata.version(requirement.name)
        except InvalidRequirement:
            continue
        except importlib.metadata.PackageNotFoundError:
            yield line
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{line} (there is {version})"


class AppProcess:
    """A running app: a child that will answer at `port`, and a thread that keeps what it prints."""

    def __init__(
        self, hub: Store, repo: Repo, files: Checkout, hub_url: str, public_port: int, log: Path
    ) -> None:
        self.port = _free_port()
        self._hub, self._files, self._log = hub, files, log
        self._token_name = f"space:{repo.pk}:{self.port}"
        self._verdict = files.folder.parent / "verdict"
        token_path = files.folder.parent / "token"
        token = hub.accounts.add_token(
            repo.created_by, "read", name=self._token_name, scope=scope_of_space(hub, repo)
        )
        write_whole(token_path, token.encode(), mode=0o600, durable=True)
        env = _environment(hub, repo, files, hub_url, token_path, self.port, public_port)
        (files.folder.parent / "tmp").mkdir(exist_ok=True)
        command = supervised(
            [sys.executable, files.app_file],
            timeout_s=float("inf"),
            memory_mib=MEMORY_MIB,
            verdict=self._verdict,
        )
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        self._child = ChildProcess(command, env=env, cwd=files.folder, output=subprocess.PIPE)
        self._keeper = threading.Thread(
            target=logs.keep, args=(log, self._child.output, "Application"), daemon=True
        )
        self._keeper.start()

    def wait_until_ready(self, timeout_s: float, superseded: Callable[[], bool]) -> bool:
        """Return True when it answers, False when it was superseded. Raises `SpaceError` when it
        ends or does not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        while not superseded():
            if self._answers():
                return True
            if self._child.poll() is not None:
                raise SpaceError("RUNTIME_ERROR", self.wait())
            if time.monotonic() > deadline:
                raise SpaceError(
                    "RUNTIME_ERROR",
                    f"The app did not answer within {timeout_s:.0f} s of its start.",
                )
            time.sleep(0.1)
        return False

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=10):
                return True
        except urllib.error.HTTPError:
            return True
        except (OSError, ValueError):
            return False

    def wait(self) -> str:
        """Wait until it ends; why it did, in one sentence."""
        status = self._child.wait()
        self._keeper.join(5)
        why = f"Exit code: {status}."
        with suppress(OSError, KeyError):
            why = f"{_REASONS[self._verdict.read_text('utf-8')].capitalize()}."
        lines = logs.last_lines(self._log, 1)
        return f"{why} It last said: {lines[0][:300]}" if lines else why

    def stop(self) -> None:
        """End it and everything below it; its files and its token go too."""
        self._child.stop(grace_s=8.0)
        self._hub.accounts.revoke(self._token_name)
        shutil.rmtree(self._files.folder.parent, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(
    hub: Store,
    repo: Repo,
    files: Checkout,
    hub_url: str,
    token_path: Path,
    port: int,
    public_port: int,
) -> dict[str, str]:
    work = files.folder.parent
    defaults = {
        "HOME": str(work),
        "TMPDIR": str(work / "tmp"),
        "HF_HUB_CACHE": str(hub.root / "spaces" / "cache"),
        "HF_ENDPOINT": hub_url,
        "HF_TOKEN_PATH": str(token_path),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONUNBUFFERED": "1",
        "CPU_CORES": str(os.cpu_count() or 1),
        "MEMORY": f"{MEMORY_MIB // 1024}Gi",
    }
    configured = {
        row["key"]: row["value"]
        for row in hub.settings.rows(
            "SELECT key, value FROM space_env WHERE repo = ? ORDER BY kind DESC", repo.pk
        )
    }
    space_variables = {
        "SPACE_ID": repo.id,
        "SPACE_AUTHOR_NAME": repo.namespace,
        "SPACE_REPO_NAME": repo.name,
        "SPACE_TITLE": files.title,
        "SPACE_HOST": f"127.0.0.1:{public_port}",
        "SPACE_CREATOR_USER_ID": repo.created_by,
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
    }
    return environment({**defaults, **configured, **space_variables})
