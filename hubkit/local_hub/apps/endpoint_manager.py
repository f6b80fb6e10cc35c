"""Inference endpoints as things that run: their states, and the engine of each.

    pending → initializing → running ⇄ updating, paused, scaledToZero (a request wakes it), failed,
    updateFailed

Settings and state are in SQLite and survive this process; engines do not: they end with it, and
those that should run are started again by the next one. One lock for all states; every transition
that takes time runs in a thread, and one that was overtaken (its `turn` is no longer the
endpoint's) gives up and removes what it started."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hubkit.errors import EngineError
from hubkit.local_hub.apps.engines import Engine, EngineSpec, engine_spec
from hubkit.local_hub.apps.scopes import scope_of_models
from hubkit.local_hub.apps.subprocesses import last_words
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.accounts import now
from hubkit.untrusted import JsonObject

if TYPE_CHECKING:
    import sqlite3

    from hubkit.local_hub.storage.store import Store

MOST_RUNNING = 8
STARTING = ("pending", "initializing", "updating")
ALIVE = (*STARTING, "running", "updateFailed")

log = logging.getLogger("hubkit.local_hub")


@dataclass
class Runtime:
    """What only this process knows of an endpoint."""

    turn: int = 0
    engine: Engine | None = None
    in_flight: int = 0
    last_used: float = field(default_factory=time.monotonic)


class EndpointManager:
    """All endpoints of one Hub."""

    def __init__(self, hub: Store) -> None:
        self._hub = hub
        self._lock = threading.RLock()
        self._runtimes: dict[str, Runtime] = {}
        self._threads: set[threading.Thread] = set()
        self._closed = threading.Event()
        self.url = ""

    # The process's life

    def open(self, url: str) -> None:
        """Start what should run; from now on endpoints can be made. `url` is this Hub's address."""
        self.url = url
        self._hub.accounts.revoke("endpoint:%")
        shutil.rmtree(self._hub.root / "endpoints" / "cache", ignore_errors=True)  # once, for all
        for row in self._hub.settings.rows("SELECT * FROM inference_endpoints"):
            if row["state"] in ALIVE:
                self._launch(row["id"], "pending")
        threading.Thread(target=self._watch_idle, daemon=True).start()

    def close(self) -> None:
        """End every engine; what the settings say stays."""
        self._closed.set()
        with self._lock:
            engines = [runtime.engine for runtime in self._runtimes.values() if runtime.engine]
            for runtime in self._runtimes.values():
                runtime.turn += 1
                runtime.engine = None
        for engine in engines:
            engine.stop()
        for thread in list(self._threads):
            thread.join(10)

    # What callers ask for

    def find(self, namespace: str, name: str) -> sqlite3.Row:
        """An endpoint's row. Raises `Refusal` 404."""
        sql = "SELECT * FROM inference_endpoints WHERE namespace = ? AND name = ?"
        if row := self._hub.settings.row(sql, namespace, name):
            return row
        raise Refusal(404, f"Endpoint {name[:100]} not found in namespace {namespace[:100]}.")

    def by_id(self, endpoint_id: str) -> sqlite3.Row:
        """An endpoint's row. Raises `Refusal` 404."""
        if row := self._hub.settings.row(
            "SELECT * FROM inference_endpoints WHERE id = ?", endpoint_id
        ):
            return row
        raise Refusal(404, "There is no endpoint at this address.")

    def listed(self, namespace: str) -> list[sqlite3.Row]:
        """The endpoints of a namespace, oldest first."""
        sql = "SELECT * FROM inference_endpoints WHERE namespace = ? ORDER BY created_at, id"
        return self._hub.settings.rows(sql, namespace)

    def create(self, namespace: str, name: str, spec: JsonObject, user: str) -> sqlite3.Row:
        """Make an endpoint and begin to bring it up. Raises `Refusal` 409 when the name is taken,
        400 when too many.
        """
        with self._lock:
            sql = "SELECT 1 FROM inference_endpoints WHERE namespace = ? AND name = ?"
            if self._hub.settings.row(sql, namespace, name):
                raise Refusal(409, f"Endpoint {name} already exists.")
            self._require_room()
            endpoint_id = secrets.token_hex(8)
            self._hub.settings.write(
                "INSERT INTO inference_endpoints VALUES (?, ?, ?, ?, 'pending', '', ?, ?, ?)",
                endpoint_id, namespace, name, json.dumps(spec), now(), user, now(),
            )  # fmt: skip
            row = self.by_id(endpoint_id)
            self._launch(endpoint_id, "pending")
            return row

    def update(self, row: sqlite3.Row, spec: JsonObject) -> None:
        """Other settings. A running endpoint keeps answering with the old ones until the new
        engine is ready.
        """
        with self._lock:
            sql = "UPDATE inference_endpoints SET spec = ?, updated_at = ? WHERE id = ?"
            self._hub.settings.write(sql, json.dumps(spec), now(), row["id"])
            if row["state"] in ALIVE or row["state"] == "failed":
                self._launch(row["id"], "updating" if self._of(row["id"]).engine else "pending")

    def resume(self, row: sqlite3.Row) -> None:
        """Bring a paused, failed or sleeping endpoint up. Raises `Refusal` 400 when it runs
        already.
        """
        with self._lock:
            if row["state"] in ALIVE:
                raise Refusal(400, "Endpoint is already running.")
            self._require_room()
            self._launch(row["id"], "pending")

    def suspend(self, row: sqlite3.Row, state: str) -> None:
        """Stop its engine: `state` is ``paused`` or ``scaledToZero``. Raises `Refusal` 400 for what
        is not up.
        """
        with self._lock:
            if state == "scaledToZero" and row["state"] not in ALIVE:
                raise Refusal(
                    400, f"Endpoint is {row['state']}; only one that is up can be scaled to zero."
                )
            engine = self._retired(row["id"])
            self._say(row["id"], state)
        if engine is not None:
            engine.stop()

    def delete(self, row: sqlite3.Row) -> None:
        """Stop its engine and forget it."""
        with self._lock:
            self._hub.settings.write("DELETE FROM inference_endpoints WHERE id = ?", row["id"])
            engine = self._retired(row["id"])
            self._runtimes.pop(row["id"], None)
        if engine is not None:
            engine.stop()
        shutil.rmtree(self._folder(row["id"]), ignore_errors=True)

    @contextlib.contextmanager
    def borrowed(self, endpoint_id: str) -> Any:
        """The engine for one request. Raises `Refusal` 503 while there is none, and wakes one that
        sleeps.
        """
        with self._lock:
            row = self.by_id(endpoint_id)
            runtime = self._of(endpoint_id)
            runtime.last_used = time.monotonic()
            if row["state"] == "scaledToZero":
                self._launch(endpoint_id, "pending")
            if runtime.engine is None:
                raise _not_up(row)
            engine = runtime.engine
            runtime.in_flight += 1
        try:
            yield engine
        finally:
            with self._lock:
                runtime.in_flight -= 1
                runtime.last_used = time.monotonic()

    # Transitions

    def _launch(self, endpoint_id: str, state: str) -> None:
        with self._lock:
            self._say(endpoint_id, state)
            runtime = self._of(endpoint_id)
            runtime.turn += 1
            thread = threading.Thread(
                target=self._bring_up, args=(endpoint_id, runtime, runtime.turn), daemon=True
            )
            self._threads.add(thread)
        thread.start()

    def _bring_up(self, endpoint_id: str, runtime: Runtime, turn: int) -> None:
        try:
            engine = self._started(endpoint_id, runtime, turn)
            if engine is not None:
                self._watch(endpoint_id, runtime, engine)
        except Exception:
            log.exception("bringing up endpoint %s failed", endpoint_id)
        finally:
            self._threads.discard(threading.current_thread())

    def _started(self, endpoint_id: str, runtime: Runtime, turn: int) -> Engine | None:
        """A ready engine in its place, or None when it failed or was overtaken."""
        with self._lock:
            row = self._hub.settings.row(
                "SELECT * FROM inference_endpoints WHERE id = ?", endpoint_id
            )
            if row is None or runtime.turn != turn or self._closed.is_set():
                return None
            if row["state"] == "pending":
                self._say(endpoint_id, "initializing")
            spec = engine_spec(json.loads(row["spec"])["model"])
        engine: Engine | None = None
        try:
            engine = self._engine(row, spec)
            ready = engine.wait_until_ready(lambda: runtime.turn != turn or self._closed.is_set())
        except (EngineError, OSError) as error:
            if engine is not None:
                engine.stop()
            with self._lock:
                if runtime.turn == turn:
                    self._say(
                        endpoint_id, "updateFailed" if runtime.engine else "failed", str(error)
                    )
            return None
        with self._lock:
            if ready and runtime.turn == turn and not self._closed.is_set():
                old, runtime.engine = runtime.engine, engine
                runtime.last_used = time.monotonic()
                self._say(endpoint_id, "running")
            else:
                old, ready = engine, False
        if old is not None:
            old.stop()
        return engine if ready else None

    def _engine(self, row: sqlite3.Row, spec: EngineSpec) -> Engine:
        """Start an engine that reads what is public, and of its creator's what it serves.

        Its downloads are kept apart from those of other users' engines."""
        accounts, user = self._hub.accounts, str(row["created_by"])
        name = f"endpoint:{row['id']}:{secrets.token_hex(6)}"
        token = accounts.add_token(
            user, "read", name=name, scope=scope_of_models(self._hub, spec.repos)
        )
        cache = self._hub.root / "endpoints" / "caches" / user.lower()
        try:
            return Engine(
                spec, self._folder(row["id"]), cache, self.url, token, lambda: accounts.revoke(name)
            )
        except BaseException:
            accounts.revoke(name)
            raise

    def _watch(self, endpoint_id: str, runtime: Runtime, engine: Engine) -> None:
        """Until the engine is replaced, retired or dies by itself."""
        status = engine.child.wait()
        with self._lock:
            if runtime.engine is not engine:
                return
            runtime.engine = None
            runtime.turn += 1
            self._say(
                endpoint_id,
                "failed",
                f"the engine ended with status {status}: {last_words(engine.log)}",
            )
        engine.stop()

    def _retired(self, endpoint_id: str) -> Engine | None:
        """Its engine, which no request gets any more: for the caller to stop, without the lock."""
        runtime = self._of(endpoint_id)
        runtime.turn += 1
        engine, runtime.engine = runtime.engine, None
        return engine

    def _watch_idle(self) -> None:
        """Scale to zero what may, and has had no request for as long as its settings say
        (minutes).
        """
        while not self._closed.wait(1.0):
            with self._lock:
                rows = [
                    self.by_id(endpoint_id)
                    for endpoint_id in self._runtimes
                    if self._is_idle(endpoint_id)
                ]
            for row in rows:
                with contextlib.suppress(Refusal):
                    self.suspend(row, "scaledToZero")

    def _is_idle(self, endpoint_id: str) -> bool:
        runtime = self._runtimes[endpoint_id]
        if runtime.engine is None or runtime.in_flight:
            return False
        scaling = json.loads(self.by_id(endpoint_id)["spec"])["compute"]["scaling"]
        minutes = scaling.get("scaleToZeroTimeout")
        idle_s = time.monotonic() - runtime.last_used
        return bool(minutes) and not scaling.get("minReplica") and idle_s > 60 * minutes

    def _require_room(self) -> None:
        count = sum(
            row["state"] in ALIVE
            for row in self._hub.settings.rows("SELECT state FROM inference_endpoints")
        )
        if count >= MOST_RUNNING:
            raise Refusal(
                400,
                f"Quota exceeded: {count} endpoints are up; this Hub runs at most {MOST_RUNNING}.",
            )

    def _of(self, endpoint_id: str) -> Runtime:
        return self._runtimes.setdefault(endpoint_id, Runtime())

    def _say(self, endpoint_id: str, state: str, message: str = "") -> None:
        sql = "UPDATE inference_endpoints SET state = ?, message = ?, updated_at = ? WHERE id = ?"
        self._hub.settings.write(sql, state, message, now(), endpoint_id)

    def _folder(self, endpoint_id: str) -> Any:
        return self._hub.root / "endpoints" / endpoint_id


def _not_up(row: sqlite3.Row) -> Refusal:
    if row["state"] == "paused":
        return Refusal(400, "Endpoint is paused; resume it first.")
    if row["state"] == "failed":
        return Refusal(503, f"Endpoint failed: {row['message']}")
    return Refusal(
        503, "Endpoint is starting; try again in a moment.", headers={"Retry-After": "1"}
    )
