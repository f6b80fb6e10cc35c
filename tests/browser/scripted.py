"""An endpoint that says what a test wrote down for it: OpenAI-style chat completions, streamed word
by word.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Script:
    """How the scripted endpoint behaves: what it says next, how fast, and how often it refuses
    first.
    """

    answers: list[str] = field(default_factory=list)
    word_s: float = 0.01
    refuse: list[int] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    broken_off: int = 0
    finish: str = "stop"

    def next(self) -> str:
        return (
            self.answers.pop(0)
            if self.answers
            else f"Answer number {len(self.asked)} in a few words."
        )


class Endpoint:
    """A server with OpenAI-style streamed chat completions that says what its `script` says."""

    def __init__(self) -> None:
        self.script = Script()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None: ...

            def do_POST(self) -> None:
                endpoint.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        script = self.script
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        if script.refuse:
            request.send_response(script.refuse.pop(0))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        script.asked.append(body)
        words = script.next().split(" ")
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Connection", "close")
        request.end_headers()
        try:
            for place, word in enumerate(words):
                self._send(request, {"content": word + (" " if place < len(words) - 1 else "")})
                time.sleep(script.word_s)
            self._send(request, {}, script.finish)
            request.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            script.broken_off += 1
        request.close_connection = True

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler, delta: dict[str, str], finish: str | None = None
    ) -> None:
        chunk = {
            "id": "x", "object": "chat.completion.chunk", "created": 0, "model": "tgi",
            "system_fingerprint": "x",
            "choices": [{"index": 0, "delta": {"role": "assistant", **delta},
                         "finish_reason": finish}],
        }  # fmt: skip
        request.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        request.wfile.flush()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
