"""Where an endpoint answers: its routes, and the proxy through which it is reached.

An address is used as given when it names a version or a route (``/v1beta/openai/``,
``/api/paas/v4/``, ``…/chat/completions?api-version=…``); a bare server gets ``/v1``. Proxy
variables of the environment never govern loopback."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit, urlunsplit

from hubkit.errors import MissingDependencyError, RecipeError
from hubkit.loopback import on_loopback

CHAT, COMPLETIONS = "/chat/completions", "/completions"
_ROUTES = (CHAT, COMPLETIONS, "/generate")
_VERSION = re.compile(r"/v\d+[a-z0-9]*(/openai)?$")


@dataclass(frozen=True, slots=True)
class Address:
    """One server's routes.

    Attributes:
        url: Names the server in rows and messages: without query, route and ``/v1``.
        root: The server without the path of its API: where ``/health`` and ``/tokenize`` are.
        api: What the routes of OpenAI's API are appended to.
        query: Query string of every request to the API, such as ``api-version=2024-10-21``.
    """

    url: str
    root: str
    api: str
    query: str = ""

    def route(self, path: str) -> str:
        """The URL of one of OpenAI's routes, such as ``/chat/completions``."""
        return f"{self.api}{path}" + (f"?{self.query}" if self.query else "")


def parse_address(text: str) -> Address:
    """Read an address as people paste it.

    Raises:
        RecipeError: It is no http(s) URL, or it holds a user name or a password.
    """
    try:
        parts = urlsplit(text.strip())
        _ = parts.port
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(
            f"endpoint {text.rpartition('@')[2]!r} is not an http(s) URL, such as "
            "http://127.0.0.1:8080"
        )
    check_no_credentials(text)
    path = parts.path.rstrip("/")
    route = next((route for route in _ROUTES if path.endswith(route)), "")
    base = path.removesuffix(route).rstrip("/")
    version = _VERSION.search(base)
    is_complete = version or "api-version" in parts.query or route in (CHAT, COMPLETIONS)
    api = base if is_complete else base + "/v1"
    root = base[: version.start()] if version else base

    def url(part: str) -> str:
        return urlunsplit((parts.scheme, parts.netloc, part, "", ""))

    return Address(url(base.removesuffix("/v1")), url(root), url(api), parts.query)


def check_no_credentials(text: str) -> None:
    """Raise `RecipeError` for a URL with ``user:password@``: it would be written into commits."""
    parts = urlsplit(text)
    if "@" in parts.netloc:
        host = parts.netloc.rpartition("@")[2]
        raise RecipeError(
            f"the address of {host} holds a user name or a password, which would be committed; "
            "leave it out and name an environment variable that holds the header instead, "
            "for example headers: {Authorization: $MY_HEADER}"
        )


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for `url`; None for loopback and without one.

    Raises:
        MissingDependencyError: The environment names a SOCKS proxy.
    """
    if on_loopback(url):
        return None
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    if proxy.lower().startswith("socks"):
        raise MissingDependencyError(
            f"the environment names a SOCKS proxy for {parts.hostname}, which hubkit cannot use; "
            f"name an http proxy in {parts.scheme.upper()}_PROXY, or list the host in NO_PROXY"
        )
    return proxy if "://" in proxy else f"http://{proxy}"
