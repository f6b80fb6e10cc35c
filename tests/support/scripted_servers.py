"""The scripted servers that stand for how real ones behave, where this machine has them."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.paths import SHARED_DATA
from support.waiting import until

FOLDER = Path(os.environ.get("HUBKIT_TEST_SERVERS", SHARED_DATA / "servers"))


@dataclass
class ScriptedServers:
    """One process that behaves in many ways, each at a path of its own."""

    url: str
    ledger_folder: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def at(self, behaviour: str) -> str:
        """The address of a fresh server with this behaviour."""
        return f"{self.url}/{behaviour}~{next(self._numbers)}"

    def requests(self, address: str) -> list[dict[str, Any]]:
        """What was asked there: n, auth, path and body of each request, in order."""
        path = self.ledger_folder / f"{address.rpartition('/')[2]}.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@contextmanager
def scripted_servers(folder: Path) -> Iterator[ScriptedServers]:
    """Start them on loopback; skips where they are absent."""
    if not (FOLDER / "server.py").exists():
        pytest.skip(f"no scripted servers in {FOLDER}; name their folder in HUBKIT_TEST_SERVERS")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, str(FOLDER / "server.py"), str(port), str(folder)])

    def answers() -> bool:
        assert process.poll() is None, "the scripted servers did not start"
        try:
            return urllib.request.urlopen(f"{url}/ok/health", timeout=5).status == 200
        except OSError:
            return False

    try:
        until(answers)
        yield ScriptedServers(url, folder)
    finally:
        process.kill()
        process.wait()
