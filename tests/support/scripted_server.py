"""A stand-in for an engine of another environment: a real process with a real port, whose command
line and environment are recorded. Run as ``scripted_server.py RECORD MODE … --port N …``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    record, mode, *arguments = sys.argv[1:]
    if mode == "broken":
        sys.exit("CUDA out of memory")
    runs = Path(record)
    attempt = len(list(runs.iterdir())) + 1
    port = int(arguments[arguments.index("--port") + 1])
    pids = [os.getpid()]
    if mode == "workers":  # one in this group, one in a group of its own, neither easily ended
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        for own in (False, True):
            worker = subprocess.Popen([sys.executable, "-c", code], start_new_session=own)
            pids.append(worker.pid)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report = {"arguments": arguments, "environment": dict(os.environ), "pids": pids}
    (runs / f"part{attempt}").write_text(json.dumps(report))
    (runs / f"part{attempt}").rename(runs / f"{attempt}.json")
    if mode == "taken" and attempt == 1:
        sys.exit("OSError: [Errno 98] address already in use")
    if mode == "silent":
        time.sleep(600)
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
