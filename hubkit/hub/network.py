"""How Hub clients of this process reach the network: loopback directly, the internet as the
environment says, and a gateway's passing fault once more.

Proxy variables never govern loopback, so the embedded Hub is found behind any proxy.
``HF_HUB_OFFLINE=1`` turns the internet off, not the embedded Hub. A request that a gateway answers
with 502, 503 or 504, or drops, is sent again where doing it twice is doing it once: by every call
of `huggingface_hub`, polls of jobs and endpoints included. What must not be done twice (a commit, a
job, an endpoint) is looked for first: see `sent_once`. The embedded Hub's token
goes only over connections on which that Hub has proven itself (see `proof`)."""

from __future__ import annotations

import functools
import os
import random
import re
import time
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from hubkit.errors import MissingDependencyError
from hubkit.hub import proof
from hubkit.hub.places import settings
from hubkit.loopback import ANSWER_TIMEOUT_S, NAMES, in_url, is_loopback

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
_PASSING = frozenset({502, 503, 504})
_ATTEMPTS = 4
_FIRST_WAIT_S = 0.5
_REPEATABLE = re.compile(
    r"/(preupload/[^/]+|paths-info/[^/]+|objects/batch|repos/create|pause|resume|scale-to-zero|"
    r"cancel)$"
)
"""Paths of POST requests that change nothing the second time."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs of this machine, whatever proxies the environment names."""


def exempt_loopback() -> None:
    """Let no proxy govern loopback, in this process and in those that it starts."""
    if not {"http", "https", "all"} & urllib.request.getproxies_environment().keys():
        return
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host.strip()]
        missing = [host for host in NAMES if host not in hosts]
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
    if settings().url is None:
        constants.HF_HUB_ETAG_TIMEOUT = max(constants.HF_HUB_ETAG_TIMEOUT, ANSWER_TIMEOUT_S)
        constants.HF_HUB_DOWNLOAD_TIMEOUT = max(constants.HF_HUB_DOWNLOAD_TIMEOUT, ANSWER_TIMEOUT_S)

    def request_hook(request: httpx2.Request) -> None:
        proof.is_needed(request.headers.get("Authorization", ""), str(request.url))
        if not is_loopback(request.url.host):
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
        """A client that sends again what a gateway failed."""

        def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            attempts = _ATTEMPTS if _may_be_repeated(request) else 1
            for attempt in range(attempts):
                try:
                    response = super().send(request, **options)
                except (httpx2.ReadError, httpx2.RemoteProtocolError):
                    if attempt == attempts - 1:
                        raise
                else:
                    if response.status_code not in _PASSING or attempt == attempts - 1:
                        break
                    response.close()
                _back_off(attempt)
            return response

    carrier = proof.transport()
    return RetryingClient(
        event_hooks={"request": [request_hook]},
        follow_redirects=True,
        timeout=None,
        trust_env=_socks_without_package() is None,
        mounts={f"http://{host}": carrier for host in map(in_url, NAMES)},
    )


def _may_be_repeated(request: httpx2.Request) -> bool:
    if request.method == "POST":
        return _REPEATABLE.search(request.url.path) is not None
    return request.method in ("GET", "HEAD", "DELETE")


def _back_off(attempt: int) -> None:
    time.sleep(_FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0))


def sent_once(send: Callable[[], T], landed: Callable[[], T | None]) -> T:
    """`send`, again after a gateway's passing fault, unless `landed` finds that it was done.

    Raises what `send` raises, the last time also for a passing fault."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return send()
        except Exception as error:  # the clients' errors share no narrower class
            if not _is_passing(error):
                raise
        _back_off(attempt)
        if (result := landed()) is not None:
            return result
    return send()


def _is_passing(error: Exception) -> bool:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    return isinstance(error, httpx2.ReadError | httpx2.RemoteProtocolError)


def _socks_without_package() -> str | None:
    """The scheme of a SOCKS proxy that the environment names and that cannot be used; else None."""
    import importlib.util

    proxies = urllib.request.getproxies_environment()
    for scheme in ("http", "https", "all"):
        kind = proxies.get(scheme, "").partition("://")[0].lower()
        if kind.startswith("socks") and importlib.util.find_spec("socksio") is None:
            return f"{kind}://"
    return None
