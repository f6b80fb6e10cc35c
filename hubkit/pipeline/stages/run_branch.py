"""A rollout's branch on the Hub: who drives the run, and the dialogues it has finished so far.

One driver at a time holds the lease, a file on the branch. It is taken and renewed by commits that
name their parent, so of two drivers on two machines, which see nothing of each other but the Hub,
one is refused; and a driver that lost its lease (its machine slept, its network was gone) is
refused with its next shard, so no dialogue is ever there twice. The commit that the stage makes on
``main`` supersedes the branch, which is deleted then."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hubkit.rollout as rollouts
from hubkit.errors import CommitConflictError, HubError, RepoMissingError, RunLockedError
from hubkit.files import write_whole
from hubkit.hub import Hub
from hubkit.hub.branch import Branch
from hubkit.untrusted import parse_json

LEASE = "lease.json"
ATTEMPTS = 20
_MARGIN = 0.1  # of the lease: how far apart clocks may be


class RunBranch:
    """The branch `name` of dataset `repo_id`, as driver `driver` sees it. `lease_s`: how long a
    lease holds.
    """

    def __init__(self, hub: Hub, repo_id: str, name: str, *, driver: str, lease_s: float) -> None:
        self._branch = Branch(hub, repo_id, name, repo_type="dataset")
        self._driver, self._lease_s = driver, lease_s
        self._until = 0.0
        self._lost: RunLockedError | None = None
        self._writing = threading.Lock()

    def take(self) -> None:
        """Take the lease. Raises `RunLockedError`, which names who has it, and `HubError`."""
        for _ in range(ATTEMPTS):
            self._branch.open()
            self._refuse_if_held()
            with suppress(CommitConflictError):
                self._commit({}, "The run is driven")
                return
        raise RunLockedError(
            f"others take {self._branch.repo_id}'s run at this moment; try again in a minute"
        )

    def shards(self) -> list[Path]:
        """The shards that are on the branch, downloaded."""
        return self._branch.files(["shards/raw-*.parquet"])

    def put_shard(self, path: Path) -> None:
        """Commit a finished shard, and renew the lease. Raises `RunLockedError` when that is lost,
        or `HubError`.
        """
        name = f"{path.stem}-{self._driver}.parquet" if path.stem.count("-") == 1 else path.name
        self._write({f"shards/{name}": path}, f"Dialogues {path.stem}")

    def check(self, _: Any = None) -> None:
        """Raise `RunLockedError` when the lease is lost."""
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Let others drive the run. What the Hub does not take expires by itself."""
        self._lease_s = 0.0
        with suppress(HubError, RunLockedError):
            self._write({}, "The run rests")

    @contextmanager
    def leased(self) -> Iterator[RunBranch]:
        """Take the lease and keep renewing it for the length of the context; then release it."""
        self.take()
        stopped = threading.Event()
        keeper = threading.Thread(
            target=self._keep, args=(stopped,), daemon=True, name="hubkit-lease"
        )
        keeper.start()
        try:
            yield self
        finally:
            stopped.set()
            keeper.join()
            self.release()

    def _keep(self, stopped: threading.Event) -> None:
        """Renew in good time. When the Hub takes no renewal until the lease has ended, the run may
        be another's.
        """
        lease_s = self._lease_s
        while not stopped.wait(lease_s / 10):
            if self._until - time.time() > lease_s * 2 / 3:
                continue
            try:
                self._write({}, "The run is still driven")
            except RunLockedError:
                return
            except HubError as error:
                if time.time() > self._until:
                    self._lost = RunLockedError(
                        f"the lease on this run could not be renewed ({error}); nothing is lost, "
                        "and the same command resumes from here when the Hub answers"
                    )
                    return

    def _write(self, files: Mapping[str, bytes | Path], message: str) -> None:
        """Commit on top of what we know. Who committed in between was either us (an answer got
        lost) or took over.
        """
        with self._writing:
            self.check()  # who lost the lease once writes nothing more, not even that it rests
            try:
                self._commit_on_top(files, message)
            except RunLockedError as error:
                self._lost = error
                raise

    def _commit_on_top(self, files: Mapping[str, bytes | Path], message: str) -> None:
        for _ in range(ATTEMPTS):
            try:
                self._commit(files, message)
                return
            except CommitConflictError:
                self._branch.open()
                self._refuse_if_held(was_held=True)
            except RepoMissingError:
                raise RunLockedError(
                    f"another machine finished this run, or removed its branch {self._branch.name} "
                    f"of {self._branch.repo_id}; run the same command again to see"
                ) from None
        raise CommitConflictError(f"branch {self._branch.name} moves on all the time", status=412)

    def _commit(self, files: Mapping[str, bytes | Path], message: str) -> None:
        until = time.time() + self._lease_s if self._lease_s else 0.0
        lease = {
            "driver": self._driver,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "until": until,
        }
        self._branch.commit({**files, LEASE: json.dumps(lease).encode()}, message)
        self._until = until

    def _refuse_if_held(self, *, was_held: bool = False) -> None:
        """Raise when another holds the lease; with `was_held`, also when another held it since we
        did.
        """
        try:
            lease = parse_json(self._branch.read(LEASE) or b"{}")
            driver, until = str(lease.get("driver", "")), float(lease.get("until", 0.0))
        except (ValueError, AttributeError, TypeError):
            driver, until, lease = "", 0.0, {}
        if driver == self._driver or (
            not was_held and time.time() > until + _MARGIN * self._lease_s
        ):
            return
        when = datetime.fromtimestamp(until, UTC).strftime("%H:%M:%S UTC")
        raise RunLockedError(
            f"process {lease.get('process')} on {lease.get('host')} drives this run; "
            "stop it there (it lets go at once), or, if that machine is lost, "
            f"wait until its lease ends at {when}"
        )


def driver_id(folder: Path) -> str:
    """The id of whoever drives from `folder`: made once, so that after a crash the same folder goes
    on at once.
    """
    path = folder / "driver"
    if not path.is_file():
        write_whole(path, uuid.uuid4().hex[:8])
    return path.read_text("utf-8")


@contextmanager
def claimed(
    hub: Hub, repo_id: str, name: str, folder: Path, *, lease_s: float
) -> Iterator[RunBranch]:
    """Hold the run alone, on this machine (its `folder` is locked) and on the Hub. Raises
    `RunLockedError`.
    """
    with rollouts.locked(folder):
        branch = RunBranch(hub, repo_id, name, driver=driver_id(folder), lease_s=lease_s)
        with branch.leased():
            yield branch
