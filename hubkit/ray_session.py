"""Ray, connected, for whoever spreads work over a cluster: the one place that begins one, and ends
what it began.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubkit import extras
from hubkit.untrusted import JsonObject


@contextmanager
def connected() -> Iterator[Any]:
    """Ray over the cluster that RAY_ADDRESS names, or that runs here, or one begun for as long as
    the context lasts.

    Workers of a cluster that ran already import this very hubkit, whatever is installed there; its
    dependencies have to be there. A cluster that had to be begun listens on this machine alone.
    Raises `MissingDependencyError` without Ray."""
    extras.require("ray", "`on: ray`")
    import ray

    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address="auto", runtime_env=own_code(), **quiet)
    except ConnectionError:
        ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


def own_code() -> JsonObject:
    """The runtime environment that gives Ray's workers this package, byte for byte."""
    return {
        "py_modules": [str(Path(__file__).resolve().parent)],
        "excludes": ["__pycache__", "*.pyc"],
    }
