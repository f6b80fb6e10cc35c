"""The process: one server for each folder, on loopback, until it is stopped or idle for long
enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from hubkit.errors import HubError, HubUnreachableError
from hubkit.files import write_whole
from hubkit.local_hub.app import STALL_TIMEOUT_S, App
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.hub import Hub
from hubkit.local_hub.storage.maintenance import sweep
from hubkit.local_hub.storage.objects import make_durable_folder
from hubkit.local_hub.storage.store import MULTIPART_ABOVE_BYTES, PART_BYTES
from hubkit.local_hub.storage.verification import check
from hubkit.locks import refused_without_locks
from hubkit.loopback import NAMES

FIRST_PORT = 7364
VERSION = 1
GRACE_S = 20
HEAD_TIMEOUT_S = 30.0
"""How long requests in flight may take to finish once the server was told to stop."""

log = logging.getLogger("hubkit.local_hub")


class AlreadyRunningError(HubError):
    """Another server holds this folder."""

    exit_code = 3


def in_use(root: Path) -> bool:
    """Whether a process holds the Hub of `root` (``hubkit.hub.in_use``).

    Where none does, the file is locked for the rest of this process: who comes now waits until it
    has ended, and starts another.
    """
    try:
        handle = os.open(root / "in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return True
    except OSError:
        os.close(handle)  # a disk that knows no locks
    return False


@contextmanager
def only_server(root: Path) -> Iterator[int]:
    """Hold the folder's lock; gives its open file. Raises `AlreadyRunningError`."""
    handle = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            with refused_without_locks(root / "lock"):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = (
                f"an embedded Hub is already running for {root}; stop it first, or use its address"
            )
            raise AlreadyRunningError(message) from None
        yield handle
    finally:
        os.close(handle)


def holds_folder(root: Path, handle: int) -> bool:
    """Whether the folder whose lock we hold still stands there: people remove it, and the next
    server makes another.
    """
    try:
        return os.path.samestat(os.fstat(handle), (root / "lock").stat())
    except OSError:
        return False


class ActivityMiddleware:
    """The application, with a count of open requests and the time of the last one."""

    def __init__(self, app: App, hub: Hub) -> None:
        self._app = app
        self._hub = hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] == "/healthz":
            await self._app(scope, receive, send)
            return
        self._hub.activity.begin()
        try:
            await self._app(scope, receive, send)
        finally:
            self._hub.activity.end()


def listen(host: str, port: int, remembered: int | None) -> socket.socket:
    """A listening socket: the port asked for; else the one of last time, else the usual one, else
    any free one.
    """
    candidates = [port] if port else [p for p in (remembered, FIRST_PORT) if p] + [0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in candidates:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it: else a body would wait until the client confirms the headers.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.bind((host, candidate))
            sock.listen(512)
            return sock
        except OSError as error:
            sock.close()
            if candidate == candidates[-1]:
                where = f"{host}:{port or 'any port'}"
                raise HubUnreachableError(
                    f"The embedded Hub cannot listen on {where}: {error.strerror}."
                ) from error
    raise AssertionError("unreachable: the last candidate returns or raises")


@dataclass(frozen=True, slots=True)
class Services:
    """What a server does beyond storing, on loopback only.

    Args:
        jobs: Holders of a write token may run commands here.
        spaces: They may run the apps of Spaces here.
        upstream: The Hub that repositories which are not here are read through from.
        own_namespaces: What the upstream is never asked for.
        relays: Hosts, or ``host:port``, of reverse proxies that this Hub answers under too.
    """

    jobs: bool = False
    spaces: bool = False
    upstream: str | None = None
    own_namespaces: Sequence[str] = ()
    relays: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Times and sizes of a server.

    Args:
        idle_timeout_s: Stop after so long without requests; 0: never.
        stall_timeout_s: Close connections on which a client neither sends nor reads for so long.
        multipart_above_bytes: Larger files are uploaded in parts.
        part_bytes: The size of a part.
    """

    idle_timeout_s: float = 0
    stall_timeout_s: float = STALL_TIMEOUT_S
    multipart_above_bytes: int = MULTIPART_ABOVE_BYTES
    part_bytes: int = PART_BYTES


def serve(root: Path, host: str, port: int, limits: Limits, services: Services) -> None:
    """Serve a folder until SIGTERM, SIGINT or idleness.

    Raises:
        AlreadyRunningError: A server runs for this folder.
        HubUnreachableError: It cannot listen there.
    """
    make_durable_folder(root)
    with only_server(root) as lock:
        hub = Hub(root)
        hub.multipart_above_bytes, hub.part_bytes = limits.multipart_above_bytes, limits.part_bytes
        hub.relays = frozenset(services.relays)
        hub.jobs.enabled = services.jobs and host in NAMES
        upstream = services.upstream if host in NAMES else None
        hub.upstream.open(upstream, services.own_namespaces)
        hub.spaces.enabled = services.spaces and host in NAMES
        try:
            prepare(hub)
            remembered = hub.settings.get("port") or ""
            is_port = remembered.isdecimal() and int(remembered) < 2**16
            sock = listen(host, port, int(remembered) if is_port else None)
            try:
                hub.settings.set("port", str(sock.getsockname()[1]))
            except Refusal:  # the disk is full: this Hub can still be read
                hub.settings.read_only = True
            asyncio.run(_serve(hub, sock, host, limits, lock))
        finally:
            if holds_folder(root, lock):
                (root / "server.json").unlink(missing_ok=True)
            hub.close()


def prepare(hub: Hub) -> None:
    """Make a folder that this process alone holds ready to be served.

    Raises:
        HubError: Its database was lost, or it is an incomplete copy.
    """
    hub.require_known_folders()
    _require_whole_copy(hub)
    sweep(hub)


def _require_whole_copy(hub: Hub) -> None:
    """Refuse a folder that was copied while its Hub ran, and is incomplete.

    Raises:
        HubError: With the first problem.
    """
    try:
        origin = json.loads((hub.root / "server.json").read_text("utf-8"))["root"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if origin == str(hub.root.resolve()):
        return
    problems = check(hub, hash_files=False, unknown=False).problems
    if problems:
        raise HubError(
            f"{hub.root} was copied from {origin} while that Hub ran, and is incomplete: "
            f"{problems[0]}. Copy it with `hubkit hub backup` instead."
        )


class _Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection that is closed when no request begins on it for long: half-open ones, and those
    on which the head of a request comes too slowly.
    """

    head_timeout_s = HEAD_TIMEOUT_S

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to watch it."""
        super().connection_made(transport)
        self._idle_cycle: object = None
        self._watch = self.loop.call_later(self.head_timeout_s, self._close_if_idle, False)

    def connection_lost(self, error: Exception | None) -> None:
        """Watch it no longer."""
        self._watch.cancel()
        super().connection_lost(error)

    def _close_if_idle(self, was_idle: bool) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and (was_idle or self.cycle is None) and self._idle_cycle is self.cycle:
            self.transport.close()
            return
        self._idle_cycle = self.cycle
        self._watch = self.loop.call_later(self.head_timeout_s, self._close_if_idle, is_idle)


class _Server(uvicorn.Server):
    """uvicorn's server, stopped by us: its own handlers would end the process by the signal, not
    with status 0.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    def stop(self) -> None:
        """Finish the requests in flight, then stop."""
        self.should_exit = True


async def _serve(
    hub: Hub,
    sock: socket.socket,
    host: str,
    limits: Limits,
    lock: int,
) -> None:
    app = App(hub, open_to_network=host not in NAMES, stall_timeout_s=limits.stall_timeout_s)
    _Protocol.head_timeout_s = min(HEAD_TIMEOUT_S, limits.stall_timeout_s)
    config = uvicorn.Config(
        ActivityMiddleware(app, hub),
        lifespan="off",
        log_config=None,
        http=_Protocol,
        access_log=False,
        server_header=False,
        date_header=False,  # the application's is of this second
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=30,
        backlog=512,
    )
    server = _Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    task = asyncio.create_task(server.serve([sock]))
    while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    url = _address(sock, host)
    if not hub.settings.read_only:
        await asyncio.to_thread(hub.jobs.open)
        await asyncio.to_thread(hub.endpoints.open, url)
        await asyncio.to_thread(hub.spaces.open, url, host, asyncio.get_running_loop())
    about = _about(hub, url)
    write_whole(hub.root / "server.json", about, durable=True)
    log.info("serving %s at %s", hub.root, url)
    watcher = asyncio.create_task(_watch(hub, server, limits.idle_timeout_s, lock, about))
    try:
        await task
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


def _address(sock: socket.socket, host: str) -> str:
    hostname = (
        "127.0.0.1" if host in ("0.0.0.0", "localhost") else f"[{host}]" if ":" in host else host
    )
    return f"http://{hostname}:{sock.getsockname()[1]}"


def _about(hub: Hub, url: str) -> bytes:
    """Where the server is and what it allows, as ``server.json`` says it."""
    info = {
        "url": url,
        "pid": os.getpid(),
        "root": str(hub.root.resolve()),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": VERSION,
        "jobs": hub.jobs.enabled,
        "spaces": hub.spaces.enabled,
        "upstream": hub.upstream.url,
        "relays": sorted(hub.relays),
    }
    return json.dumps(info).encode()


async def _watch(
    hub: Hub, server: uvicorn.Server, idle_timeout_s: float, lock: int, about: bytes
) -> None:
    """Stop when idle or when the folder is gone; keep ``server.json`` right until then."""
    state_file = hub.root / "server.json"
    while not server.should_exit:
        await asyncio.sleep(min(1.0, idle_timeout_s / 4 or 1.0))
        if not holds_folder(hub.root, lock):
            log.info("%s is gone, stopping", hub.root)
            server.should_exit = True
        elif 0 < idle_timeout_s <= hub.idle_s():
            if in_use(hub.root):
                log.info("idle for %s s, but a process uses it: staying", idle_timeout_s)
                hub.activity.restart_clock()
            else:
                log.info("idle for %s s, stopping", idle_timeout_s)
                server.should_exit = True
        else:
            hub.disk.keep_reserve()
            with contextlib.suppress(OSError):
                if not state_file.exists() or state_file.read_bytes() != about:
                    write_whole(state_file, about, durable=True)
