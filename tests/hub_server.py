"""One embedded Hub for a test: a real process, reached only by its address."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class HubServer:
    """`python -m hubkit.local_hub` on a folder of its own. `start` waits until it answers."""

    root: Path
    options: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> HubServer:
        command = [sys.executable, "-m", "hubkit.local_hub", "--root", str(self.root), "--port", str(self.port)]
        self.root.mkdir(parents=True, exist_ok=True)
        log = (self.root / "server.log").open("ab")
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log, env=env)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._answers():
                return self
            time.sleep(0.02)
        raise RuntimeError((self.root / "server.log").read_text()[-2000:])

    def _answers(self) -> bool:
        try:
            if self.info["pid"] != self.process.pid:
                return False
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer:
                return answer.status == 200
        except (OSError, ValueError):
            return False

    @property
    def info(self) -> dict[str, Any]:
        return json.loads((self.root / "server.json").read_text())

    @property
    def url(self) -> str:
        return self.info["url"]

    @property
    def token(self) -> str:
        return (self.root / "token").read_text()

    def stop(self, how: int = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(timeout=30)
        self.process = None
        return code

    def api(self, token: str | bool | None = None) -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.url, token=self.token if token is None else token)

    def rss_mib(self) -> float:
        """Peak resident memory of the server so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def run_client(server: HubServer, code: str, home: Path, **env: str) -> str:
    """Run Python code in a process of its own, as somebody who only set HF_ENDPOINT. Returns what it printed."""
    base = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
    base |= {"HF_ENDPOINT": server.url, "HF_TOKEN": server.token, "HF_HOME": str(home / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**base, **env}, cwd=home, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
