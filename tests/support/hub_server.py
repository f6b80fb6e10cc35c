"""One embedded Hub for a test: a real process, reached only by its address."""

from __future__ import annotations

import hashlib
import http.client
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

import httpx

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class HubServer:
    """`python -m hubkit.local_hub` on a folder of its own. `start` waits until it answers."""

    root: Path
    options: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> HubServer:
        command = [
            sys.executable,
            "-m",
            "hubkit.local_hub",
            "--root",
            str(self.root),
            "--port",
            str(self.port),
        ]
        self.root.mkdir(parents=True, exist_ok=True)
        log = (self.root / "server.log").open("ab")
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log, env=env)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._answers():
                return self
            time.sleep(0.02)
        raise RuntimeError((self.root / "server.log").read_text()[-2000:])

    def _answers(self) -> bool:
        try:
            if self.info["pid"] != self.process.pid:
                return False
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=10) as answer:
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
        code = self.process.wait(timeout=240)
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
    """Run Python code in a process of its own, as somebody who only set HF_ENDPOINT. Returns what
    it printed.
    """
    base = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))
    }
    base |= {"HF_ENDPOINT": server.url, "HF_TOKEN": server.token, "HF_HOME": str(home / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**base, **env},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def upkeep(server: HubServer, action: str, *options: str) -> tuple[int, dict[str, Any]]:
    command = [
        sys.executable,
        "-m",
        "hubkit.local_hub",
        action,
        "--root",
        str(server.root),
        "--json",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    return done.returncode, json.loads(done.stdout)


def fsck(folder: Path) -> None:
    done = subprocess.run(
        ["git", "fsck", "--full"], cwd=folder, capture_output=True, text=True, timeout=240
    )
    said = [
        line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("dangling")
    ]
    assert (done.returncode, said) == (0, []), folder


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)


def send(
    server: HubServer,
    method: str,
    path: str,
    body: Any = None,
    token: str | None = "owner",
    **headers: str,
) -> Answer:
    """One raw request: the path goes out as written."""
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=240)
    if token == "owner":
        token = server.token
    if token:
        headers.setdefault("Authorization", f"Bearer {token}")
    if isinstance(body, dict):
        body = json.dumps(body).encode()
        headers.setdefault("Content-Type", "application/json")
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    try:
        return Answer(connection.getresponse())
    finally:
        connection.close()


class RawClient:
    """Just enough of a client to say what was acknowledged: one connection, no retries, no
    caches.
    """

    def __init__(self, server: HubServer) -> None:
        headers = {"Authorization": f"Bearer {server.token}"}
        self.http = httpx.Client(base_url=server.url, headers=headers, timeout=240)

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def commit(
        self,
        repo: str,
        files: dict[str, bytes],
        parent: str | None = None,
        oids: dict[str, tuple[str, int]] | None = None,
    ) -> httpx.Response:
        header = {"summary": "add " + ", ".join([*files, *(oids or {})])}
        lines: list[dict[str, Any]] = [
            {"key": "header", "value": header | ({"parentCommit": parent} if parent else {})}
        ]
        lines += [
            {"key": "file", "value": {"path": p, "content": c.decode(), "encoding": "utf-8"}}
            for p, c in files.items()
        ]
        lines += [
            {"key": "lfsFile", "value": {"path": p, "algo": "sha256", "oid": oid, "size": size}}
            for p, (oid, size) in (oids or {}).items()
        ]
        body = "\n".join(json.dumps(line) for line in lines)
        return self.http.post(f"/api/models/{repo}/commit/main", content=body)

    def upload(self, repo: str, data: bytes) -> str:
        oid = hashlib.sha256(data).hexdigest()
        body = {
            "operation": "upload",
            "transfers": ["basic"],
            "objects": [{"oid": oid, "size": len(data)}],
        }
        answer = (
            self.post(f"/{repo}.git/info/lfs/objects/batch", body)
            .raise_for_status()
            .json()["objects"][0]
        )
        if "actions" in answer:
            self.http.put(answer["actions"]["upload"]["href"], content=data).raise_for_status()
        return oid
