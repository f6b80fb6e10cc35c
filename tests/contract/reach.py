"""Counts, for each test, the requests that reach the server; one JSON line a test goes to
$REACH_REPORT.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx2
import pytest

_requests: dict[str, int] = defaultdict(int)
_outcomes: dict[str, str] = {}
_notes: dict[str, str] = {}
_current = [""]
_original = httpx2.Client.send


def _send(client: httpx2.Client, request: httpx2.Request, **options: Any) -> httpx2.Response:
    if str(request.url).startswith(os.environ["HF_ENDPOINT"]):
        _requests[_current[0]] += 1
    return _original(client, request, **options)


httpx2.Client.send = _send  # type: ignore[method-assign]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    _current[0] = nodeid


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    known = _outcomes.get(report.nodeid)
    if report.failed:
        _outcomes[report.nodeid] = "failed"
        _notes[report.nodeid] = str(report.longrepr)[-300:]
    elif report.skipped:
        _outcomes[report.nodeid] = "skipped"
    elif report.when == "call" and known is None:
        _outcomes[report.nodeid] = "passed"


def pytest_sessionfinish() -> None:
    lines = [
        json.dumps(
            {
                "test": test,
                "outcome": outcome,
                "requests": _requests[test],
                "note": _notes.get(test, ""),
            }
        )
        for test, outcome in _outcomes.items()
    ]
    Path(os.environ["REACH_REPORT"]).write_text("\n".join(lines) + "\n")
