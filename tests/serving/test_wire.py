"""What goes over the wire, for each dialect: what a recipe leaves out, adds or removes, and where
it is sent."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hubkit.recipe import SeatConfig, load
from hubkit.serving import ServedModel
from hubkit.serving.client import PROFILES, Endpoint, RequestOptions
from hubkit.serving.client.dialects import DIALECTS

NOT_SENT = dict.fromkeys(
    ("temperature", "top_p", "max_tokens", "stop", "frequency_penalty", "presence_penalty")
)
ANSWER = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}


@dataclass
class Recorder:
    """A server that takes everything, and what it was sent."""

    url: str = ""
    sent: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    record = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {key.lower(): value for key, value in self.headers.items()}
            record.sent.append((self.path, headers, body))
            raw = json.dumps(ANSWER).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    record.url = f"http://127.0.0.1:{server.server_port}"
    yield record
    server.shutdown()
    server.server_close()


def wire(
    recorder: Recorder, path: str, profile: str, request: RequestOptions, **sampling: Any
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """(path, headers, body) of one request."""

    async def work() -> None:
        async with Endpoint(
            [recorder.url + path], profile=profile, model="m", request=request,
            sampling={**NOT_SENT, **sampling},
        ) as endpoint:  # fmt: skip
            await endpoint.chat([{"role": "user", "content": "Is it?"}], seed=7, key="d1")

    asyncio.run(work())
    return recorder.sent[-1]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_request_leaves_out_and_adds_what_the_recipe_says(recorder: Recorder, profile: str):
    dialect = DIALECTS[profile]
    body_session = dialect.session if not dialect.session.startswith("header:") else ""
    base = {"model", "stream", "messages", *dialect.neutral}
    base |= {key for key in (dialect.seed_key, body_session) if key}
    _, headers, body = wire(recorder, "", profile, RequestOptions())
    assert set(body) == base and "authorization" not in headers
    request = RequestOptions(
        token="secret",
        headers={"X-Team": "a"},
        extra_body={"stream": None, "reasoning_effort": "low", "model": "other"},
        chat_template_kwargs={"enable_thinking": False},
        session_header="X-Session",
    )
    _, headers, body = wire(recorder, "", profile, request, max_tokens=9)
    added = {"reasoning_effort", "chat_template_kwargs", dialect.length_key}
    assert set(body) == base - {"stream", body_session} | added
    assert body["model"] == "other" and body["chat_template_kwargs"] == {"enable_thinking": False}
    assert headers["x-team"] == "a" and headers["authorization"] == "Bearer secret"
    assert headers["x-session"].startswith("d1")


def test_addresses_are_used_as_given(recorder: Recorder):
    chat = "/chat/completions"
    table = {
        "": f"/v1{chat}",
        "/v1/": f"/v1{chat}",
        "/v1beta/openai/": f"/v1beta/openai{chat}",
        "/api/paas/v4/": f"/api/paas/v4{chat}",
        f"/openai/deployments/m{chat}?api-version=2024-10-21":
            f"/openai/deployments/m{chat}?api-version=2024-10-21",
        "/openai/deployments/m?api-version=1": f"/openai/deployments/m{chat}?api-version=1",
        f"/proxy{chat}": f"/proxy{chat}",
    }  # fmt: skip
    sent = {path: wire(recorder, path, "openai", RequestOptions())[0] for path in table}
    assert sent == table


def test_keys_go_into_headers_alone_and_are_never_repeated(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login jane password from-netrc\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    _, headers, _ = wire(recorder, "", "openai", RequestOptions())
    assert "authorization" not in headers
    _, headers, _ = wire(recorder, "", "openai", RequestOptions(token="secret"))
    assert headers["authorization"] == "Bearer secret"
    host = recorder.url.removeprefix("http://")
    monkeypatch.setenv("KEY", "sec\nret")
    seat = {"repo": "a/b", "profile": "openai", "token_env": "KEY"}
    refused = {
        "user name or a password": lambda: Endpoint(
            [f"http://jane:secret@{host}"], profile="openai", model="m", sampling=NOT_SENT
        ),
        "would be committed": lambda: load(
            "parrot", overrides=[f"rollout.chat.endpoints=[http://jane:secret@{host}]"]
        ),
        "line break": lambda: ServedModel.of(
            SeatConfig.model_validate({**seat, "endpoints": [recorder.url]})
        ),
    }
    for words, use in refused.items():
        with pytest.raises(ValueError, match=words) as problem:
            use()
        assert "secret" not in str(problem.value) and "sec\nret" not in str(problem.value)
