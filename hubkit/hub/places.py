"""Where hubkit's files are, and which Hub is configured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hubkit.errors import HubError

LOCAL = "local"


def home() -> Path:
    """``$HUBKIT_HOME``, else ``$XDG_DATA_HOME/hubkit``, else ``~/.local/share/hubkit``. Not created
    here.
    """
    if chosen := os.environ.get("HUBKIT_HOME"):
        return Path(chosen).expanduser().resolve()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "hubkit"


def local_root() -> Path:
    """The embedded Hub's folder: repositories, large files, settings, its log."""
    return home() / "hub"


def cache(kind: str) -> Path:
    """A folder for what can be made again: ``hub`` and ``datasets`` downloads, ``engine`` files,
    ``wheels``.
    """
    return home() / "cache" / kind


def runs() -> Path:
    """Where unfinished work lives until it is committed: checkpoints, journals, logs."""
    return home() / "runs"


def asked() -> Path:
    """What judges were asked about conversations and said: paid for once, whoever asks again."""
    return home() / "asked"


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


def settings() -> Settings:
    """Read ``HUBKIT_HUB`` and ``HUBKIT_NAMESPACE``. Raises `HubError` when the first is neither
    ``local`` nor a URL.
    """
    where = os.environ.get("HUBKIT_HUB", LOCAL).strip() or LOCAL
    namespace = os.environ.get("HUBKIT_NAMESPACE", "").strip() or None
    if where == LOCAL:
        return Settings(url=None, namespace=namespace)
    parts = urlsplit(where)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise HubError(
            f"HUBKIT_HUB is {where!r}; set it to 'local' or to a URL such as https://huggingface.co"
        )
    return Settings(url=where.rstrip("/"), namespace=namespace)
