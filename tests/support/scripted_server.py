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

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = {"/v1/completions": "text", "/v1/chat/completions": "message"}
        if self.path not in texts:
            self.send_response(404)
            self.end_headers()
            return
        requests = Path(sys.argv[1]).parent / "requests.jsonl"
        with requests.open("a") as file:
            file.write(json.dumps({"path": self.path, "pid": os.getpid(), "body": body}) + "\n")
        text = f"What of number {len(requests.read_text().splitlines())}?"
        message = {"text": text, "message": {"role": "assistant", "content": text}}
        choice = {"index": 0, "finish_reason": "stop", texts[self.path]: message[texts[self.path]]}
        usage = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
        answer = {"id": "1", "model": body["model"], "choices": [choice], "usage": usage}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

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
