"""One HTTP request to one address: sends a body, gives the decoded answer, or raises
`EndpointError`.

Knows nothing of retries; those are in `endpoint`. aiohttp, because it was the fastest client
measured by a factor of two. Redirects are not followed (they would carry the key elsewhere),
``.netrc`` is not read, and an answer larger than `LARGEST_ANSWER` is refused."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from hubkit.errors import EndpointError, EndpointUnreachableError, HubUnreachableError
from hubkit.hub import proof
from hubkit.serving.client.address import proxy_of
from hubkit.serving.client.refusals import error_inside, refusal
from hubkit.serving.client.replies import decode

if TYPE_CHECKING:
    import aiohttp

LARGEST_ANSWER = 32 << 20  # bytes


class HttpClient:
    """A pool of connections to the addresses of one endpoint.

    Args:
        token: Sent as a bearer token, and kept nowhere else.
        headers: More headers; one named Authorization replaces the token.
        timeout_s: Longest wait for one answer.
        connect_timeout_s: Longest wait for a connection.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 300.0,
        connect_timeout_s: float = 10.0,
    ) -> None:
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": "hubkit",
            "Accept-Encoding": "gzip, deflate",
        }
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._headers.update(headers or {})
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._open_session: aiohttp.ClientSession | None = None
        self._proxies: dict[str, str | None] = {}

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._open_session is None:
            import aiohttp

            self._open_session = aiohttp.ClientSession(
                connector=proof.connector(
                    self._headers.get("Authorization", ""), limit=0, ttl_dns_cache=60
                ),
                timeout=aiohttp.ClientTimeout(
                    total=self._timeout_s, sock_connect=self._connect_timeout_s
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                auto_decompress=False,
                trust_env=False,
            )
        return self._open_session

    async def post(
        self, url: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> tuple[Any, float, Mapping[str, str]]:
        """POST `body` as JSON.

        Returns:
            The decoded answer, the seconds that it took, and its headers.

        Raises:
            EndpointError: The answer is a refusal, by its status or by its body.
            EndpointUnreachableError: There was no answer (refused, dropped, timed out).
        """
        return await self.call("POST", url, orjson.dumps(body), headers)

    async def call(
        self,
        method: str,
        url: str,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[Any, float, Mapping[str, str]]:
        """Send `data` with any method; else as `post`."""
        started = time.monotonic()
        status, answer_headers, raw = await self._exchange(method, url, data, headers)
        seconds = time.monotonic() - started
        if status != 200:
            raise refusal(url, status, answer_headers, raw)
        try:
            answer = decode(raw, answer_headers.get("Content-Type", ""))
        except ConnectionError as error:
            raise EndpointUnreachableError(f"{url} dropped the connection ({error})") from None
        except (ValueError, TypeError, AttributeError):
            raise EndpointError(
                f"{url} answered 200 with something that is not JSON: {_excerpt(raw)}", status=200
            ) from None
        if problem := error_inside(answer):
            raise refusal(url, problem[0], answer_headers, problem[1], inside_200=True)
        return answer, seconds, answer_headers

    async def lines(self, url: str) -> AsyncIterator[bytes]:
        """GET `url`, and give the lines of its answer as they come, however many there are.

        Raises:
            EndpointError: The answer is a refusal, or a line is longer than `LARGEST_ANSWER`.
            EndpointUnreachableError: There was no answer, or it ended early.
        """
        import aiohttp

        try:
            async with self._session.request(
                "GET", url, allow_redirects=False, proxy=proxy_of(url),
                headers={"Accept-Encoding": "identity"},
            ) as response:  # fmt: skip
                if response.status != 200:
                    raw = await _body(response, url)
                    raise refusal(url, response.status, response.headers, raw)
                partial = b""
                async for part in response.content.iter_any():
                    *whole, partial = (partial + part).split(b"\n")
                    if len(partial) > LARGEST_ANSWER:
                        raise _too_large(url)
                    for line in whole:
                        yield line
                if partial:
                    yield partial
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, EndpointError):
                raise
            raise _unreachable(url, error, self._timeout_s) from None

    async def probe(self, url: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """GET `url`, or POST `body` to it, for what a server says of itself.

        Returns:
            The status, and the decoded JSON or None.

        Raises:
            EndpointUnreachableError: There was no answer.
        """
        data = None if body is None else orjson.dumps(body)
        method = "GET" if body is None else "POST"
        status, _, raw = await self._exchange(method, url, data, None)
        try:
            return status, orjson.loads(raw)
        except orjson.JSONDecodeError:
            return status, None

    async def _exchange(
        self, method: str, url: str, data: bytes | None, headers: Mapping[str, str] | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        import aiohttp

        if url not in self._proxies:
            self._proxies[url] = proxy_of(url)
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, allow_redirects=False,
                proxy=self._proxies[url],
            ) as response:  # fmt: skip
                raw = await _body(response, url)
                return response.status, response.headers, raw
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, EndpointError):
                raise
            raise _unreachable(url, error, self._timeout_s) from None

    async def close(self) -> None:
        """Close every connection."""
        if self._open_session is not None:
            await self._open_session.close()
            self._open_session = None


async def _body(response: aiohttp.ClientResponse, url: str) -> bytes:
    """All of an answer, decompressed.

    Raises `EndpointError` when it is larger than `LARGEST_ANSWER`, announced or not."""
    encoding = response.headers.get("Content-Encoding")
    length = response.content_length
    if length is not None and length <= LARGEST_ANSWER and not encoding:
        return await response.read()
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > LARGEST_ANSWER:
            raise _too_large(url)
        parts.append(part)
    raw = b"".join(parts)
    return _decompressed(raw, encoding.strip().lower(), url) if encoding else raw


def _decompressed(raw: bytes, encoding: str, url: str) -> bytes:
    try:
        if encoding in ("gzip", "x-gzip", "deflate"):
            reader = zlib.decompressobj(47 if encoding != "deflate" else _deflate_bits(raw))
            plain = reader.decompress(raw, LARGEST_ANSWER + 1)
        elif encoding == "zstd":
            import zstandard

            plain = zstandard.ZstdDecompressor().stream_reader(raw).read(LARGEST_ANSWER + 1)
        elif encoding == "identity":
            return raw
        else:
            raise EndpointError(
                f"{url} answers in the encoding {encoding[:40]!r}, which was not asked for and "
                "cannot be read; turn it off there",
                status=200,
            )
    except (zlib.error, _zstd_error()) as error:
        raise ConnectionError(f"its {encoding} body is damaged: {error}") from None
    if len(plain) > LARGEST_ANSWER:
        raise _too_large(url)
    return plain


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


def _deflate_bits(raw: bytes) -> int:
    """zlib's window bits for ``deflate``: with the zlib header, or without as some servers send."""
    return 15 if raw[:1] == b"\x78" else -15


def _too_large(url: str) -> EndpointError:
    return EndpointError(
        f"{url} answers with more than {LARGEST_ANSWER} bytes: no completion; check the address",
        status=200,
    )


def _excerpt(raw: bytes) -> str:
    return repr(" ".join(raw[:400].decode("utf-8", "replace").split())[:160])


class RefusedConnectionError(EndpointUnreachableError):
    """Nothing listens at the address, or its host has no address."""


class RequestTimeoutError(EndpointUnreachableError, TimeoutError):
    """The address took the request and did not answer in time."""


def _unreachable(url: str, error: BaseException, timeout_s: float) -> EndpointUnreachableError:
    import aiohttp

    for cause in (error, error.__cause__):  # aiohttp puts errors of connections into its own
        if isinstance(cause, HubUnreachableError):
            return RefusedConnectionError(str(cause))
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return RefusedConnectionError(
            f"{url} cannot be reached through the proxy of the environment ({error.os_error}); "
            "check HTTPS_PROXY and NO_PROXY"
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return RefusedConnectionError(
            f"the proxy of the environment answered {error.status} for {url}: {error.message}"
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return RefusedConnectionError(
            f"{url} cannot be reached ({error.os_error}); is it running, is the URL right?"
        )
    if isinstance(error, asyncio.TimeoutError):
        return RequestTimeoutError(
            f"{url} did not answer within {timeout_s:g} s; raise request_timeout_s if it is slow"
        )
    return EndpointUnreachableError(f"{url} dropped the connection ({type(error).__name__})")
