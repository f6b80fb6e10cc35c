"""A chat-completions server that lies below everything under test: its own process, scripted
faults, and a ledger.

Run as ``python tests/support/mock_endpoint.py --port-file PATH [options]``. Each answer is unique
(it holds a number), and the ledger appends one line per answered request: what was asked for and
what was said, so that a test can tell a turn that was asked for twice. `latency` is seconds;
`faults` is the share of requests that go wrong."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import web


@dataclass
class Handle:
    """A running mock, as a test sees it."""

    url: str
    process: subprocess.Popen
    ledger_path: Path

    def script(self, **behaviour: Any) -> None:
        """How it behaves from now on: status, message, headers, first and after (of requests),
        texts, rules, finish, body, raw.
        """
        data = json.dumps(behaviour).encode()
        urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/script", data=data), timeout=240
        ).read()

    def stats(self) -> dict[str, int]:
        """Requests and answers so far."""
        with urllib.request.urlopen(f"{self.url}/stats", timeout=240) as answer:
            return dict(json.load(answer))

    def ledger(self) -> list[dict[str, Any]]:
        """Every answered request, in order."""
        return [json.loads(line) for line in self.ledger_path.read_text().splitlines()]

    def kill(self) -> None:
        """Gone at once, as a machine goes."""
        self.process.kill()
        self.process.wait()


@contextmanager
def mock(**options: Any) -> Iterator[Handle]:
    """A mock in its own process; `options` are its command-line options (True for a flag)."""
    with TemporaryDirectory() as scratch:
        port_file, ledger = Path(scratch) / "port", Path(scratch) / "ledger"
        command = [sys.executable, __file__, "--port-file", str(port_file), "--ledger", str(ledger)]
        for name, value in options.items():
            name = name.replace("_", "-")
            command += [f"--{name}"] if value is True else [f"--{name}={value}"]
        process = subprocess.Popen(command)
        try:
            while not port_file.exists():
                if process.poll() is not None:
                    raise RuntimeError("the mock did not start")
                time.sleep(0.02)
            yield Handle(f"http://127.0.0.1:{port_file.read_text()}", process, ledger)
        finally:
            process.kill()
            process.wait()


def words(body: dict) -> str:
    """What every request is known by: its whole conversation."""
    return hashlib.sha256(json.dumps(body["messages"], sort_keys=True).encode()).hexdigest()[:16]


class Mock:
    """One server's behaviour, set from the command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.count = 0
        self.requests = 0
        self.started = time.monotonic()
        self.chance = random.Random(args.seed)
        self.ledger = Path(args.ledger).open("a", buffering=1) if args.ledger else None  # noqa: SIM115
        self.in_flight = self.most = 0
        self.script: dict[str, Any] = {}
        self.used: Counter[int] = Counter()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        self.requests += 1
        body = await request.json()
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            if (refusal := await self.trouble(request, body)) is not None:
                return refusal
            if self.args.chaos or self.args.chaos_s:
                return await self.chaotic(request, body)
            await asyncio.sleep(self.latency())
            said = self.ruled(body)
            if isinstance(said, dict):  # {"status": …}, or {"wait": seconds} and then nothing
                await asyncio.sleep(said.get("wait", 0))
                return web.json_response({"error": "scripted"}, status=said.get("status", 504))
            return web.json_response(self.answer(body, said))
        finally:
            self.in_flight -= 1

    async def chaotic(self, request: web.Request, body: dict) -> web.StreamResponse:
        """What the server of this moment does: it is another one every `chaos` requests, or every
        `chaos_s` seconds.

        Only an answer that arrives whole and can be used is in the ledger."""
        if self.args.chaos_s:
            phase = int((time.monotonic() - self.started) / self.args.chaos_s)
        else:
            phase = self.requests // self.args.chaos
        kind = random.Random(f"{self.args.seed}/{phase}").choice(
            [*["good"] * 9, "think", "stream", "bom", "think", "stream", "bom", "429", "500", "502",
             "503", "524", "529",
             "error 429", "error 502", "empty", "abort", "filter", "cut", "drop", "402"]
        )  # fmt: skip
        errors = {"502": "<html><title>Bad gateway</title></html>", "402": "Insufficient credits"}
        if kind.isdigit():
            return web.Response(status=int(kind), text=errors.get(kind, "scripted"))
        if kind.startswith("error "):
            return web.json_response({"error": {"message": "upstream", "code": int(kind[6:])}})
        if kind == "drop" and request.transport is not None:
            request.transport.abort()
            return web.Response()
        if kind in ("empty", "abort", "filter", "cut"):
            finish = {"abort": "abort", "filter": "content_filter"}.get(kind, "stop")
            message = {"role": "assistant", "content": "" if kind == "empty" else "It is"}
            answer = {"choices": [{"message": message, "finish_reason": finish}]}
            if kind != "cut":
                return web.json_response(answer)
            part = web.StreamResponse(headers={"Content-Type": "application/json"})
            part.enable_chunked_encoding()
            await part.prepare(request)
            await part.write(json.dumps(answer).encode()[:20])
            if request.transport is not None:
                request.transport.abort()
            return part
        await asyncio.sleep(self.latency())
        answer = self.answer(body)
        message = answer["choices"][0]["message"]
        if kind == "think":
            message["content"] = f"<think>\nA plan.\n</think>\n\n{message['content']}"
        if kind == "stream":
            event = {
                "choices": [{"delta": {"content": message["content"]}, "finish_reason": "stop"}]
            }
            text = f": ping\n\ndata: {json.dumps(event)}\n\ndata: [DONE]\n\n"
            return web.Response(text=text, content_type="text/event-stream")
        start = b"\xef\xbb\xbf" if kind == "bom" else b""
        return web.Response(
            body=start + json.dumps(answer).encode(), content_type="application/json"
        )

    async def trouble(self, request: web.Request, body: dict) -> web.StreamResponse | None:
        """What goes wrong with this request, if anything."""
        args, script = self.args, self.script
        if "body" in script:
            return web.Response(body=str(script["body"]).encode(), content_type="application/json")
        if (
            script.get("status")
            and (script.get("first") is None or self.requests <= script["first"])
            and self.requests > script.get("after", 0)
        ):
            return web.json_response(
                {"error": {"message": script.get("message", "scripted"), "type": "scripted"}},
                status=int(script["status"]),
                headers=script.get("headers") or {},
            )
        if args.key and request.headers.get("Authorization") != f"Bearer {args.key}":
            return web.json_response({"error": "invalid key"}, status=401)
        if args.model and body["model"] != args.model:
            return web.json_response(
                {"error": {"message": f"no model {body['model']}"}}, status=404
            )
        if args.capacity and self.in_flight > args.capacity:
            return web.json_response(
                {"error": "overloaded", "error_type": "overloaded"}, status=429
            )
        if args.longest and sum(len(m["content"]) for m in body["messages"]) > args.longest:
            return web.json_response({"error": "too long", "error_type": "validation"}, status=422)
        if args.poison and any(args.poison in m["content"] for m in body["messages"]):
            return web.json_response({"error": "generation failed"}, status=500)
        if self.chance.random() < args.faults:
            return await self.fault(request)
        return None

    async def fault(self, request: web.Request) -> web.StreamResponse:
        """A 429, a 500, or a dropped connection."""
        kind = self.chance.choice(["429", "500", "drop"])
        if kind == "drop":
            await asyncio.sleep(self.latency() / 2)
            if request.transport is not None:
                request.transport.abort()
            return web.Response()  # nobody will read it
        return web.json_response({"error": "unlucky"}, status=int(kind))

    def latency(self) -> float:
        """Seconds; with a heavy tail, one in twenty takes twenty times as long."""
        slow = self.args.tail and self.chance.random() < 0.05
        return self.args.latency * (20 if slow else 1)

    def ruled(self, body: dict) -> object:
        """What the first rule says whose pattern is in the last message: its next reply, the last
        one for ever.
        """
        for number, (pattern, replies) in enumerate(self.script.get("rules", [])):
            if re.search(pattern, body["messages"][-1]["content"], re.DOTALL):
                place = self.used[number]
                self.used[number] += 1
                return replies[min(place, len(replies) - 1)]
        return None

    def answer(self, body: dict, said: object = None) -> dict:
        """A completion, entered in the ledger before it is sent."""
        self.count += 1
        last = body["messages"][-1]
        text = self.text(body) if said is None else str(said)
        if self.ledger is not None:
            self.ledger.write(json.dumps({"ask": words(body), "said": text, "body": body}) + "\n")
        tokens = sum(len(m["content"]) // 4 + 4 for m in body["messages"])
        return {
            "id": f"chatcmpl-{self.count}",
            "object": "chat.completion",
            "model": self.args.answers_as or body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": self.script.get("finish", "stop"),
                }
            ],
            "usage": {
                "prompt_tokens": tokens,
                "completion_tokens": len(text) // 4,
                "total_tokens": tokens,
            },
            "system_fingerprint": last["role"],
        }

    def scripted(self, otherwise: str) -> str:
        """The text that the script has for this answer, on every route."""
        said = list(self.script.get("texts") or [otherwise])
        return str(said[min(self.count, len(said)) - 1])  # at last the same again and again

    def text(self, body: dict) -> str:
        """What is said: scripted, the same for the same request (`deterministic`), or unique."""
        if "texts" in self.script:
            return self.scripted("")
        if self.args.deterministic:
            seeded = hashlib.sha256(f"{words(body)}/{body['seed']}".encode()).hexdigest()[:12]
            return f"answer {seeded} {self.args.padding}".strip()
        return f"answer {os.getpid()}.{self.count} {self.args.padding}".strip()

    def raw(self) -> Any:
        """The scripted JSON of this answer, for routes that take rendered prompts, or None."""
        answers = self.script.get("raw")
        return answers[min(self.count, len(answers)) - 1] if answers else None

    async def generate(self, request: web.Request) -> web.Response:
        """POST /generate, as TGI answers it."""
        body = await request.json()
        self.count += 1
        if self.ledger is not None:
            self.ledger.write(json.dumps({"body": body}) + "\n")
        if raw := self.raw():
            return web.json_response(raw)
        answer = {
            "generated_text": self.scripted(f"answer {self.count}"),
            "details": {"finish_reason": "eos_token", "generated_tokens": 2},
        }
        return web.json_response(answer, headers={"x-prompt-tokens": "3"})

    def rendered(self, body: dict) -> str:
        """A conversation as this server's chat template renders it: ``[role]text``, or with the
        labels of the two seats swapped (`renders`)."""
        labels = {"user": "user", "assistant": "assistant", "system": "system"}
        if self.args.renders == "swapped":
            labels |= {"user": "assistant", "assistant": "user"}
        turns = [f"[{labels[m['role']]}]{m['content']}" for m in body["messages"]]
        return "<s>" + "".join(turns) + f"[{labels['assistant']}]"

    async def render(self, request: web.Request) -> web.Response:
        """POST /tokenize (vLLM, SGLang, llama.cpp), /apply-template, /chat_tokenize (TGI)."""
        if not self.args.renders:
            return web.json_response({"detail": "Not Found"}, status=404)
        body = await request.json()
        text = next((str(body[k]) for k in ("prompt", "inputs", "content") if k in body), "")
        text = self.rendered(body) if "messages" in body else text
        starts = body.get("add_special_tokens", True) and "messages" not in body
        tokens = [*([1] if starts else []), *([1] if text.startswith("<s>") else [])]
        tokens += map(ord, text.removeprefix("<s>"))
        return web.json_response({"tokens": tokens, "prompt": text, "templated_text": text})

    async def complete(self, request: web.Request) -> web.Response:
        """POST /v1/completions."""
        body = await request.json()
        self.count += 1
        text = self.scripted(f"answer {os.getpid()}.{self.count}")
        if self.ledger is not None:
            self.ledger.write(json.dumps({"said": text, "body": body}) + "\n")
        if raw := self.raw():
            return web.json_response(raw)
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        return web.json_response({"model": body["model"], "choices": [choice]})

    async def set_script(self, request: web.Request) -> web.Response:
        """POST /script: how to behave from now on."""
        self.script = await request.json()
        self.requests = self.count = 0
        self.used.clear()
        return web.json_response({})

    async def stats(self, request: web.Request) -> web.Response:
        """GET /stats."""
        return web.json_response(
            {
                "answered": self.count,
                "requests": self.requests,
                "in_flight": self.in_flight,
                "most": self.most,
            }
        )

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models."""
        if self.script.get("status") == 404:
            return web.Response(status=404)
        entry = {"id": self.args.model or "tgi"}
        if self.args.window:
            entry["max_model_len"] = self.args.window
        return web.json_response({"data": [entry]})


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ledger")
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--capacity", type=int, default=0)
    parser.add_argument("--longest", type=int, default=0)
    parser.add_argument("--tail", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--padding", default="")
    parser.add_argument("--poison", default="")
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--chaos", type=int, default=0)  # requests until it is another server
    parser.add_argument("--chaos-s", type=float, default=0.0)  # seconds until it is another one
    parser.add_argument("--renders", default="")  # same, or swapped: the labels of the seats
    parser.add_argument("--window", type=int, default=0)  # as /v1/models states it
    parser.add_argument("--answers-as", default="")  # the model's name in answers
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    mock = Mock(args)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", mock.chat)
    app.router.add_post("/generate", mock.generate)
    app.router.add_post("/v1/completions", mock.complete)
    for path in ("/tokenize", "/apply-template", "/chat_tokenize"):
        app.router.add_post(path, mock.render)
    app.router.add_post("/script", mock.set_script)
    app.router.add_get("/stats", mock.stats)
    app.router.add_get("/v1/models", mock.models)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", args.port))
    listener.listen(1024)
    if args.port_file:
        part = Path(args.port_file + ".part")
        part.write_text(str(listener.getsockname()[1]))
        part.rename(args.port_file)
    web.run_app(app, sock=listener, print=None, access_log=None)


if __name__ == "__main__":
    main()
