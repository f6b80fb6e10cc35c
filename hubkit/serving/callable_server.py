"""A Python function as a model that answers: OpenAI's chat completions on loopback, in threads of
this process."""

from __future__ import annotations

import asyncio
import inspect
import json
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hubkit.conversation import Message
from hubkit.serving.models import ServedModel
from hubkit.untrusted import parse_json

Agent = Callable[[list[Message]], str | Awaitable[str]]
"""Takes a conversation that ends with a person's turn; gives the assistant's answer."""

_LONGEST_BODY = 64 << 20


@contextmanager
def served_callable(agent: Agent) -> Iterator[ServedModel]:
    """Serve `agent` until the block ends. Only a client with the token of the `ServedModel` is
    answered. What `agent` raises is answered as an error of the server.
    """
    token = secrets.token_urlsafe(24)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(agent, token))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="hubkit-agent")
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        yield ServedModel((url,), "openai", "agent", token)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(agent: Agent, token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One request a time on each connection."""

        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are sent apart

        def do_GET(self) -> None:
            """Say that it is up, and which model it is."""
            if self._authorized():
                self._reply(HTTPStatus.OK, {"object": "list", "data": [{"id": "agent"}]})

        def do_POST(self) -> None:
            """Answer a conversation."""
            if not self._authorized():
                return
            try:
                size = int(self.headers.get("Content-Length", "0"))
                messages = parse_json(self.rfile.read(min(size, _LONGEST_BODY)))["messages"]
            except (ValueError, KeyError, TypeError):
                self._fail(HTTPStatus.BAD_REQUEST, "the body holds no messages")
                return
            try:
                text = _answer(agent, messages)
            except Exception as error:
                self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
                return
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
            }
            self._reply(
                HTTPStatus.OK,
                {"object": "chat.completion", "model": "agent", "choices": [choice]},
            )

        def _authorized(self) -> bool:
            authorization = self.headers.get("Authorization", "")
            if secrets.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
                return True
            self._fail(HTTPStatus.UNAUTHORIZED, "wrong key")
            return False

        def _fail(self, status: HTTPStatus, message: str) -> None:
            self._reply(status, {"error": {"message": message}})

        def _reply(self, status: HTTPStatus, body: Mapping[str, object]) -> None:
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    return Handler


def _answer(agent: Agent, messages: list[Message]) -> str:
    answer = agent(messages)
    if inspect.isawaitable(answer):
        answer = asyncio.run(_awaited(answer))
    if not isinstance(answer, str):
        raise TypeError(f"the function answered {type(answer).__name__}, not text")
    return answer


async def _awaited(answer: Awaitable[str]) -> str:
    return await answer
