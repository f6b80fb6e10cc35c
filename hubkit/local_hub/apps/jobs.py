"""Jobs: /api/jobs/{namespace}[/{id}[/logs|cancel|labels]]. Commands that run on this machine, for a write token.

A job has the rights of whoever runs this Hub, so jobs are off unless the Hub was started with
``--jobs``, and never offered to the network. Its image is this Python environment, whichever it
asks for: ``python``, ``hubkit`` and ``uv run`` are found there. It has a folder of its own (its
home), limits of time and memory, and dies with the Hub. The values of its secrets are in its
environment and nowhere else."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import sqlite3
import sys
import threading
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from hubkit.local_hub.api.http import Call, Refusal, field, page
from hubkit.local_hub.apps import logs
from hubkit.local_hub.apps.subprocesses import Child, environment, guarded
from hubkit.local_hub.storage.accounts import now, require_user, require_writer

if TYPE_CHECKING:
    from hubkit.local_hub.storage.state import Hub

MOST_AT_ONCE = 2
DEFAULT_TIMEOUT_S = 30 * 60
LOG = "log.jsonl"
OVER = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
MEMORY_GIB = {"cpu-basic": 16, "cpu-upgrade": 32}
"""Memory of a flavor; others: as much as there is."""

GONE = "The Hub stopped while the job was under way"
_REASONS = {
    "timeout": "Job timeout",
    "memory": "OOMKilled: the job held more memory than its flavor has",
}
_UV = """#!{python}
import os, sys
args = sys.argv[1:]
if args[:1] != ["run"]:
    sys.exit("this environment is fixed; only `uv run` is there")
del args[0]
while args and args[0].startswith("-"):
    option = args.pop(0)
    if option in ("--with", "--python", "-p", "--index", "--extra-index-url", "--project", "--directory"):
        del args[0]
if args and args[0].endswith(".py"):
    args.insert(0, {python!r})
os.execvp(args[0], args)
"""

log = logging.getLogger("hubkit.local_hub")


class Jobs:
    """All jobs of one Hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.enabled = False
        self._lock = threading.RLock()
        self._slots = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._children: dict[str, Child | None] = {}
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def open(self) -> None:
        """Say what became of jobs that a Hub before this one took with it."""
        sql = "UPDATE jobs SET stage = 'ERROR', message = ?, finished_at = ? WHERE stage IN ('SCHEDULING', 'RUNNING')"
        self._hub.settings.write(sql, GONE, now())
        for folder in (self._hub.root / "jobs").glob("*/work"):
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End every job."""
        with self._lock:
            self._closed = True
            children = [child for child in self._children.values() if child is not None]
        for child in children:
            child.stop(grace_s=8.0)
        for thread in list(self._threads):
            thread.join(10)

    def under_way(self, job_id: str) -> bool:
        """Whether this job's thread still writes."""
        return job_id in self._children

    def running(self) -> bool:
        """Whether a job is under way."""
        return bool(self._children)

    def folder(self, job_id: str) -> Path:
        """Where a job's log is."""
        return self._hub.root / "jobs" / job_id

    def find(self, namespace: str, job_id: str) -> sqlite3.Row:
        """A job's row. Raises `Refusal` 404."""
        row = self._hub.settings.row(
            "SELECT * FROM jobs WHERE namespace = ? AND id = ?", namespace, job_id
        )
        if row is None:
            raise Refusal(404, f"Job {job_id[:60]} not found in namespace {namespace[:100]}.")
        return row

    def start(
        self, namespace: str, spec: dict[str, Any], hidden: dict[str, str], user: str, url: str
    ) -> sqlite3.Row:
        """Run a command; `hidden` are the values of its secrets, `url` is this Hub's address."""
        job_id = secrets.token_hex(12)
        sql = "INSERT INTO jobs VALUES (?, ?, ?, 'SCHEDULING', NULL, ?, NULL, NULL, ?)"
        with self._lock:
            if self._closed:
                raise Refusal(503, "This Hub is stopping.")
            self._hub.settings.write(sql, job_id, namespace, json.dumps(spec), now(), user)
            self._children[job_id] = None
            thread = threading.Thread(
                target=self._run, args=(job_id, spec, hidden, url), daemon=True
            )
            self._threads.add(thread)
        thread.start()
        return self.find(namespace, job_id)

    def cancel(self, row: sqlite3.Row) -> None:
        """End a job; one that is over stays what it is."""
        with self._lock:
            if row["id"] not in self._children:
                return
            self._over(row["id"], "CANCELED", None)
            child = self._children[row["id"]]
        if child is not None:
            child.stop(grace_s=8.0)

    # One job, in a thread of its own

    def _run(self, job_id: str, spec: dict[str, Any], hidden: dict[str, str], url: str) -> None:
        try:
            with self._slots:
                for attempt in range(spec["attempts"]):
                    stage, message = self._attempt(job_id, spec, hidden, url)
                    if stage != "ERROR" or attempt + 1 == spec["attempts"]:
                        break
            self._over(job_id, stage, message)
        except Exception:
            log.exception("job %s failed", job_id)
            self._over(job_id, "ERROR", "The Hub could not run this job; its log says more")
        finally:
            shutil.rmtree(self.folder(job_id) / "work", ignore_errors=True)
            with self._lock:
                self._children.pop(job_id, None)
            self._threads.discard(threading.current_thread())

    def _attempt(
        self, job_id: str, spec: dict[str, Any], hidden: dict[str, str], url: str
    ) -> tuple[str, str | None]:
        """(stage, message) at its end."""
        home = self.folder(job_id) / "work"
        verdict = self.folder(job_id) / "verdict"
        verdict.unlink(missing_ok=True)
        _furnish(home)
        memory = MEMORY_GIB.get(spec["flavor"], 2**20) * 1024
        asked = [*spec["command"], *spec["arguments"]]
        command = guarded(
            asked, timeout_s=spec["timeoutSeconds"], memory_mib=memory, verdict=verdict
        )
        env = environment({**_defaults(home, job_id, url), **spec["environment"], **hidden})
        with self._lock:
            sql = "UPDATE jobs SET stage = 'RUNNING', started_at = ? WHERE id = ? AND stage IN ('SCHEDULING', 'RUNNING')"
            if self._closed or not self._hub.settings.write(sql, now(), job_id):
                return "CANCELED", None
            child = self._children[job_id] = Child(command, env=env, cwd=home, output=-1)
        logs.keep(self.folder(job_id) / LOG, child.output, "Job")
        status = child.wait()
        child.stop(0)
        if verdict.exists():
            why = verdict.read_text("utf-8")
            if self._closed:
                return "ERROR", GONE
            return ("CANCELED", None) if why == "canceled" else ("ERROR", _REASONS[why])
        return (
            ("COMPLETED", None)
            if status == 0
            else ("ERROR", f"Job failed with exit code: {status}")
        )

    def _over(self, job_id: str, stage: str, message: str | None) -> None:
        sql = "UPDATE jobs SET stage=?, message=?, finished_at=? WHERE id=? AND stage IN ('SCHEDULING', 'RUNNING')"
        self._hub.settings.write(sql, stage, message, now(), job_id)


def _furnish(home: Path) -> None:
    """A job's home, with the commands of its image."""
    shutil.rmtree(home, ignore_errors=True)
    for name in ("bin", "tmp"):
        (home / name).mkdir(parents=True)
    tools = {"uv": _UV.format(python=sys.executable)}
    tools |= {name: f'#!/bin/sh\nexec "{sys.executable}" "$@"\n' for name in ("python", "python3")}
    tools["hubkit"] = f'#!/bin/sh\nexec "{sys.executable}" -m hubkit "$@"\n'
    for name, text in tools.items():
        (home / "bin" / name).write_text(text, "utf-8")
        (home / "bin" / name).chmod(0o755)


def _defaults(home: Path, job_id: str, url: str) -> dict[str, str]:
    code = str(Path(__file__).resolve().parent.parent.parent)
    python_path = os.environ.get("PYTHONPATH", "")
    return {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "PATH": os.pathsep.join([str(home / "bin"), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(
            dict.fromkeys([code, *filter(None, python_path.split(os.pathsep))])
        ),
        "PYTHONUNBUFFERED": "1",
        "HF_ENDPOINT": url,  # what a job on the real Hub finds without being told
        "JOB_ID": job_id,
    }


# The wire


async def route(call: Call) -> Response:
    """/api/jobs/…; the log is a stream, the rest is answered in a thread."""
    if len(call.segments) == 5 and call.segments[4] == "logs" and call.method == "GET":
        row = await run_in_threadpool(_readable, call)
        is_over = partial(_is_over, call.hub, row)
        return StreamingResponse(
            logs.events(call.hub.jobs.folder(row["id"]) / LOG, is_over), media_type=logs.EVENTS
        )
    if call.method not in ("GET", "HEAD"):
        await call.read_body()
    return await run_in_threadpool(_answer, call)


def _is_over(hub: Hub, row: sqlite3.Row) -> bool:
    return hub.jobs.find(row["namespace"], row["id"])["stage"] in OVER and not hub.jobs.under_way(
        row["id"]
    )


def _answer(call: Call) -> Response:
    parts, method = call.segments[2:], "GET" if call.method == "HEAD" else call.method
    if parts == ["hardware"] and method == "GET":
        return JSONResponse([_flavor(name, gib) for name, gib in MEMORY_GIB.items()])
    if len(parts) == 1:
        return _listed(call, parts[0]) if method == "GET" else _create(call, parts[0])
    if len(parts) == 2 and method == "GET":
        return JSONResponse(_described(_readable(call)))
    if len(parts) == 3 and (parts[2], method) in (("cancel", "POST"), ("labels", "PUT")):
        require_writer(call, parts[0])
        row = call.hub.jobs.find(parts[0], parts[1])
        if parts[2] == "cancel":
            call.hub.jobs.cancel(row)
        else:
            spec = {**json.loads(row["spec"]), "labels": _strings(call.json(), "labels")}
            call.hub.settings.write(
                "UPDATE jobs SET spec = ? WHERE id = ?", json.dumps(spec), row["id"]
            )
        return JSONResponse(_described(call.hub.jobs.find(parts[0], parts[1])))
    raise Refusal(404, "Not found: this Hub has nothing at this address.")


def _readable(call: Call) -> sqlite3.Row:
    namespace = call.segments[2]
    if not require_user(call).is_in(namespace):
        raise Refusal(403, f"You may not see the jobs of {namespace[:100]!r}.")
    return call.hub.jobs.find(namespace, call.segments[3])


def _listed(call: Call, namespace: str) -> Response:
    if not require_user(call).is_in(namespace):
        raise Refusal(403, f"You may not see the jobs of {namespace[:100]!r}.")
    sql = "SELECT * FROM jobs WHERE namespace = ? ORDER BY created_at DESC, id"
    stages = call.request.query_params.getlist("stage")
    labels = [text.partition("=") for text in call.request.query_params.getlist("label")]
    rows = [_described(row) for row in call.hub.settings.rows(sql, namespace)]
    rows = [row for row in rows if not stages or row["status"]["stage"] in stages]
    return page(
        call,
        [r for r in rows if all(r["labels"].get(key) == value for key, _, value in labels)],
        100,
    )


def _create(call: Call, namespace: str) -> Response:
    if call.method != "POST":
        raise Refusal(405, f"This Hub does not offer {call.method} for jobs.")
    who = require_writer(call, namespace)
    if not call.hub.jobs.enabled:
        raise Refusal(403, "Jobs are off on this Hub: a job may do whatever you may on this machine. Its owner can "
                      "allow them with `hubkit hub start --jobs`.")  # fmt: skip
    body = call.json()
    command = body.get("command")
    arguments = body.get("arguments") or []
    if not isinstance(command, list) or not command or not isinstance(arguments, list):
        raise Refusal(400, "'command' must be a list of strings, with at least one.")
    if not all(isinstance(part, str) and "\0" not in part for part in (*command, *arguments)):
        raise Refusal(400, "'command' and 'arguments' must be lists of strings.")
    for name in ("volumes", "ssh", "network", "expose"):
        if body.get(name):
            raise Refusal(400, f"This Hub's jobs have no {name!r}.")
    hidden = _strings(body, "secrets")
    spec = {
        "command": command,
        "arguments": arguments,
        "environment": _strings(body, "environment"),
        "secrets": sorted(hidden),
        "labels": _strings(body, "labels"),
        "flavor": field(body, "flavor", str, "cpu-basic"),
        "dockerImage": body.get("dockerImage"),
        "spaceId": body.get("spaceId"),
        "timeoutSeconds": max(1, field(body, "timeoutSeconds", int, DEFAULT_TIMEOUT_S)),
        "attempts": min(10, max(1, field(body, "attempts", int, 1))),
    }
    return JSONResponse(
        _described(call.hub.jobs.start(namespace, spec, hidden, who.user, call.base_url))
    )


def _strings(body: dict[str, Any], name: str) -> dict[str, str]:
    values = field(body, name, dict, {})
    found = {str(key): str(value) for key, value in values.items()}
    if any("\0" in key + value or "=" in key or not key for key, value in found.items()):
        raise Refusal(400, f"{name!r} must map names to texts.")
    return found


def _described(row: sqlite3.Row) -> dict[str, Any]:
    spec = json.loads(row["spec"])
    owner = {"id": row["namespace"], "name": row["namespace"], "type": "user"}
    ended = _seconds(row["finished_at"]) or time.time()
    began = _seconds(row["started_at"])
    made = _seconds(row["created_at"]) or ended
    return {
        "id": row["id"],
        "createdAt": row["created_at"],
        "startedAt": row["started_at"],
        "finishedAt": row["finished_at"],
        **{
            name: spec[name] for name in ("command", "arguments", "environment", "flavor", "labels")
        },
        "dockerImage": spec["dockerImage"],
        "spaceId": spec["spaceId"],
        "secrets": dict.fromkeys(spec["secrets"], ""),
        "timeout": spec["timeoutSeconds"],
        "retry": spec["attempts"] - 1,
        "status": {"stage": row["stage"], "message": row["message"]},
        "durations": {
            "schedulingSecs": int(began - made) if began else None,
            "runningSecs": int(ended - began) if began else None,
            "totalSecs": int(ended - made),
        },
        "owner": owner,
        "initiator": {"type": "user", "id": row["created_by"], "name": row["created_by"]},
    }


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def _flavor(name: str, gib: int) -> dict[str, Any]:
    cost = {"unitCostMicroUSD": 0, "unitCostUSD": 0.0, "unitLabel": "minute"}
    cores = f"{os.cpu_count()} vCPU"
    return {
        "name": name,
        "prettyName": f"{name} (this machine)",
        "cpu": cores,
        "ram": f"{gib} GB",
        **cost,
    }
