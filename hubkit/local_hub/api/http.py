"""Requests and refusals: what every handler takes and how it says no."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubkit.errors import HubError

if TYPE_CHECKING:
    from hubkit.local_hub.storage.accounts import Identity
    from hubkit.local_hub.storage.repos import Repo
    from hubkit.local_hub.storage.state import Hub

MAX_BODY_BYTES = 16 * 2**20
"""Largest body of a request that is read into memory at once (commits and large files are
streamed).
"""

T = TypeVar("T")


class Refusal(HubError):
    """A request is answered with an error status. `code` is the word that clients decide on
    (X-Error-Code).
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, status=status)
        self.http_status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def response(self) -> Response:
        """The error as clients expect it: JSON `error`, and the same sentence as a header."""
        headers = {"X-Error-Message": header_safe(self.message), **self.headers}
        if self.code:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message, **self.extra}, self.http_status, headers)


def header_safe(text: str) -> str:
    """Text as it may stand in a header: one line of printable latin-1, at most 400 characters, no
    space at its ends.
    """
    return "".join(c if " " <= c <= "~" or "\xa0" <= c <= "\xff" else "?" for c in text)[
        :400
    ].strip()


class Call:
    """One request on its way through the server: who asks, for what, with which body."""

    def __init__(
        self, hub: Hub, request: Request, who: Identity | None, segments: list[str]
    ) -> None:
        self.hub = hub
        self.request = request
        self.who = who
        self.segments = segments
        self.body = b""

    @property
    def method(self) -> str:
        """The HTTP method, in capitals."""
        return self.request.method

    @property
    def base_url(self) -> str:
        """The address under which the client reached us, without a trailing slash."""
        return str(self.request.base_url).rstrip("/")

    def require_write(self, repo: Repo) -> None:
        """Raises `Refusal` 401 or 403 unless the caller may change this repository."""
        from hubkit.local_hub.storage.accounts import require_writer

        require_writer(self, repo.namespace)

    async def read_body(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """Read the whole body. Raises `Refusal` 413 beyond `limit` bytes."""
        chunks, size = [], 0
        async for chunk in self.request.stream():
            size += len(chunk)
            if size > limit:
                raise Refusal(413, f"The body of this request is larger than {limit} bytes.")
            chunks.append(chunk)
        self.body = b"".join(chunks)
        return self.body

    def json(self) -> dict[str, Any]:
        """The body as a JSON object (empty body: empty object). Raises `Refusal` 400 for anything
        else.
        """
        if not self.body:
            return {}
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            raise Refusal(400, "The body is not valid JSON.") from None
        if not isinstance(value, dict):
            raise Refusal(400, "The body must be a JSON object.")
        return value

    def query(self, name: str, default: str | None = None) -> str | None:
        """One value of the query string."""
        return self.request.query_params.get(name, default)

    def flag(self, name: str) -> bool:
        """Whether a switch of the query string is on (`1`, `true`, `True`)."""
        return (self.query(name) or "").lower() in ("1", "true")

    def number(self, name: str, default: int, largest: int) -> int:
        """A whole number of the query string, between 1 and `largest`."""
        text = self.query(name)
        if text is None:
            return default
        if not text.isdecimal() or len(text) > 12:
            raise Refusal(400, f"{name!r} must be a whole number.")
        return max(1, min(int(text), largest))


def field(values: Mapping[str, Any], name: str, kind: type[T], default: T | None = None) -> T:
    """A value of a JSON object, checked against its type. Raises `Refusal` 400 where missing or of
    another type.
    """
    value = values.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refusal(400, f"{name!r} must be a {kind.__name__}.")
    return value


def page(
    call: Call, items: list[T], size: int, show: Callable[[list[T]], Any] | None = None
) -> Response:
    """One page of a list, described by `show`; the address of the next page stands in `Link` (an
    offset as cursor).
    """
    text = call.query("cursor") or "0"
    start = int(text) if text.isdecimal() and len(text) < 12 else 0
    headers = {}
    if start + size < len(items):
        pairs = [(k, v) for k, v in call.request.query_params.multi_items() if k != "cursor"]
        target = f"{call.base_url}{raw_path(call.request)}?{urlencode([*pairs, ('cursor', str(start + size))])}"
        headers["Link"] = f'<{target}>; rel="next"'
    shown = items[start : start + size]
    return JSONResponse(show(shown) if show else shown, headers=headers)


def raw_path(request: Request) -> str:
    """The path as it was sent, still percent-encoded."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    return raw.decode("latin-1")
