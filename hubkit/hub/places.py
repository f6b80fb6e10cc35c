"""Where hubkit's files are, and which Hub is configured."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hubkit.errors import HubError
from hubkit.loopback import host_of
from hubkit.settings import HOME, HUB, HUB_RELAYS, NAMESPACE, UPSTREAM, value

LOCAL = "local"
DEFAULT_UPSTREAM = "https://huggingface.co"


def home() -> Path:
    """``$HUBKIT_HOME``, else ``$XDG_DATA_HOME/hubkit``, else ``~/.local/share/hubkit``. Not created
    here.
    """
    if chosen := value(HOME):
        return Path(chosen).expanduser().resolve()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "hubkit"


def local_root() -> Path:
    """The embedded Hub's folder: repositories, large files, settings, its log."""
    return home() / "hub"


def cache(kind: str) -> Path:
    """A folder for what can be made again: ``hub`` and ``datasets`` downloads, ``engine`` files,
    ``pictures``, ``wheels``.
    """
    return _private("cache") / kind


def runs() -> Path:
    """Where unfinished work lives until it is committed: checkpoints, journals, logs."""
    return _private("runs")


def judge_replies() -> Path:
    """Where answers of judges are kept, so that each is paid for once."""
    return _private("asked")


def make_private(folder: Path) -> None:
    """Make a folder below `home`, and `home`, for this user alone. Raises `OSError`."""
    if not home().exists():
        home().mkdir(parents=True, mode=0o700)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid == os.getuid() and folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def _private(name: str) -> Path:
    """A folder of `home` that only this user can read, where it can be made."""
    folder = home() / name
    with suppress(OSError):  # who writes there says what is wrong
        make_private(folder)
    return folder


@dataclass(frozen=True, slots=True)
class Settings:
    """Which Hub: its URL (None for the embedded one, whose address is known once it runs) and our
    namespace there.
    """

    url: str | None
    namespace: str | None

    @property
    def embedded(self) -> bool:
        """True when the configured Hub is the embedded one."""
        return self.url is None


def upstream() -> str | None:
    """The Hub whose repositories the embedded one reads through: ``HUBKIT_UPSTREAM``, a URL or
    ``off``; huggingface.co by default, unless ``HF_HUB_OFFLINE`` is set. Raises `HubError`.
    """
    text = value(UPSTREAM)
    if not text:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        return None if offline else DEFAULT_UPSTREAM
    if text.lower() in ("off", "none", "0"):
        return None
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise HubError(
            "HUBKIT_UPSTREAM is not the address of a Hub: set it to 'off', or to a URL without a "
            "password such as https://huggingface.co"
        )
    return text.rstrip("/")


def relays() -> frozenset[str]:
    """The reverse proxies of the owner's own before the embedded Hub, which ``HUBKIT_HUB_RELAYS``
    names: ``host``, or ``host:port``. Raises `HubError` where one is neither.
    """
    names = [name.strip().lower() for name in value(HUB_RELAYS).split(",") if name.strip()]
    for name in names:
        if "/" in name or "@" in name or not host_of(f"//{name}"):
            raise HubError(
                f"{HUB_RELAYS} holds {name.rpartition('@')[2]!r}; it takes hosts such as "
                f"hub.example.lan or 127.0.0.1:8080, with commas between them"
            )
    return frozenset(names)


def settings() -> Settings:
    """Read ``HUBKIT_HUB`` and ``HUBKIT_NAMESPACE``. Raises `HubError` when the first is neither
    ``local`` nor a URL.
    """
    where = value(HUB, LOCAL)
    namespace = value(NAMESPACE) or None
    if where == LOCAL:
        return Settings(url=None, namespace=namespace)
    return Settings(url=hub_address(where, "HUBKIT_HUB"), namespace=namespace)


def hub_address(text: str, source: str) -> str:
    """The address of a Hub as it is written everywhere: without a trailing slash.

    Args:
        text: What a person gave.
        source: Where it was given, for messages.

    Raises:
        HubError: It is no http(s) URL, or it holds a user name or a password, which the message
            does not repeat.
    """
    try:
        parts = urlsplit(text.strip())
        host, is_url = parts.hostname, parts.scheme in ("http", "https")
        _ = parts.port
    except ValueError:
        host, is_url = None, False
    if not is_url or not host:
        raise HubError(
            f"{source} is {text.rpartition('@')[2]!r}; it should be a Hub's URL, such as "
            f"https://huggingface.co" + (", or 'local'" if source == "HUBKIT_HUB" else "")
        )
    if "@" in parts.netloc or parts.query:
        raise HubError(
            f"{source} holds a user name, a password or a query beside the address of {host}; "
            f"leave it out: the token belongs into HF_TOKEN, or log in with `hf auth login`"
        )
    return text.strip().rstrip("/")
