"""Which hosts are this machine: asked wherever a token, a proxy, a price or a web page depends on
it; and how long a server of this machine may take."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

ADDRESS = "127.0.0.1"
"""Where everything that hubkit starts listens."""
NAMES = (ADDRESS, "localhost", "::1")
"""Hosts by which everything that listens on this machine may be called."""
ANSWER_TIMEOUT_S = 60
"""How long clients wait for the embedded Hub: it may share its cores with a training."""
CLIENT_TIMEOUTS = {
    "HF_HUB_ETAG_TIMEOUT": str(ANSWER_TIMEOUT_S),
    "HF_HUB_DOWNLOAD_TIMEOUT": str(ANSWER_TIMEOUT_S),
}
"""Variables that give stock clients the same; their default is ten seconds."""


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address without its port, is this machine alone."""
    address = _address(host)
    if address is None:
        name = host.rstrip(".").lower()
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback


def on_loopback(url: str) -> bool:
    """Whether `url` leads to this machine alone: no proxy and no other machine can reach it.

    ``0.0.0.0`` and ``::`` do too, where one connects to them. In what a client says to a server
    (``Host``, ``Origin``) they are foreign: ask `is_loopback`, or compare with `NAMES`, there.
    """
    address = _address(host_of(url))
    return is_loopback(host_of(url)) or (address is not None and address.is_unspecified)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.strip("[]").rstrip("."))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def host_of(url: str) -> str:
    """The host of a URL, or of ``//host:port``, without brackets; empty where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_among(netloc: str, names: Collection[str]) -> bool:
    """Whether `netloc`, a host with or without its port, is one of `names`: lower-case hosts, which
    stand for every port, or ``host:port``.
    """
    return netloc.lower() in names or host_of(f"//{netloc}") in names


def in_url(host: str) -> str:
    """`host` as it is written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
