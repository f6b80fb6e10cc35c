"""How Hub clients of this process reach the network: loopback directly, the internet as the
environment says, and a gateway's passing fault once more.

Proxy variables never govern loopback, so the embedded Hub is found behind any proxy.
``HF_HUB_OFFLINE=1`` turns the internet off, not the embedded Hub. A read that a gateway answers
with 502, 503 or 504 is sent again: by every call of `huggingface_hub`, polls of jobs and
endpoints included."""

from __future__ import annotations

import functools
import ipaddress
import os
import random
import time
import urllib.request
from typing import TYPE_CHECKING, Any

from hubkit.errors import MissingDependencyError

if TYPE_CHECKING:
    import httpx2

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PASSING = frozenset({502, 503, 504})
_ATTEMPTS = 4
_FIRST_WAIT_S = 0.5
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs of this machine, whatever proxies the environment names."""


def exempt_loopback() -> None:
    """Let no proxy govern loopback, in this process and in those that it starts."""
    if not {"http", "https", "all"} & urllib.request.getproxies_environment().keys():
        return
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host.strip()]
        missing = [host for host in LOOPBACK if host not in hosts]
        if missing and "*" not in hosts:
            os.environ[name] = ",".join([*hosts, *missing])


@functools.cache
def adapt_clients() -> None:
    """Give `huggingface_hub` clients that follow this module; once for the process."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    exempt_loopback()
    is_offline = bool(constants.HF_HUB_OFFLINE)
    constants.HF_HUB_OFFLINE = False  # the hook below takes its place

    def request_hook(request: httpx2.Request) -> None:
        if not _is_loopback(request.url.host):
            if is_offline:
                raise huggingface_hub.errors.OfflineModeIsEnabled(
                    f"{request.url.host} is not asked: HF_HUB_OFFLINE is set"
                )
            if socks := _socks_without_package():
                raise MissingDependencyError(
                    f"the environment names the SOCKS proxy {socks}, which needs a package that is "
                    "not installed: pip install 'httpx2[socks]', or name an http proxy"
                )
        _http.hf_request_event_hook(request)

    huggingface_hub.set_client_factory(lambda: _client(request_hook))


def _client(request_hook: Any) -> httpx2.Client:
    import httpx2

    class RetryingClient(httpx2.Client):
        """A client that sends a read again which a gateway failed."""

        def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            for attempt in range(_ATTEMPTS):
                response = super().send(request, **options)
                reads = request.method in ("GET", "HEAD")
                if not reads or response.status_code not in _PASSING or attempt == _ATTEMPTS - 1:
                    break
                response.close()
                time.sleep(_FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0))
            return response

    return RetryingClient(
        event_hooks={"request": [request_hook]},
        follow_redirects=True,
        timeout=None,
        trust_env=_socks_without_package() is None,
    )


def _socks_without_package() -> str | None:
    """The scheme of a SOCKS proxy that the environment names and that cannot be used; else None."""
    import importlib.util

    proxies = urllib.request.getproxies_environment()
    for scheme in ("http", "https", "all"):
        kind = proxies.get(scheme, "").partition("://")[0].lower()
        if kind.startswith("socks") and importlib.util.find_spec("socksio") is None:
            return f"{kind}://"
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
