"""A Space's app as a process of its own, from a folder of its files: what anybody does who has
downloaded one.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from support.waiting import until


def start(stack: contextlib.ExitStack, folder: Path, env: Mapping[str, str]) -> str:
    """Run ``app.py`` of `folder` under `env`; `stack` stops it. Its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {**env, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, stdout=log, stderr=log, env=told
        )
    stack.callback(_stop, process)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        said = (folder / "log.txt").read_text()[-3000:]
        assert process.poll() is None, f"the Space did not start:\n{said}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return True
        return False

    until(answers)
    return url


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
