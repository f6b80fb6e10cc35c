"""A provider's batch API, of OpenAI's and of Anthropic's kind, with scripted outcomes: a server in
a thread, whose batches a test can read."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Outcome = str | tuple[int, str]
"""The text of an answer; "" for one that expired; or a status and the words of an error."""


class BatchServer:
    """What the server does, and what was handed in.

    Attributes:
        outcome: What becomes of a request, from its body and the number of its batch.
        polls: How often a batch is looked at before it has ended.
        event: Called with what happens: ``creating`` (not received yet), ``created`` (received, not
            answered yet), ``polled``, ``results``. What it returns is a status to answer with.
        batches: Each batch, as (custom id, body) pairs.
    """

    def __init__(self) -> None:
        self.url = ""
        self.outcome: Callable[[dict[str, Any], int], Outcome] = lambda body, batch: "[[7]]"
        self.event: Callable[[str], int | None] = lambda name: None
        self.polls, self.problem = 1, ""
        self.batches: list[list[tuple[str, dict[str, Any]]]] = []
        self.headers: list[dict[str, str]] = []
        self._names: list[str] = []
        self._files: dict[str, bytes] = {}
        self._looks: Counter[int] = Counter()

    @property
    def asked(self) -> Counter[str]:
        """How often each conversation was handed in, by its last message."""
        return Counter(
            body["messages"][-1]["content"] for batch in self.batches for _, body in batch
        )

    # Both kinds

    def receive(self, pairs: list[tuple[str, dict[str, Any]]], metadata: Any = None) -> int:
        """Take a batch; gives its number."""
        self.batches.append(pairs)
        self._names.append((metadata or {}).get("hubkit", ""))
        return len(self.batches) - 1

    def ended(self, number: int) -> bool:
        """Whether a batch has ended, now that it is looked at."""
        self._looks[number] += 1
        return self._looks[number] > self.polls

    def outcomes(self, number: int) -> list[tuple[str, dict[str, Any], Outcome]]:
        """What became of a batch's requests, in another order than they were handed in."""
        rows = [(key, body, self.outcome(body, number)) for key, body in self.batches[number]]
        random.Random(number).shuffle(rows)
        return rows

    # OpenAI's

    def openai_batch(self, number: int) -> dict[str, Any]:
        """The batch object of OpenAI's API."""
        done = self._looks[number] > self.polls
        state = "completed" if done else "in_progress"
        if self.problem:
            state = "failed"
        return {
            "id": f"batch_{number}", "status": state, "created_at": int(time.time()),
            "metadata": {"hubkit": self._names[number]},
            "request_counts": {"total": len(self.batches[number]), "completed": 0, "failed": 0},
            "errors": {"data": [{"message": self.problem}]} if self.problem else None,
            "output_file_id": f"out-{number}" if done else None,
            "error_file_id": f"err-{number}" if done else None,
        }  # fmt: skip

    def openai_lines(self, number: int, *, errors: bool) -> list[dict[str, Any]]:
        """The lines of a batch's file of answers, or of errors."""
        lines = []
        for key, body, outcome in self.outcomes(number):
            if isinstance(outcome, tuple):
                response = {"status_code": outcome[0], "body": {"error": {"message": outcome[1]}}}
                lines.append((True, {"custom_id": key, "response": response, "error": None}))
            elif not outcome:
                error = {"code": "batch_expired", "message": "This request could not be executed."}
                lines.append((True, {"custom_id": key, "response": None, "error": error}))
            else:
                message = {"role": "assistant", "content": outcome}
                answer = {
                    "model": body["model"],
                    "choices": [{"message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10},
                }
                response = {"status_code": 200, "body": answer}
                lines.append((False, {"custom_id": key, "response": response, "error": None}))
        return [line for is_error, line in lines if is_error == errors]

    # Anthropic's

    def anthropic_batch(self, number: int) -> dict[str, Any]:
        """The batch object of Anthropic's API."""
        done, total = self._looks[number] > self.polls, len(self.batches[number])
        counts = {"processing": 0 if done else total, "succeeded": total if done else 0}
        return {
            "id": f"msgbatch_{number}", "processing_status": "ended" if done else "in_progress",
            "request_counts": counts, "created_at": datetime.now(UTC).isoformat(),
            "results_url": "https://elsewhere.invalid/results" if done else None,
        }  # fmt: skip

    def anthropic_lines(self, number: int) -> list[dict[str, Any]]:
        """The lines of a batch's results."""
        lines = []
        for key, body, outcome in self.outcomes(number):
            if isinstance(outcome, tuple):
                kind = {400: "invalid_request_error"}.get(outcome[0], "api_error")
                error = {"type": "error", "error": {"type": kind, "message": outcome[1]}}
                result: dict[str, Any] = {"type": "errored", "error": error}
            elif not outcome:
                result = {"type": "expired"}
            else:
                message = {
                    "model": body["model"], "stop_reason": "end_turn",
                    "content": [{"type": "thinking", "thinking": "a plan"},
                                {"type": "text", "text": outcome}],
                    "usage": {"input_tokens": 60, "cache_read_input_tokens": 40,
                              "output_tokens": 10},
                }  # fmt: skip
                result = {"type": "succeeded", "message": message}
            lines.append({"custom_id": key, "result": result})
        return lines

    def respond(self, method: str, path: str, data: bytes) -> Any:
        """The answer to a request: an object, lines, or None for what is not there."""
        if (method, path) == ("POST", "/v1/files"):
            name = f"file-{len(self._files)}"
            self._files[name] = re.split(rb"\r\n\r\n", data)[2].rpartition(b"\r\n--")[0]
            return {"id": name}
        if method == "POST":
            body = json.loads(data)
            if "requests" in body:
                pairs = [(entry["custom_id"], entry["params"]) for entry in body["requests"]]
            else:
                lines = self._files[body["input_file_id"]].splitlines()
                pairs = [(row["custom_id"], row["body"]) for row in map(json.loads, lines) if row]
            number = self.receive(pairs, body.get("metadata"))
            self.event("created")
            return self._object(path, number)
        if path in ("/v1/batches", "/v1/messages/batches"):
            data_ = [self._object(path, n) for n in reversed(range(len(self.batches)))]
            return {"data": data_, "has_more": False}
        number = int(re.findall(r"\d+", path)[-1])
        if path.endswith("/content"):
            return self.openai_lines(number, errors="err-" in path)
        if path.endswith("/results"):
            return self.anthropic_lines(number)
        self.ended(number)
        return self._object(path, number)

    def _object(self, path: str, number: int) -> dict[str, Any]:
        is_anthropic = path.startswith("/v1/messages")
        return self.anthropic_batch(number) if is_anthropic else self.openai_batch(number)


@contextmanager
def batch_server() -> Iterator[BatchServer]:
    """Serve on loopback."""
    server = BatchServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            ends = path.endswith(("/content", "/results"))
            self.reply("results" if ends else "polled", b"")

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            self.reply("uploading" if self.path.endswith("/files") else "creating", data)

        def reply(self, event: str, data: bytes) -> None:
            server.headers.append({key.lower(): value for key, value in self.headers.items()})
            status = server.event(event)
            answer: Any = {"error": {"message": "scripted"}}
            if status is None:
                answer = server.respond(self.command, self.path.partition("?")[0], data)
            lines = answer if isinstance(answer, list) else [answer]
            raw = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            self.send_response(status or 200)
            self.send_header("Content-Length", str(len(raw)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
