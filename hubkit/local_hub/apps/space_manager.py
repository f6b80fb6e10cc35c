"""The apps of Spaces: a pushed Space's files at its commit, run as a process of its own at
its address.

    STOPPED → BUILDING → APP_STARTING → RUNNING ⇄ RUNNING_BUILDING → RUNNING_APP_STARTING (a new
    commit: the old app answers until the new one does), PAUSED (until it is restarted),
    SLEEPING (a visit wakes it), NO_APP_FILE, CONFIG_ERROR, BUILD_ERROR, RUNTIME_ERROR

An app has the rights of whoever runs this Hub, so Spaces are off unless the Hub was started with
``--spaces``, and never offered to the network; on this machine, an app's address is for everybody.
One lock for all states; what takes time runs in a thread, and a start that was overtaken (its
`turn` is no longer the Space's) removes what it started."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.local_hub.apps import logs
from hubkit.local_hub.apps.app_process import AppProcess, SpaceError, check_out
from hubkit.local_hub.apps.app_proxy import AppProxy, ProxyTarget
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.git import DEFAULT_BRANCH
from hubkit.local_hub.storage.repos import Repo, commit_of, git, update_extra
from hubkit.untrusted import count_in, number_in, text_in

if TYPE_CHECKING:
    from hubkit.local_hub.storage.store import Store

MOST_RUNNING = 4
START_TIMEOUT_S = 600.0
DEFAULT_SLEEP_S = 3600
UP = ("RUNNING", "RUNNING_BUILDING", "RUNNING_APP_STARTING")
COMING = ("BUILDING", "APP_STARTING")
OFF = (
    "Spaces are off on this Hub: an app may do whatever you may on this machine. "
    "Its owner can allow them with `hubkit hub start --spaces`."
)

log = logging.getLogger("hubkit.local_hub")


@dataclass
class AppState:
    """What only this process knows of a Space's app."""

    proxy: AppProxy
    stage: str = "STOPPED"
    message: str = ""
    turn: int = 0
    sha: str = ""
    process: AppProcess | None = None
    last_used: float = field(default_factory=time.monotonic)


class SpaceManager:
    """All apps of one Hub."""

    def __init__(self, hub: Store) -> None:
        self._hub = hub
        self.enabled = False
        self._lock = threading.RLock()
        self._runs: dict[int, AppState] = {}
        self._threads: set[threading.Thread] = set()
        self._closed = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._host, self._url = "", ""

    # The process's life

    def open(self, url: str, host: str, loop: asyncio.AbstractEventLoop) -> None:
        """From now on apps can be started. Those that ran under a Hub before this one sleep until
        they are visited.
        """
        self._url, self._host, self._loop = url, host, loop
        self._hub.accounts.revoke("space:%")
        shutil.rmtree(self._hub.root / "spaces" / "work", ignore_errors=True)
        if not self.enabled:
            return
        for row in self._hub.settings.rows("SELECT * FROM repos WHERE type = 'space'"):
            repo = Repo.of(row)
            if repo.extra.get("stage") == "SLEEPING":
                self._run_of(repo).stage = "SLEEPING"
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """End every app."""
        self._closed.set()
        with self._lock:
            processes = [run.process for run in self._runs.values() if run.process]
            for run in self._runs.values():
                run.turn += 1
                run.process = None
        for process in processes:
            process.stop()
        for thread in list(self._threads):
            thread.join(10)

    def running(self) -> bool:
        """Whether an app is up or on its way."""
        return any(run.stage in (*UP, *COMING) for run in self._runs.values())

    # What callers ask for

    def state(self, repo: Repo) -> tuple[str, str, int]:
        """(stage, why not, port of its address or 0) of a Space. An app of an older commit begins
        to be replaced.
        """
        with self._lock:
            run = self._runs.get(repo.pk)
            if run is None:
                stage = text_in(repo.extra, "stage", "STOPPED")
                return ("STOPPED" if stage == "SLEEPING" else stage), "", 0
            self._follow(repo, run)
            return run.stage, run.message, run.proxy.port

    def log(self, repo: Repo, kind: str) -> Path:
        """Where the ``build`` or ``run`` log of a Space is."""
        return self._hub.root / "spaces" / repo.folder / f"{kind}.jsonl"

    def start(self, repo: Repo) -> None:
        """Start a Space's app, or start it again. Raises `Refusal` 403 where Spaces are off, 400
        for one too many.
        """
        if not self.enabled:
            raise Refusal(403, OFF)
        with self._lock:
            run = self._run_of(repo)
            if run.stage not in (*UP, *COMING):
                self._require_room()
            update_extra(
                self._hub, repo, {"stage": "SLEEPING"}
            )  # what a Hub after this one makes of it
            self._launch(repo, run)

    def changed(self, repo: Repo) -> None:
        """Its secrets or variables are others now: an app that is up starts again with them."""
        with self._lock:
            run = self._runs.get(repo.pk)
            if run is not None and run.stage in (*UP, *COMING):
                self._launch(repo, run)

    def suspend(self, repo: Repo, stage: str) -> None:
        """End a Space's app: `stage` is ``PAUSED`` or ``SLEEPING``."""
        with self._lock:
            update_extra(self._hub, repo, {"stage": stage})
            run = self._runs.get(repo.pk)
            if run is None:
                return
            run.turn += 1
            run.stage, run.message = stage, ""
            process, run.process = run.process, None
        if process is not None:
            process.stop()

    # Transitions

    def _run_of(self, repo: Repo) -> AppState:
        with self._lock:
            if repo.pk in self._runs:
                return self._runs[repo.pk]
            pk = repo.pk
            run = self._runs[pk] = AppState(
                AppProxy(repo.id, lambda: self._proxy_target(pk), lambda: self._note_use(pk))
            )
            self._in_loop(run.proxy.open(self._host, count_in(repo.extra, "port")))
            update_extra(self._hub, repo, {"port": run.proxy.port})
            return run

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None  # the server is up: it has called `open`
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _launch(self, repo: Repo, run: AppState) -> None:
        run.turn += 1
        run.stage, run.message = ("RUNNING_BUILDING" if run.process else "BUILDING"), ""
        run.sha = self._head(repo)
        thread = threading.Thread(target=self._bring_up, args=(repo, run, run.turn), daemon=True)
        self._threads.add(thread)
        thread.start()

    def _bring_up(self, repo: Repo, run: AppState, turn: int) -> None:
        process: AppProcess | None = None
        try:
            process = self._started(repo, run, turn)
            if process is not None:
                self._until_it_ends(run, process)
        except SpaceError as error:
            self._failed(repo, run, turn, error.stage, str(error))
        except Exception:
            log.exception("starting the app of %s failed", repo.id)
            self._failed(
                repo,
                run,
                turn,
                "BUILD_ERROR",
                "This Hub could not start the app; its own log says more.",
            )
        finally:
            self._threads.discard(threading.current_thread())

    def _started(self, repo: Repo, run: AppState, turn: int) -> AppProcess | None:
        """A ready app in its place, or None when it was overtaken. Raises `SpaceError`."""
        work = self._hub.root / "spaces" / "work" / f"{repo.folder}-{turn}"
        try:
            files = check_out(self._hub, repo, run.sha, work, self.log(repo, "build"))
            with self._lock:
                if self._superseded(run, turn):
                    raise SpaceError("STOPPED", "overtaken")
                run.stage = "RUNNING_APP_STARTING" if run.process else "APP_STARTING"
                process = AppProcess(
                    self._hub, repo, files, self._url, run.proxy.port, self.log(repo, "run")
                )
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        ready = False
        try:
            ready = process.wait_until_ready(START_TIMEOUT_S, lambda: self._superseded(run, turn))
        finally:
            with self._lock:
                ready = ready and not self._superseded(run, turn)
                old = run.process if ready else process
                if ready:
                    run.process, run.stage, run.last_used = process, "RUNNING", time.monotonic()
            if old is not None:
                old.stop()
        return process if ready else None

    def _superseded(self, run: AppState, turn: int) -> bool:
        return run.turn != turn or self._closed.is_set()

    def _failed(self, repo: Repo, run: AppState, turn: int, stage: str, why: str) -> None:
        with self._lock:
            if self._superseded(run, turn):
                return
            logs.note(self.log(repo, "build" if stage != "RUNTIME_ERROR" else "run"), why)
            run.stage, run.message = stage, why
            old, run.process = run.process, None  # not the app of this commit
        if old is not None:
            old.stop()

    def _until_it_ends(self, run: AppState, process: AppProcess) -> None:
        """Until the app is replaced, rests or dies by itself."""
        why = process.wait()
        with self._lock:
            if run.process is process:
                run.process = None
                run.turn += 1
                run.stage, run.message = "RUNTIME_ERROR", why
        process.stop()

    # Requests, idleness, new commits

    def _proxy_target(self, pk: int) -> ProxyTarget:
        """A connection came in: wake an app that sleeps."""
        row = self._hub.settings.row("SELECT * FROM repos WHERE pk = ?", pk)
        if row is None:
            return ProxyTarget(None, "This Space is gone.")
        repo = Repo.of(row)
        with self._lock:
            run = self._runs[pk]
            run.last_used = time.monotonic()
            if run.stage == "SLEEPING":
                try:
                    self.start(repo)
                except Refusal as refusal:
                    return ProxyTarget(None, refusal.message)
            if run.process is not None:
                return ProxyTarget(run.process.port)
            if run.stage in COMING:
                return ProxyTarget(
                    None,
                    f"The app is starting ({run.stage}). This page looks again by itself.",
                    coming=True,
                )
            return ProxyTarget(None, f"The app is not running: {run.stage}. {run.message}".strip())

    def _note_use(self, pk: int) -> None:
        if run := self._runs.get(pk):
            run.last_used = time.monotonic()

    def _watch(self) -> None:
        """Send to sleep what was not used, replace what has a new commit, end what was
        deleted.
        """
        while not self._closed.wait(1.0):
            for pk in list(self._runs):
                try:
                    self._look_after(pk)
                except Exception:
                    log.exception("looking after the app of Space %s failed", pk)

    def _look_after(self, pk: int) -> None:
        row = self._hub.settings.row("SELECT * FROM repos WHERE pk = ?", pk)
        with self._lock:
            run = self._runs[pk]
            if row is None:
                del self._runs[pk]
                run.turn += 1
        if row is None:
            if run.process is not None:
                run.process.stop()
            self._in_loop(run.proxy.close())
            return
        repo = Repo.of(row)
        self.state(repo)
        idle_s = time.monotonic() - run.last_used
        sleep_s = number_in(repo.extra, "sleep") or DEFAULT_SLEEP_S
        if run.stage == "RUNNING" and sleep_s > 0 and idle_s > sleep_s:
            self.suspend(repo, "SLEEPING")

    def _follow(self, repo: Repo, run: AppState) -> None:
        head = self._head(repo) if run.stage in (*UP, *COMING) else run.sha
        if head and run.sha != head:
            self._launch(repo, run)

    def _head(self, repo: Repo) -> str:
        with contextlib.suppress(Refusal), git(self._hub, repo) as opened:
            return commit_of(opened, DEFAULT_BRANCH).decode()
        return ""

    def _require_room(self) -> None:
        count = sum(run.stage in (*UP, *COMING) for run in self._runs.values())
        if count >= MOST_RUNNING:
            raise Refusal(
                400,
                f"{count} Spaces are up; this Hub runs at most {MOST_RUNNING} at once: pause one.",
            )
