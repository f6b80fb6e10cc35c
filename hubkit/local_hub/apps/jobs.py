"""Jobs: commands that run on this machine, for holders of a write token.

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
from pathlib import Path
from typing import TYPE_CHECKING

from hubkit.local_hub.apps import logs
from hubkit.local_hub.apps.subprocesses import ChildProcess, environment, supervised
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.accounts import now
from hubkit.untrusted import JsonObject, count_in, list_in, number_in, text_in, texts_in

if TYPE_CHECKING:
    from hubkit.local_hub.storage.store import Store

MOST_AT_ONCE = 2
DEFAULT_TIMEOUT_S = 30 * 60
LOG = "log.jsonl"
_UNFINISHED = "stage IN ('SCHEDULING', 'RUNNING')"
OVER = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
MEMORY_GIB = {"cpu-basic": 16, "cpu-upgrade": 32}
"""Memory of a flavor; others: as much as there is."""

HUB_STOPPED = "The Hub stopped while the job was under way"
_REASONS = {
    "timeout": "Job timeout",
    "memory": "OOMKilled: the job held more memory than its flavor has",
}
_UV = """#!{python}
import os, sys
args = sys.argv[1:]
if args[:1] != ["run"]:
    sys.exit("this environment is fixed; only `uv run` is supported")
del args[0]
while args and args[0].startswith("-"):
    option = args.pop(0)
    if option in ("--with", "--python", "-p", "--index", "--extra-index-url", "--project",
                  "--directory"):
        del args[0]
if args and args[0].endswith(".py"):
    args.insert(0, {python!r})
os.execvp(args[0], args)
"""

log = logging.getLogger("hubkit.local_hub")


class JobManager:
    """All jobs of one Hub."""

    def __init__(self, hub: Store) -> None:
        self._hub = hub
        self.enabled = False
        self._lock = threading.RLock()
        self._slots = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._children: dict[str, ChildProcess | None] = {}
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def open(self) -> None:
        """Say what became of jobs that a Hub before this one took with it."""
        sql = "UPDATE jobs SET stage = 'ERROR', message = ?, finished_at = ? WHERE " + _UNFINISHED
        self._hub.settings.write(sql, HUB_STOPPED, now())
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
        self, namespace: str, spec: JsonObject, hidden: dict[str, str], user: str, url: str
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

    def _run(self, job_id: str, spec: JsonObject, hidden: dict[str, str], url: str) -> None:
        try:
            with self._slots:
                for attempt in range(count_in(spec, "attempts")):
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
        self, job_id: str, spec: JsonObject, hidden: dict[str, str], url: str
    ) -> tuple[str, str | None]:
        """(stage, message) at its end."""
        home = self.folder(job_id) / "work"
        verdict = self.folder(job_id) / "verdict"
        verdict.unlink(missing_ok=True)
        _furnish(home)
        memory = MEMORY_GIB.get(text_in(spec, "flavor"), 2**20) * 1024
        job_command = [str(word) for key in ("command", "arguments") for word in list_in(spec, key)]
        command = supervised(
            job_command,
            timeout_s=number_in(spec, "timeoutSeconds"),
            memory_mib=memory,
            verdict=verdict,
        )
        env = environment(
            {**_defaults(home, job_id, url), **texts_in(spec, "environment"), **hidden}
        )
        with self._lock:
            sql = (
                "UPDATE jobs SET stage = 'RUNNING', started_at = ? WHERE id = ? AND " + _UNFINISHED
            )
            if self._closed or not self._hub.settings.write(sql, now(), job_id):
                return "CANCELED", None
            child = self._children[job_id] = ChildProcess(command, env=env, cwd=home, output=-1)
        logs.keep(self.folder(job_id) / LOG, child.output, "Job")
        status = child.wait()
        child.stop(0)
        if verdict.exists():
            why = verdict.read_text("utf-8")
            if self._closed:
                return "ERROR", HUB_STOPPED
            return ("CANCELED", None) if why == "canceled" else ("ERROR", _REASONS[why])
        return (
            ("COMPLETED", None)
            if status == 0
            else ("ERROR", f"Job failed with exit code: {status}")
        )

    def _over(self, job_id: str, stage: str, message: str | None) -> None:
        sql = "UPDATE jobs SET stage=?, message=?, finished_at=? WHERE id=? AND " + _UNFINISHED
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
    code = str(Path(__file__).resolve().parents[3])
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
