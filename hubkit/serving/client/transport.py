"""One HTTP request to one address: sends a body, gives a `Reply`, or raises `EndpointError` with
the status.

Knows nothing of retries; that is `endpoint.py`'s. aiohttp, because it was the fastest client
measured by a factor of two. Redirects are not followed (they would carry the token elsewhere), and
an answer larger than `LARGEST_ANSWER` is refused."""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from hubkit.errors import EndpointError, EndpointUnreachableError, RecipeError

if TYPE_CHECKING:
    import aiohttp

LARGEST_ANSWER = 32 << 20  # bytes


def on_loopback(url: str) -> bool:
    """Whether `url` is this machine alone: no proxy and no other machine gets there."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def base_url(address: str) -> str:
    """`address` without a trailing ``/v1`` or route, as people paste them. Raises `RecipeError` for
    no http(s) URL.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(
            f"endpoint {address!r} is not an http(s) URL, such as http://127.0.0.1:8080"
        )
    base = address.rstrip("/")
    for tail in ("/chat/completions", "/generate", "/v1"):
        base = base.removesuffix(tail)
    return base.rstrip("/")


class HttpClient:
    """A pool of connections to the addresses of one endpoint. `token` goes into a header, and
    nowhere else.
    """

    def __init__(
        self, *, token: str | None = None, timeout_s: float = 300.0, connect_timeout_s: float = 10.0
    ) -> None:
        self._headers = {"Content-Type": "application/json", "User-Agent": "hubkit"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    def _session(self, url: str) -> aiohttp.ClientSession:
        import aiohttp

        remote = not on_loopback(url)
        if remote not in self._sessions:
            self._sessions[remote] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
                timeout=aiohttp.ClientTimeout(
                    total=self._timeout_s, sock_connect=self._connect_timeout_s
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                trust_env=remote,  # proxies from the environment, but never for loopback
            )
        return self._sessions[remote]

    async def post(self, url: str, body: dict[str, Any]) -> tuple[Any, float, Mapping[str, str]]:
        """POST `body` as JSON; gives (answer, seconds, headers).

        Raises `EndpointError` for any status but 200, with `status` and, where the server says so,
        `retry_after_s`; `EndpointUnreachableError` when there was no answer (refused, dropped,
        timed out)."""
        started = time.monotonic()
        status, headers, raw = await self._exchange("POST", url, orjson.dumps(body))
        seconds = time.monotonic() - started
        if status != 200:
            words = explain(raw)
            if 300 <= status < 400:
                words = f"it redirects to {headers.get('location', 'nowhere')}; give that address, if you trust it"
            raise EndpointError(
                f"{url} answered {status}: {words}",
                status=status,
                retry_after_s=_retry_after(headers),
            )
        try:
            return orjson.loads(raw), seconds, headers
        except orjson.JSONDecodeError:
            raise EndpointError(
                f"{url} answered 200 with something that is not JSON", status=200
            ) from None

    async def get(self, url: str) -> tuple[int, Any]:
        """GET `url`; gives (status, decoded JSON or None). Raises `EndpointUnreachableError`
        without an answer.
        """
        status, _, raw = await self._exchange("GET", url, None)
        try:
            return status, orjson.loads(raw)
        except orjson.JSONDecodeError:
            return status, None

    async def _exchange(
        self, method: str, url: str, data: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        import aiohttp

        try:
            async with self._session(url).request(
                method, url, data=data, allow_redirects=False
            ) as response:
                raw = await _body(response)
                if raw is None:
                    raise EndpointError(
                        f"{url} answers with more than {LARGEST_ANSWER} bytes: no completion; check the address",
                        status=200,
                    )
                return response.status, response.headers, raw
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            if isinstance(error, EndpointError):
                raise
            raise _unreachable(url, error, self._timeout_s) from None

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()


async def _body(response: aiohttp.ClientResponse) -> bytes | None:
    """All of an answer, or None when it is larger than `LARGEST_ANSWER`: not every server says so
    in front.
    """
    if (response.content_length or 0) > LARGEST_ANSWER:
        return None
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > LARGEST_ANSWER:
            return None
        parts.append(part)
    return b"".join(parts)


class RefusedConnectionError(EndpointUnreachableError):
    """Nothing listens at the address, or its host has no address."""


class RequestTimeoutError(EndpointUnreachableError, TimeoutError):
    """The address took the request and did not answer in time."""


def _unreachable(url: str, error: BaseException, timeout_s: float) -> EndpointUnreachableError:
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorError):
        return RefusedConnectionError(
            f"{url} cannot be reached ({error.os_error}); is it running, is the URL right?"
        )
    if isinstance(error, asyncio.TimeoutError):
        return RequestTimeoutError(
            f"{url} did not answer within {timeout_s:g} s; raise request_timeout_s if it is slow"
        )
    return EndpointUnreachableError(f"{url} dropped the connection ({type(error).__name__})")


def explain(raw: bytes) -> str:
    """The server's own words for an error, in one short line, whichever of the usual JSON shapes it
    uses.
    """
    try:
        answer = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return " ".join(raw[:200].decode("utf-8", "replace").split()) or "no further words"
    for _ in range(3):
        if isinstance(answer, dict):
            answer = next(
                (answer[key] for key in ("error", "message", "detail") if answer.get(key)),
                str(answer),
            )
    return " ".join(str(answer).split())[:300]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for: a number or an HTTP date; None without or with
    nonsense.
    """
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), 3600.0) if seconds == seconds else None
