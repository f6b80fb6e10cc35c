"""The address of a Space's app: a port that stays the same while the app starts, stops and
is replaced.

A connection is handed on to the app as it is. We look at its first request only: the name it was
sent to (a web page of another site must not get here under a name of its own) and, while no app is
there, whether a person or a program asks: a person sees what is going on, a program is kept waiting
until the app is up."""

from __future__ import annotations

import asyncio
import contextlib
import html
import socket
from collections.abc import Callable
from dataclasses import dataclass

from hubkit.loopback import NAMES, host_of

SESSION_COOKIE_PREFIX = b"hub_session_"  # of the Hub's own pages
_HEAD_BYTES, _HEAD_TIMEOUT_S, _BLOCK_BYTES = 64 * 2**10, 60.0, 64 * 2**10
_TICK_S = 0.1
_WAITING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">{refresh}<title>{title}</title>
<style>body{{font:1rem/1.55 system-ui,sans-serif;margin:2rem;overflow-wrap:anywhere}}</style></head>
<body><h1 style="font-size:1.2rem">{title}</h1><p role="status">{sentence}</p></body></html>
"""


@dataclass(frozen=True)
class ProxyTarget:
    """Where a connection goes: the app's port, or a sentence on why there is none, and whether
    one will come.
    """

    port: int | None
    sentence: str = ""
    coming: bool = False


class AppProxy:
    """One listening port. `find_target` is called at each connection, `note_use` for all bytes."""

    def __init__(
        self, title: str, find_target: Callable[[], ProxyTarget], note_use: Callable[[], None]
    ) -> None:
        self._title = title
        self._find_target = find_target
        self._note_use = note_use
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self, host: str, port: int) -> None:
        """Listen at `port`, or any free one where that is 0 or taken."""
        try:
            self._server = await asyncio.start_server(
                self._serve_connection, host, port, limit=_HEAD_BYTES
            )
        except OSError:
            if not port:
                raise
            self._server = await asyncio.start_server(
                self._serve_connection, host, 0, limit=_HEAD_BYTES
            )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no longer."""
        if self._server is not None:
            self._server.close()

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await self._forward(reader, writer)
        except (
            OSError,
            TimeoutError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            asyncio.CancelledError,
        ):
            pass  # either side went away, or this Hub is stopping: no client is left to tell
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        if _host(head) not in NAMES:
            writer.write(
                _response(403, "This Space answers only under 127.0.0.1 or localhost.", self._title)
            )
            return
        answer = await asyncio.to_thread(self._find_target)
        while answer.port is None and answer.coming and not _is_for_a_person(head):
            await asyncio.sleep(_TICK_S)
            answer = await asyncio.to_thread(self._find_target)
        if answer.port is None:
            writer.write(_response(503, answer.sentence, self._title, retry=answer.coming))
            await writer.drain()
            return
        inner, outer = await asyncio.open_connection(
            "127.0.0.1", answer.port, family=socket.AF_INET
        )
        outer.write(_head_for_app(head))
        outwards = asyncio.create_task(self._pump_requests(reader, outer))
        try:
            await self._pump(inner, writer)
        finally:
            outwards.cancel()
            outer.close()

    async def _pump_requests(
        self, reader: asyncio.StreamReader, outer: asyncio.StreamWriter
    ) -> None:
        """What the visitor sends; one who hangs up hangs up on the app too, which so learns that
        its answer is not read any more.
        """
        try:
            await self._pump(reader, outer)
        except OSError:
            outer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while block := await source.read(_BLOCK_BYTES):
            self._note_use()
            sink.write(block)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()


def _head_for_app(head: bytes) -> bytes:
    """The head of a request as the app gets it.

    The app must not see the Hub's session, which browsers send to every port. So that each head is
    seen here, a connection is for one request, unless it becomes a web socket."""
    start, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    upgrade = any(line.lower().startswith(b"upgrade:") for line in lines)
    result = [start]
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"cookie":
            pairs = [pair.strip() for pair in value.split(b";")]
            pairs = [pair for pair in pairs if not pair.startswith(SESSION_COOKIE_PREFIX)]
            if pairs:
                result.append(b"Cookie: " + b"; ".join(pairs))
        elif upgrade or name.strip().lower() not in (b"connection", b"keep-alive"):
            result.append(line)
    if not upgrade:
        result.append(b"Connection: close")
    return b"\r\n".join([*result, b"", b""])


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _host(head: bytes) -> str:
    return host_of(f"//{_headers(head).get('host', '')}")


def _is_for_a_person(head: bytes) -> bool:
    return head.startswith(b"GET ") and "text/html" in _headers(head).get("accept", "")


def _response(status: int, sentence: str, title: str, *, retry: bool = False) -> bytes:
    refresh = '<meta http-equiv="refresh" content="2">' if retry else ""
    page = _WAITING.format(
        refresh=refresh, title=html.escape(title), sentence=html.escape(sentence)
    ).encode()
    reason = {403: "Forbidden", 503: "Service Unavailable"}[status]
    lines = [
        f"HTTP/1.1 {status} {reason}",
        "Content-Type: text/html; charset=utf-8",
        f"Content-Length: {len(page)}",
    ]
    lines += [
        "Connection: close",
        "Cache-Control: no-store",
        *(["Retry-After: 2"] if retry else []),
    ]
    lines += ["Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'"]
    return "\r\n".join([*lines, "", ""]).encode() + page
