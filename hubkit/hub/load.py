"""`load_dataset` by bare name: stock `datasets`, pointed at the configured Hub during the call.

No server can make a bare name work with the stock function (its client insists on
``namespace/name``), and `datasets` fixes its endpoint when it is imported; both are changed here,
for this call only."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hubkit import extras
from hubkit.hub.network import adapt_clients

_SWAP = threading.RLock()


def load_dataset(path: str, name: str | None = None, **kwargs: Any) -> Any:
    """`datasets.load_dataset` from the configured Hub; `path` is ``namespace/name``, or a bare
    ``name`` in the configured namespace.

    Takes everything that `datasets.load_dataset` takes (``split``, ``revision``, ``streaming``, …)
    and returns what it returns: a DatasetDict, or with ``split`` a Dataset, or with ``streaming``
    their iterable kinds. Raises `HubError` when the Hub cannot be reached and what `datasets`
    raises otherwise; `MissingDependencyError` where `datasets` is not installed."""
    extras.require("datasets", "load_dataset")
    import datasets

    from hubkit.hub.client import connect

    adapt_clients()
    hub = connect()
    options = {"hf": {"endpoint": hub.url, "token": hub.token or False}}
    download = kwargs.pop("download_config", None) or datasets.DownloadConfig()
    download.storage_options = {**download.storage_options, **options}
    kwargs.setdefault("token", hub.token or False)
    if hub.embedded:
        from hubkit.hub.places import cache

        kwargs.setdefault("cache_dir", str(cache("datasets")))
    with _endpoint(hub.url):
        return datasets.load_dataset(hub.qualify(path), name, download_config=download, **kwargs)


@contextmanager
def _endpoint(url: str) -> Iterator[None]:
    """Point `datasets` at `url`. One thread at a time, because the setting is the module's."""
    from datasets import config

    with _SWAP:
        endpoint, offline = config.HF_ENDPOINT, config.HF_HUB_OFFLINE
        config.HF_ENDPOINT = url
        config.HF_HUB_OFFLINE = False  # the Hub's client refuses the internet, and only that
        try:
            yield
        finally:
            config.HF_ENDPOINT, config.HF_HUB_OFFLINE = endpoint, offline
