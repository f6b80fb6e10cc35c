"""Servers that answer as none should: each answer is an error that says so, or a reply without what
cannot be.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hubkit.errors import EndpointError, HubkitError, MisconfiguredEndpointError
from hubkit.recipe import Sampling
from hubkit.serving.client import ClientLimits, Endpoint, Reply
from hubkit.serving.client.replies import read_chat, read_generate

Said = tuple[int, dict[str, str], list[bytes]]  # status, headers, parts of the body
GOOD = json.dumps({"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}).encode()


@contextmanager
def strange(answers: dict[str, list[Said]]) -> Iterator[tuple[str, list[float]]]:
    """A server that gives each path's answers in turn (the last one for ever); its URL, and when it
    was asked.
    """
    asked: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            waiting = answers.get(self.path) or [(404, {}, [b""])]
            status, headers, parts = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if self.command == "POST":
                asked.append(time.monotonic())
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for part in [*filter(None, parts), b""]:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            except OSError:
                pass  # hung up on

        do_POST = do_GET = _answer

        def log_message(self, *_: object) -> None:
            """Not a word."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


def ask(url: str, **options: Any) -> Any:
    """One request; its reply or its error."""

    async def go() -> Any:
        given = {
            "profile": "vllm",
            "model": "m",
            "sampling": Sampling().model_dump(),
            "name": "chat",
            **options,
        }
        async with Endpoint([url], **given) as endpoint:
            [answer] = await asyncio.gather(
                endpoint.chat([{"role": "user", "content": "hi"}], seed=0), return_exceptions=True
            )
            return answer

    return asyncio.run(go())


CHAT = "/v1/chat/completions"


def test_an_answer_without_end_is_given_up_and_not_held_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hubkit.serving.client.transport.LARGEST_ANSWER", 1 << 20)
    with strange({CHAT: [(200, {}, [b" " * (1 << 16)] * 64)]}) as (url, _):
        error = ask(url, limits=ClientLimits(patience_s=0.2))
    assert isinstance(error, EndpointError) and "1048576 bytes" in str(error)


def test_a_page_of_html_is_no_completion_whatever_its_status() -> None:
    page = b"<!doctype html><title>Sign in</title>"
    with strange({CHAT: [(200, {"Content-Type": "text/html"}, [page])]}) as (url, _):
        assert "not JSON" in str(ask(url, limits=ClientLimits(patience_s=0.2)))
    with strange({CHAT: [(422, {}, [page]), (200, {}, [GOOD])]}) as (url, _):
        error = ask(url)
    assert isinstance(error, MisconfiguredEndpointError) and "Sign in" in str(error)


def test_a_redirect_is_not_followed_but_told() -> None:
    with strange({CHAT: [(308, {"Location": "https://elsewhere.example/v1"}, [b""])]}) as (url, _):
        error = ask(url, limits=ClientLimits(patience_s=0.2))
    assert isinstance(error, HubkitError) and "https://elsewhere.example/v1" in str(error)


@pytest.mark.parametrize(
    "listing", [b'["llama"]', b'{"data": null}', b'{"data": [3, {}]}', b"<html>"]
)
def test_a_list_of_models_that_is_none_leaves_the_404_a_clear_error(listing: bytes) -> None:
    with strange({"/v1/models": [(200, {}, [listing])]}) as (url, _):
        error = ask(url)
    assert isinstance(error, MisconfiguredEndpointError) and "'m'" in str(error)


@pytest.mark.parametrize("value", ["0", "Thu, 01 Jan 1970 00:00:00 GMT", "soon"])
def test_a_retry_after_that_asks_for_no_wait_is_no_leave_to_hammer(value: str) -> None:
    refusal: Said = (429, {"Retry-After": value}, [b"busy"])
    with strange({CHAT: [*[refusal] * 3, (200, {}, [GOOD])]}) as (url, asked):
        assert isinstance(ask(url), Reply)
    assert len(asked) == 4
    assert asked[-1] - asked[0] > 0.8  # 0.25, 0.5, 1 s, each halved at most


def test_a_retry_after_of_hours_does_not_outlast_patience() -> None:
    with strange({CHAT: [(503, {"Retry-After": "86400"}, [b"closed"])]}) as (url, asked):
        error = ask(url, limits=ClientLimits(patience_s=0.3))
    assert isinstance(error, HubkitError) and asked[-1] - asked[0] < 5


@pytest.mark.parametrize("count", [True, -1, 2**40, 1.5, "12", None, [3], {}])
def test_a_number_of_tokens_that_is_none_is_left_out(count: object) -> None:
    usage = {
        "prompt_tokens": count,
        "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": count},
    }
    chat = read_chat(
        {"choices": [{"message": {"content": "a"}}], "usage": usage}, latency_s=0, address="a"
    )
    assert (chat.prompt_tokens, chat.completion_tokens, chat.cached_tokens) == (None, None, None)
    said = {"generated_text": "a", "details": {"generated_tokens": count}}
    assert read_generate(said, latency_s=0, address="a", prompt_tokens=3).completion_tokens is None


def test_half_a_character_in_an_answer_is_refused_before_it_reaches_a_file() -> None:
    half = b'{"choices": [{"message": {"content": "\\ud83d"}}]}'
    with strange({CHAT: [(200, {}, [half])]}) as (url, _):
        answer = ask(url, limits=ClientLimits(patience_s=0.2))
    assert isinstance(answer, EndpointError)
