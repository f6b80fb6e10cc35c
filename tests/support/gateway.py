"""A gateway in front of a Hub that fails by script, or, with nothing behind it, a scripted Hub."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

LOST = "lost"  # what is behind does it, and its answer is lost: 502
DROP = "drop"  # the connection is closed without a word
Action = int | str | dict[str, Any] | list[Any] | bytes


@dataclass
class Gateway:
    """`script` holds (pattern of ``METHOD /path``, what to do): the first that fits is done, and
    done once unless it is the last of its pattern and an answer.
    """

    url: str = ""
    script: list[tuple[str, Action]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def action(self, request: str) -> Action | None:
        """What is to be done with this request; None: pass it on."""
        fits = [
            number for number, (pattern, _) in enumerate(self.script) if re.search(pattern, request)
        ]
        if not fits:
            return None
        _, action = self.script[fits[0]]
        if len(fits) > 1 or isinstance(action, int | str):
            del self.script[fits[0]]
        return action

    def count(self, pattern: str) -> int:
        """How many requests there were that fit."""
        return sum(bool(re.search(pattern, request)) for request in self.asked)


@contextmanager
def gateway(behind: str = "") -> Iterator[Gateway]:
    """A gateway in front of the Hub at `behind`; without one, what is not scripted is 404."""
    running = Gateway()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = f"{self.command} {self.path}"
            running.asked.append(request)
            action = running.action(request)
            if action == DROP:
                self.close_connection = True
                return
            if action == LOST:
                self.behind(body)
                action = 502
            if action is None:
                self.reply(*(self.behind(body) if behind else (404, "text/plain", b"not here", {})))
            elif isinstance(action, int):
                self.reply(action, "text/html", b"<title>Bad gateway</title>", {})
            elif isinstance(action, bytes):
                self.reply(200, "text/event-stream", action, {})
            else:
                self.reply(200, "application/json", json.dumps(action).encode(), {})

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer

        def behind(self, body: bytes) -> tuple[int, str, bytes, dict[str, str]]:
            connection = http.client.HTTPConnection(urlsplit(behind).netloc, timeout=240)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            raw = answer.read()
            connection.close()
            kept = ("content-type", "content-length", "transfer-encoding", "connection")
            more = {k: v for k, v in answer.getheaders() if k.lower() not in kept}
            if self.command == "HEAD":
                more["Content-Length"] = answer.getheader("Content-Length", "0")
            return answer.status, answer.getheader("Content-Type") or "", raw, more

        def reply(self, status: int, kind: str, body: bytes, more: dict[str, str]) -> None:
            self.send_response(status)
            if kind:
                self.send_header("Content-Type", kind)
            for name, value in more.items():
                self.send_header(name, value)
            if "Content-Length" not in more:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Not a word."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    running.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
