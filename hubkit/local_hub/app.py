"""From a raw path to a handler.

Routes are matched on the path as it was sent: revisions and paths arrive percent-encoded
(`refs%2Fpr%2F1` is one segment), so each segment is decoded by itself, after the split."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import re
import secrets
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from hubkit.local_hub import pages
from hubkit.local_hub.api import (
    access,
    card_validation,
    collections,
    commits,
    discussions,
    files,
    history,
    inference,
    info,
    jobs,
    lfs,
    repos,
    resolve,
    revisions,
    spaces,
    users,
    xet,
)
from hubkit.local_hub.api.http import Call, error_response, raw_path, require_user
from hubkit.local_hub.errors import (
    DAMAGED,
    DISK_FULL,
    Refusal,
    RepositoryDamagedError,
    is_disk_full,
)
from hubkit.local_hub.hub import Hub
from hubkit.local_hub.pages import session
from hubkit.local_hub.storage.accounts import Identity
from hubkit.local_hub.storage.repos import PLURALS, Repo, can_read, lookup, missing
from hubkit.loopback import NAMES, is_among

RepoHandler = Callable[[Call, Repo, list[str]], "Response | Awaitable[Response]"]
Handler = Callable[[Call], "Response | Awaitable[Response]"]

log = logging.getLogger("hubkit.local_hub")

STALL_TIMEOUT_S = 120.0
"""How long a client may send nothing of a body, or read nothing of an answer."""

LARGE_BODY_BYTES, MAX_LARGE_BODIES = 2**20, 4
"""As JSON, bodies grow to many times their size: only few large ones are in memory at once."""

DRAIN_S, DRAIN_BYTES = 5.0, 64 * 2**20

SIGNED, READ, USER, WRITE = "signed", "read", "user", "write"
"""What a route needs: an address that we signed, to see the repository, any write token besides, or
one that may change it."""


@dataclass(frozen=True)
class Route:
    """A handler, what it needs, and whether it reads the request's body itself (as a stream)."""

    handler: RepoHandler
    need: str = READ


def _discussion(call: Call, repo: Repo, tail: list[str]) -> Response:
    """…/discussions[/{n}[/…]]"""
    handlers = {
        (0, "GET"): discussions.list_discussions,
        (1, "GET"): discussions.details,
        (0, "POST"): discussions.create,
    }
    method = "GET" if call.method == "HEAD" else call.method
    return handlers.get((len(tail), method), discussions.change)(call, repo, tail or [""])


def _space(handler: RepoHandler, need: str = WRITE) -> Route:
    return Route(handler, need)


REPO_ROUTES: dict[str, dict[str, Route]] = {
    "": {"GET": Route(info.repo_info)},
    "revision": {"GET": Route(info.repo_info)},
    "tree": {"GET": Route(files.tree)},
    "paths-info": {"POST": Route(files.paths_info)},
    "refs": {"GET": Route(revisions.refs)},
    "commits": {"GET": Route(revisions.commits)},
    "preupload": {"POST": Route(commits.preupload, USER)},
    "commit": {"POST": Route(commits.commit, USER)},
    "branch": {
        "POST": Route(revisions.create_branch, WRITE),
        "DELETE": Route(revisions.delete_branch, WRITE),
    },
    "tag": {
        "POST": Route(revisions.create_tag, WRITE),
        "DELETE": Route(revisions.delete_tag, WRITE),
    },
    "super-squash": {"POST": Route(history.super_squash, WRITE)},
    "lfs-files": {
        "GET": Route(history.list_large_files),
        "POST": Route(history.delete_large_files, WRITE),
    },
    "duplicate": {"POST": Route(history.duplicate, USER)},
    "discussions": {"GET": Route(_discussion), "POST": Route(_discussion, USER)},
    "auth-check": {"GET": Route(access.auth_check)},
    "user-access-request": {"GET": Route(access.requests), "POST": Route(access.requests)},
    "like": {"POST": Route(users.like, USER), "DELETE": Route(users.like, USER)},
    "likers": {"GET": Route(users.likers)},
    "settings": {"PUT": Route(repos.update_settings, WRITE)},
    "xet-write-token": {"GET": Route(xet.write_token, USER)},
    "runtime": {"GET": _space(spaces.get_runtime, READ)},
    "logs": {"GET": _space(spaces.get_logs)},
    "secrets": {m: _space(spaces.secrets) for m in ("GET", "POST", "DELETE")},
    "variables": {m: _space(spaces.variables) for m in ("GET", "POST", "DELETE")},
    "hardware": {"POST": _space(spaces.set_hardware)},
    "sleeptime": {"POST": _space(spaces.set_sleep_time)},
    "pause": {"POST": _space(spaces.pause)},
    "restart": {"POST": _space(spaces.restart)},
    "volumes": {"PUT": _space(spaces.set_volumes), "DELETE": _space(spaces.remove_volumes)},
}
"""/api/{type}s/{id}/VERB/…"""

LFS_ROUTES: dict[str, dict[str, Route]] = {
    "batch": {"POST": Route(lfs.batch)},
    "objects": {"PUT": Route(lfs.upload, SIGNED), "GET": Route(lfs.download, SIGNED)},
    "parts": {"PUT": Route(lfs.upload_part, SIGNED)},
    "complete": {"POST": Route(lfs.complete, SIGNED)},
    "verify": {"POST": Route(lfs.verify, USER)},
}
"""/{prefix}{id}.git/info/lfs/VERB/…; uploads carry a signature in place of a token."""

FILE_ROUTES: dict[str, dict[str, Route]] = {
    "resolve": {"GET": Route(resolve.resolve)},
    "raw": {"GET": Route(resolve.resolve)},
    "ask-access": {"POST": Route(access.ask, USER)},
}
"""/{prefix}{id}/VERB/…"""

PLAIN_ROUTES: dict[tuple[str, str], Handler] = {
    ("GET", "/api/whoami-v2"): lambda call: JSONResponse(users.whoami(call)),
    ("POST", "/api/repos/create"): repos.create,
    ("DELETE", "/api/repos/delete"): repos.delete,
    ("POST", "/api/repos/move"): repos.move,
    ("POST", "/api/validate-yaml"): card_validation.validate,
    **{
        ("GET", f"/api/{plural}"): partial(info.list_repos, kind=kind)
        for plural, kind in PLURALS.items()
    },
}


FAMILIES: dict[tuple[str, ...], Handler] = {
    ("api", "collections"): collections.route,
    ("api", "users"): users.route,
    ("api", "organizations"): users.route,
    ("api", "jobs"): jobs.route,
    ("v2", "endpoint"): inference.route,
    ("v2", "provider"): inference.hardware,
    ("v2", "serve"): inference.serve,
}
"""Addresses below which another module tells routes apart."""


_REVISION_VERBS = ("revision", "tree", "paths-info", "commits", "resolve", "raw")
_SPACELESS = ("login", "logout", "validate-yaml", "batch")
"""Last segments of addresses whose POST needs no space: questions, and removing large files."""


class App:
    """The ASGI application."""

    def __init__(
        self, hub: Hub, *, open_to_network: bool = False, stall_timeout_s: float = STALL_TIMEOUT_S
    ) -> None:
        self.hub = hub
        self.stall_timeout_s = stall_timeout_s
        self._large_bodies = asyncio.Semaphore(MAX_LARGE_BODIES)
        self.open_to_network = open_to_network

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        body = _Body(receive, self.stall_timeout_s)
        request = Request(scope, body.receive)
        request_id = request.headers.get("x-request-id") or secrets.token_hex(8)
        response = await self._answer(request)
        response.headers["X-Request-Id"] = re.sub(r"[^A-Za-z0-9._-]", "", request_id)[:100] or "-"
        response.headers["Date"] = formatdate(
            usegmt=True
        )  # clients hold it against the times in a log
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Referrer-Policy", "same-origin")
        if response.status_code >= 400:
            await body.drain()

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self.stall_timeout_s):  # else a reader who stopped holds us
                await send(message)

        await response(scope, body.receive, send_in_time)

    async def _answer(self, request: Request) -> Response:
        try:
            self._refuse_foreign_pages(request)
            return await self._route(request)
        except Refusal as refusal:
            return error_response(refusal)
        except ClientDisconnect:
            return Response(status_code=499)
        except RepositoryDamagedError as error:
            log.error("%s %s: %s", request.method, raw_path(request)[:300], error)
            return error_response(Refusal(500, str(error)))
        except Exception as error:
            if is_disk_full(error):
                return error_response(Refusal(507, DISK_FULL))
            if isinstance(error, sqlite3.DatabaseError):
                log.exception("%s %s failed", request.method, raw_path(request)[:300])
                sentence = "The settings database of this Hub cannot be read."
                return error_response(Refusal(500, f"{sentence} {DAMAGED}"))
            log.exception("%s %s failed", request.method, raw_path(request)[:300])
            return error_response(
                Refusal(500, "Internal error of the embedded Hub; its log says more.")
            )

    def _refuse_foreign_pages(self, request: Request) -> None:
        """Refuse web pages of other sites, and names that others point at this machine."""
        host = request.headers.get("host", "")
        if not (self.open_to_network or is_among(host, (*NAMES, *self.hub.relays))):
            raise Refusal(
                403,
                "This Hub answers only under 127.0.0.1 or localhost, and under the names in "
                "HUBKIT_HUB_RELAYS of reverse proxies of its owner's.",
            )
        origin = request.headers.get("origin")
        foreign = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if origin is not None and origin.partition("://")[2] != host:
            foreign = True
        if foreign and request.method not in ("GET", "HEAD"):
            raise Refusal(403, "Requests from pages of other sites are refused.")

    def _is_public(self, request: Request) -> bool:
        """Whether others than this machine's users may have sent the request."""
        host = request.headers.get("host", "")
        return self.open_to_network or (bool(self.hub.relays) and is_among(host, self.hub.relays))

    def _health(self, request: Request) -> Response:
        """That this server answers, how idle it is, and that it is the server of its folder."""
        answer = {"status": "ok", "idle_s": round(self.hub.idle_s(), 3), "pid": os.getpid()}
        if challenge := request.query_params.get("challenge", "")[:200]:
            answer["proof"] = self.hub.proof(challenge, request.scope["server"][1])
        return JSONResponse(answer)

    def _require_space(self, call: Call) -> None:
        """While the disk is full, accept only what needs no space, and what frees some."""
        needs_none = (
            call.segments[-1] in _SPACELESS
            or call.segments[:2] == ["v2", "serve"]
            or {"paths-info", "preupload"} & set(call.segments[3:5])
        )
        if call.method in ("GET", "HEAD", "DELETE") or needs_none:
            return
        if self.hub.settings.read_only or self.hub.disk.is_short():
            raise Refusal(507, DISK_FULL)

    def _identify(self, call: Call) -> Identity | None:
        header = call.request.headers.get("authorization")
        if header is None and call.method in ("GET", "HEAD") and "cookie" in call.request.headers:
            return session.browser_identity(call)
        return self.hub.accounts.identify(header)

    async def _route(self, request: Request) -> Response:
        path = raw_path(request)
        if path == "/healthz":
            return self._health(request)
        try:
            segments = [unquote(part, errors="strict") for part in path.strip("/").split("/")]
        except UnicodeDecodeError:
            raise Refusal(400, "The path is not valid UTF-8.") from None
        if "\0" in path or len(path) > 8192 or any("\0" in part for part in segments):
            raise Refusal(400, "Invalid path.")
        if segments[0] == "xet" and len(segments) > 2:
            return await xet.serve(Call(self.hub, request, None, segments))
        call = Call(self.hub, request, None, segments)
        call.identity = self._identify(call)
        if self._is_public(request) and call.identity is None and not _needs_no_token(call):
            raise Refusal(401, "This Hub is open to the network and needs a token.")
        self._require_space(call)
        plain = PLAIN_ROUTES.get(
            ("GET" if request.method == "HEAD" else request.method, path.rstrip("/"))
        )
        if plain is not None:
            return await _run(call, plain, self._large_bodies)
        family = FAMILIES.get(tuple(segments[:2]))
        if family is not None:
            return await _run(call, family, self._large_bodies)
        return await self._route_repo(call, segments)

    async def _route_repo(self, call: Call, segments: list[str]) -> Response:
        target = _api_target(segments) or _git_target(segments) or _file_target(segments)
        if target is None:
            return await self._show_page(call)
        kind, namespace, name, table, verb, tail = target
        methods = table.get(verb, {})
        route = methods.get("GET" if call.method == "HEAD" else call.method)
        if route is None:
            raise Refusal(
                405 if methods else 404, f"This Hub does not offer {call.method} …/{verb[:40]}."
            )
        repo, was_moved = lookup(self.hub, kind, namespace, name, call.identity)
        if self._may_mirror(call, route, namespace, repo):
            revision = tail[0] if tail and verb in _REVISION_VERBS else "main"
            repo = await run_in_threadpool(
                self.hub.upstream.ensure, kind, namespace or "", name, revision
            )
        if repo is None or not (route.need == SIGNED or can_read(call.identity, repo)):
            raise missing(call.identity)
        if was_moved and namespace and call.method in ("GET", "HEAD"):
            return _redirect(call, repo, namespace, name)
        if repo.upstream and route.need in (USER, WRITE) and verb not in ("duplicate", "like"):
            raise Refusal(403, f"{repo.id} mirrors a repository of the upstream and is read-only.")
        if route.need == USER and not require_user(call).may_write:
            raise Refusal(
                403, "Forbidden: this token only has the read role; a write token is needed."
            )
        elif route.need == WRITE:
            call.require_write(repo)
        return await _run(
            call, lambda c: route.handler(c, repo, tail), self._large_bodies, route.handler
        )

    def _may_mirror(
        self, call: Call, route: Route, namespace: str | None, repo: Repo | None
    ) -> bool:
        """Whether the upstream may be asked: for the owner, and what is not a local repository."""
        if self.hub.upstream.url is None or not namespace or route.need != READ:
            return False
        is_owner = call.identity is not None and call.identity.admin
        return is_owner and (repo is None or repo.upstream)

    async def _show_page(self, call: Call) -> Response:
        if call.segments[0] in ("api", "xet", "v2"):
            raise Refusal(404, "Not found: this Hub has nothing at this address.")
        try:
            return await _run(call, pages.route, self._large_bodies)
        except Refusal as refusal:
            if "text/html" not in call.request.headers.get("accept", ""):
                raise
            return pages.answer_error(call, refusal)


def _needs_no_token(call: Call) -> bool:
    """Uploads to signed addresses (the handlers check the signature), and the way to log in."""
    if call.segments[0] in ("login", "logout", "static"):
        return True
    target = _git_target(call.segments)
    routes = target[3].get(target[4], {}) if target else {}
    return call.method in routes and routes[call.method].need == SIGNED


def _redirect(call: Call, repo: Repo, namespace: str, name: str) -> Response:
    parts = raw_path(call.request).split("/")
    plain = [unquote(part).lower() for part in parts]
    index = next(
        i for i, pair in enumerate(pairwise(plain)) if pair == (namespace.lower(), name.lower())
    )
    parts[index : index + 2] = repo.namespace, repo.name
    query = call.request.url.query
    return Response(
        status_code=307, headers={"Location": "/".join(parts) + (f"?{query}" if query else "")}
    )


Target = tuple[str, "str | None", str, dict[str, dict[str, Route]], str, list[str]]


def _api_target(segments: list[str]) -> Target | None:
    """/api/{type}s/{id}[/verb/…], where an id has one or two segments."""
    if len(segments) < 3 or segments[0] != "api" or segments[1] not in PLURALS:
        return None
    kind, parts = PLURALS[segments[1]], segments[2:]
    if len(parts) == 2 and parts[1] in REPO_ROUTES:
        return kind, None, parts[0], REPO_ROUTES, parts[1], []
    if len(parts) == 1 or (
        len(parts) > 2 and parts[2] not in REPO_ROUTES and parts[1] in REPO_ROUTES
    ):
        return kind, None, parts[0], REPO_ROUTES, parts[1] if len(parts) > 1 else "", parts[2:]
    return kind, parts[0], parts[1], REPO_ROUTES, parts[2] if len(parts) > 2 else "", parts[3:]


def _unprefixed(segments: list[str]) -> tuple[str, list[str]]:
    if segments[0] in PLURALS and segments[0] != "models":
        return PLURALS[segments[0]], segments[1:]
    return "model", segments


def _git_target(segments: list[str]) -> Target | None:
    """/{prefix}{id}.git/info/lfs/…"""
    kind, parts = _unprefixed(segments)
    if len(parts) < 5 or not parts[1].endswith(".git") or parts[2:4] != ["info", "lfs"]:
        return None
    verb, tail = parts[4], parts[5:]
    if parts[4:] == ["objects", "batch"]:
        verb = "batch"
    if (verb in ("objects", "complete") and len(tail) != 1) or (verb == "parts" and len(tail) != 2):
        return None
    return kind, parts[0], parts[1].removesuffix(".git"), LFS_ROUTES, verb, tail


def _file_target(segments: list[str]) -> Target | None:
    """/{prefix}{id}/resolve/{rev}/{path}"""
    kind, parts = _unprefixed(segments)
    if len(parts) > 2 and parts[2] in FILE_ROUTES:
        return kind, parts[0], parts[1], FILE_ROUTES, parts[2], parts[3:]
    if len(parts) > 2 and parts[1] in ("resolve", "raw"):
        return kind, None, parts[0], FILE_ROUTES, parts[1], parts[2:]
    return None


async def _run(
    call: Call, handler: Handler, limit: asyncio.Semaphore, inner: Any = None
) -> Response:
    """Coroutines read the body themselves; plain functions get it read, and run in a thread."""
    if inspect.iscoroutinefunction(inner or handler):
        result = handler(call)
        assert inspect.isawaitable(result)
        return await result
    if call.method not in ("GET", "HEAD"):
        await call.read_body()
    large = len(call.body) > LARGE_BODY_BYTES
    async with limit if large else contextlib.nullcontext():
        response = await run_in_threadpool(handler, call)
    assert isinstance(response, Response)
    return response


class _Body:
    """A request's body on its way in, and whether all of it came."""

    def __init__(self, receive: Receive, stall_timeout_s: float) -> None:
        self._receive = receive
        self._stall_timeout_s = stall_timeout_s
        self._complete = False

    async def receive(self) -> Message:
        """The next piece. Raises `Refusal` 408 when none comes for too long."""
        if self._complete:
            return await self._receive()  # waits for the client to hang up
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                message = await self._receive()
        except TimeoutError:
            self._complete = True
            raise Refusal(408, "The body of this request stalled; send it again.") from None
        self._complete = message["type"] != "http.request" or not message.get("more_body")
        return message

    async def drain(self) -> None:
        """Read a little of what the client is still sending, so that it gets to see our refusal."""
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not self._complete and size < DRAIN_BYTES:
                    size += len((await self.receive()).get("body", b""))
