"""Requests and refusals: what every handler takes and how it says no."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.storage.repos import Repo, may_download
from hubkit.untrusted import JsonObject, has_more_values, parse_json

if TYPE_CHECKING:
    from hubkit.local_hub.hub import Hub
    from hubkit.local_hub.storage.accounts import Identity

MAX_BODY_BYTES = 16 * 2**20
"""Largest body of a request that is read into memory at once (commits and large files are
streamed).
"""

MAX_VALUES = 500_000
"""Most values of the JSON of one request, or of one line of a commit."""

T = TypeVar("T")


class Call:
    """One request on its way through the server: who asks, for what, with which body."""

    def __init__(
        self, hub: Hub, request: Request, identity: Identity | None, segments: list[str]
    ) -> None:
        self.hub = hub
        self.request = request
        self.identity = identity
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

    def json(self) -> JsonObject:
        """The body as a JSON object (empty body: empty object). Raises `Refusal` 400 for anything
        else.
        """
        if not self.body:
            return {}
        if has_more_values(self.body, MAX_VALUES):
            raise Refusal(413, f"The body of this request holds more than {MAX_VALUES} values.")
        try:
            value = parse_json(self.body)
        except ValueError:
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
    """One page of a list, described by `show`; the `Link` header names the next page (an
    offset as cursor).
    """
    text = call.query("cursor") or "0"
    start = int(text) if text.isdecimal() and len(text) < 12 else 0
    headers = {}
    if start + size < len(items):
        headers["Link"] = next_page(call, str(start + size))
    window = items[start : start + size]
    return JSONResponse(show(window) if show else window, headers=headers)


def next_page(call: Call, cursor: str) -> str:
    """Return the `Link` header that names the next page of a list."""
    pairs = [(k, v) for k, v in call.request.query_params.multi_items() if k != "cursor"]
    query = urlencode([*pairs, ("cursor", cursor)])
    return f'<{call.base_url}{raw_path(call.request)}?{query}>; rel="next"'


def raw_path(request: Request) -> str:
    """The path as it was sent, still percent-encoded."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    return raw.decode("latin-1")


def error_response(refusal: Refusal) -> Response:
    """Return the error as clients expect it: JSON `error`, and the same sentence as a header."""
    headers = {"X-Error-Message": header_safe(refusal.message), **refusal.headers}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return JSONResponse({"error": refusal.message, **refusal.extra}, refusal.http_status, headers)


def header_safe(text: str) -> str:
    """Return text that is valid in a header: one line of latin-1, at most 400 characters, no
    space at its ends.
    """
    return "".join(c if " " <= c <= "~" or "\xa0" <= c <= "\xff" else "?" for c in text)[
        :400
    ].strip()


def require_user(call: Call) -> Identity:
    """The caller, who must have a token. Raises `Refusal` 401."""
    if call.identity is None:
        raise Refusal(401, "Invalid username or password.")
    return call.identity


def require_writer(call: Call, namespace: str) -> Identity:
    """The caller, who must have a write token for this namespace. Raises `Refusal` 401 or 403."""
    identity = require_user(call)
    if not identity.may_write:
        raise Refusal(403, "Forbidden: this token only has the read role; a write token is needed.")
    if not identity.may_write_in(namespace):
        raise Refusal(403, f"You don't have the rights to write under the namespace {namespace!r}.")
    return identity


def require_gate(call: Call, repo: Repo) -> None:
    """Gated files are for those who were let in. Raises `Refusal` 401 or 403 GatedRepo."""
    if may_download(call.hub, call.identity, repo):
        return
    message = f"Access to {repo.type} {repo.id} is restricted"
    if call.identity is None:
        raise Refusal(401, f"{message}. You must be authenticated.", "GatedRepo")
    raise Refusal(403, f"{message} and you are not in the authorized list.", "GatedRepo")
