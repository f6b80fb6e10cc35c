"""Helpers that datasets' tests import from beside themselves."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest


def _requires(package: str) -> Callable[[Any], Any]:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


require_pil = _requires("PIL")
require_torchcodec = _requires("torchcodec")


def xfail_if_500_502_http_error(function: Any) -> Any:
    """Here a server error is a failure."""
    return function


def for_all_test_methods(*decorators: Callable[[Any], Any]) -> Callable[[type], type]:
    """Nothing to do: our decorators change nothing."""
    return lambda cls: cls
