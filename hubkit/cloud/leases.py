"""Endpoints held for a while, and always given back.

A lease is a file, written and synced before the endpoint is made, that says who holds it (process,
start time, host) and how it ends (deleted, paused, or left as it was found); the endpoint carries
the lease's mark among its tags. The holder ends it when its block ends, also by Ctrl-C. Where it
cannot (kill -9, a power cut), the file stays, and `reap`, which every later command that leases or
deploys calls first, ends what a dead holder left. Several holders may share an endpoint: the last
one ends it.

The files of a holder inside a Hub Job are gone with the job, so what it makes carries the job's id
among its tags: `reap_jobs` ends what jobs left that are over."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hubkit.cloud import endpoints, jobs
from hubkit.cloud.images import EndpointSpec
from hubkit.errors import EndpointError, HubError
from hubkit.files import write_whole
from hubkit.hub import Hub
from hubkit.hub.places import home
from hubkit.locks import FileLock
from hubkit.progress import Lasting, Progress, silent

After = Literal["pause", "delete", "leave"]
MARK = "hubkit-lease"
_JOB, _AFTER = "hubkit-job-", "hubkit-after-"
WATCH_S = 2.0


@dataclass(frozen=True, slots=True)
class Lease:
    """One holder's claim to one endpoint. `after`: what the last holder does with it."""

    endpoint: str
    hub: str
    namespace: str
    after: After
    pid: int
    started: str
    host: str
    holder: str

    @property
    def alive(self) -> bool:
        """Whether the holder still runs; for one on another machine, as far as can be known,
        yes.
        """
        if self.host != _host():
            return True
        return self.started != "" and _started(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class LeasedEndpoint:
    """An endpoint that is up and ours for now: its name and where it answers."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class CleanupResult:
    """An endpoint whose holder was gone, and what became of it: ``deleted``, ``paused``, ``left``
    or ``gone``.
    """

    endpoint: str
    outcome: str

    def to_dict(self) -> dict[str, str]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """An endpoint to be held, what becomes of it afterwards, and how long it may take to come
    up.
    """

    spec: EndpointSpec
    after: Literal["pause", "delete"] = "delete"
    wait_s: float = 1800.0


@contextmanager
def held(
    hub: Hub, *requests: LeaseRequest, progress: Progress = silent
) -> Iterator[list[LeasedEndpoint]]:
    """Find or make the endpoints, all at once, wait until they are up, and give them back when the
    block ends.

    One that was there and running before is left running; one that was paused is paused again. The
    first that does not come up ends the wait for all. Should one fail while they are held, the
    block is interrupted as by Ctrl-C, and `EndpointError` with the service's message comes out of
    it. Raises `EndpointError` and `HubError`."""
    if not requests:
        yield []
        return
    reap(hub)
    reap_jobs(hub)
    with contextlib.ExitStack() as back:
        names = []
        for request in requests:
            lease = _take(hub, request.spec, request.after)
            back.callback(_give_back, hub, lease, progress)
            names.append(lease.endpoint)
        waits = dict(zip(names, (request.wait_s for request in requests), strict=True))
        up = endpoints.wait_for_all(hub, waits, progress=progress)
        with _watched(hub, names):
            yield [LeasedEndpoint(name, str(up[name].url)) for name in names]


def reap(hub: Hub) -> list[CleanupResult]:
    """End what dead holders on this machine left on `hub`. What the Hub does not end is among the
    results, and stays for the next call.
    """
    results = []
    for path, lease in _leases():
        if lease.alive or (lease.namespace, _same_hub(lease, hub)) != (hub.namespace, True):
            continue
        with _lock(lease.endpoint):
            if not path.exists():
                continue
            try:
                outcome = _end(hub, lease, path)
            except HubError as error:
                outcome = _left_running(lease, error)
            results.append(CleanupResult(lease.endpoint, outcome))
    return results


def reap_jobs(hub: Hub) -> list[CleanupResult]:
    """Delete endpoints that were made inside Hub Jobs which are over, and not held on this
    machine.

    One that its job would have paused is left: whether it was resumed since cannot be known.
    Raises `HubError`."""
    if hub.token is None:
        return []
    results = []
    for endpoint in endpoints.listed(hub):
        job_id = next(
            (tag.removeprefix(_JOB) for tag in endpoint.tags if tag.startswith(_JOB)), None
        )
        if (
            job_id is None
            or f"{_AFTER}delete" not in endpoint.tags
            or not jobs.is_over(hub, job_id)
        ):
            continue
        with _lock(endpoint.name):
            if endpoint.name not in holders():
                results.append(CleanupResult(endpoint.name, _ended(hub, endpoint.name, "delete")))
    return results


def holders() -> dict[str, list[Lease]]:
    """Leases on this machine by endpoint, dead holders' too."""
    by_endpoint: dict[str, list[Lease]] = {}
    for _, lease in _leases():
        by_endpoint.setdefault(lease.endpoint, []).append(lease)
    return by_endpoint


def _take(hub: Hub, spec: EndpointSpec, after: After) -> Lease:
    """Write the lease down, then find or make the endpoint."""
    name = spec.name
    with _lock(name):
        other_leases = [lease for _, lease in _leases() if lease.endpoint == name]
        existing = endpoints.find(hub, name)
        if existing is None:
            ends: After = after
        elif other_leases:
            ends = other_leases[0].after
        else:
            ends = "leave" if existing.up else "pause"
        lease = Lease(
            endpoint=name,
            hub="local" if hub.embedded else hub.url,
            namespace=hub.namespace,
            after=ends,
            pid=os.getpid(),
            started=_started(os.getpid()),
            host=_host(),
            holder=secrets.token_hex(6),
        )
        _write(lease)
        try:
            if existing is None:
                job = [f"{_JOB}{job_id}"] if (job_id := jobs.inside()) else []
                tagged = (*spec.tags, MARK, f"{MARK}-{lease.holder}", f"{_AFTER}{ends}", *job)
                endpoints.make(hub, replace(spec, called=spec.name, tags=tagged))
            elif existing.state == "failed":
                endpoints.change(hub, name, "resume")
        except BaseException:
            _end(hub, lease, _path(lease))
            raise
    return lease


def _give_back(hub: Hub, lease: Lease, progress: Progress) -> None:
    """End the lease. Where the Hub does not take that, the endpoint is left, which is told: the
    work that it was for is done.
    """
    with _lock(lease.endpoint):
        try:
            _end(hub, lease, _path(lease))
        except HubError as error:
            progress(0, None, Lasting(f"endpoint {lease.endpoint}: {_left_running(lease, error)}"))


def _left_running(lease: Lease, error: HubError) -> str:
    return (
        f"not {lease.after}d, so it may still run and cost ({error}); the next command that uses "
        f"endpoints ends it, and `hubkit deploy delete {lease.endpoint}` does now"
    )


def _end(hub: Hub, lease: Lease, path: Path) -> str:
    """Do what the lease says unless others hold the endpoint too; the file goes last. What became
    of the endpoint.
    """
    other_leases = [p for p, item in _leases() if item.endpoint == lease.endpoint and p != path]
    outcome = "left"
    if not other_leases and lease.after != "leave":
        outcome = _ended(hub, lease.endpoint, lease.after)
    path.unlink(missing_ok=True)
    return outcome


def _ended(hub: Hub, name: str, after: Literal["pause", "delete"]) -> str:
    try:
        if after == "delete":
            endpoints.delete(hub, name)
        else:
            endpoints.change(hub, name, "pause")
    except HubError as error:
        if error.status != 404:
            raise
        return "gone"
    return f"{after}d"


@contextmanager
def _watched(hub: Hub, names: Sequence[str]) -> Iterator[None]:
    """Interrupt the block when one of them fails: a client alone sees only an address that does not
    answer.
    """
    over, failed = threading.Event(), []

    def watch() -> None:
        while not over.wait(WATCH_S):
            for name in names:
                with contextlib.suppress(HubError):
                    status = endpoints.describe(hub, name)
                    if status.state == "failed":
                        failed.append((name, status.message))
                        os.kill(os.getpid(), signal.SIGINT)
                        return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if not failed:
            raise
        name, message = failed[0]
        raise EndpointError(f"endpoint {name} failed while it was used: {message}") from None
    finally:
        over.set()
        thread.join(5)


# Where leases are kept


def _folder() -> Path:
    return home() / "leases"


def _path(lease: Lease) -> Path:
    return _folder() / f"{lease.endpoint}.{lease.holder}.json"


def _leases() -> list[tuple[Path, Lease]]:
    leases = []
    for path in sorted(_folder().glob("*.json")):
        with contextlib.suppress(
            OSError, ValueError, TypeError
        ):  # given back meanwhile, or not ours
            leases.append((path, Lease(**json.loads(path.read_text("utf-8")))))
    return leases


def _write(lease: Lease) -> None:
    """On disk, whole, before anything costs money."""
    write_whole(_path(lease), json.dumps(asdict(lease)), durable=True)


def _lock(name: str) -> Any:
    _folder().mkdir(parents=True, exist_ok=True)
    return FileLock(_folder() / f"{name}.lock", timeout=600)


def _same_hub(lease: Lease, hub: Hub) -> bool:
    return lease.hub == ("local" if hub.embedded else hub.url)


def _host() -> str:
    return socket.gethostname()


def _started(pid: int) -> str:
    """When a process started, so that another one with its number is not taken for it; empty when
    it is gone.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if Path("/proc/self").exists():
        return ""
    with contextlib.suppress(
        ProcessLookupError, PermissionError
    ):  # elsewhere than on Linux: alive is all we learn
        os.kill(pid, 0)
        return "alive"
    return ""
