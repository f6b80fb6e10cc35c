"""What goes over the wire, for each dialect: what a recipe leaves out, adds or removes, and where
it is sent."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hubkit.errors import MisconfiguredEndpointError
from hubkit.recipe import SeatConfig, load
from hubkit.serving import ServedModel
from hubkit.serving.client import PROFILES, ClientTemplate, Endpoint, Reply, RequestOptions
from hubkit.serving.client.dialects import DIALECTS

NOT_SENT = dict.fromkeys(
    ("temperature", "top_p", "max_tokens", "stop", "frequency_penalty", "presence_penalty")
)
CHAT = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}
ANSWERS = {False: CHAT, True: {"generated_text": "Yes.", "details": {"finish_reason": "eos_token"}}}


@dataclass
class Recorder:
    """A server that takes everything, and what it was sent."""

    url: str = ""
    refuses: Callable[[dict[str, Any]], str] = lambda body: ""  # words of a 400, or nothing
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
            words = record.refuses(body)
            answer = {"error": {"message": words}} if words else ANSWERS[self.path == "/generate"]
            raw = json.dumps(answer).encode()
            self.send_response(400 if words else 200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # more than connect at once

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    record.url = f"http://127.0.0.1:{server.server_port}"
    yield record
    server.shutdown()
    server.server_close()


def wire(
    recorder: Recorder,
    path: str,
    profile: str,
    request: RequestOptions,
    *,
    messages: list[Any] | None = None,
    template: ClientTemplate | None = None,
    temperature_of_attempt: float | None = None,
    **sampling: Any,
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """(path, headers, body) of one request."""
    asked = messages or [{"role": "user", "content": "Is it?"}]

    async def work() -> None:
        async with Endpoint(
            [recorder.url + path], profile=profile, model="m", request=request,
            sampling={**NOT_SENT, **sampling}, template=template,
        ) as endpoint:  # fmt: skip
            await endpoint.chat(asked, seed=7, key="d1", temperature=temperature_of_attempt)

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


# What servers say of a system message, or of the order of roles.
REFUSALS = (
    "System role not supported",
    "Conversation roles must alternate user/assistant/user/assistant/...",
    "Unexpected role 'system' after role 'user'",
    "Developer instruction is not enabled for models/gemma-3-27b-it",
)


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        *((profile, REFUSALS[i % len(REFUSALS)]) for i, profile in enumerate(PROFILES)),
        *(("openai", words) for words in REFUSALS),
    ],
)
def test_a_refused_system_message_is_folded_into_the_users_and_said(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, profile: str, words: str
):
    def refuses(body: dict[str, Any]) -> str:
        return words if body["messages"][0]["role"] == "system" else ""

    monkeypatch.setattr(recorder, "refuses", refuses)
    before = len(recorder.sent)
    system, user = {"role": "system", "content": "Ask."}, {"role": "user", "content": "Rome?"}
    reply = {"role": "assistant", "content": "A city."}
    conversations = [[system], [system, user], [system, reply, user], [system, user, reply, user]]

    async def work() -> list[str]:
        async with Endpoint(
            [recorder.url], profile=profile, model="m", sampling=NOT_SENT, name="asker"
        ) as endpoint:
            calls = [endpoint.chat(c, seed=7, key=str(i)) for i, c in enumerate(conversations * 2)]
            await asyncio.gather(*calls)  # all are on their way before the first is refused
            await endpoint.chat([system, user], seed=7)
            return endpoint.adaptations

    [said] = asyncio.run(work())
    assert words in said and said.startswith("asker: the server refuses the system role")
    bodies = [body for _, _, body in recorder.sent[before:]]
    folded = [body["messages"] for body in bodies if not refuses(body)]
    alone = {"role": "user", "content": "Ask."}
    joined = {"role": "user", "content": "Ask.\n\nRome?"}
    wanted = [[alone], [joined], [alone, reply, user], [joined, reply, user]]
    assert sorted(map(str, folded)) == sorted(map(str, [*wanted * 2, [joined]]))
    assert "messages" in bodies[-1] and not refuses(bodies[-1])  # it is remembered
    assert len(bodies) - len(folded) <= len(conversations) * 2


def test_roles_refused_in_every_order_are_that_conversations_own(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recorder, "refuses", lambda body: REFUSALS[1])
    with pytest.raises(MisconfiguredEndpointError, match="roles must alternate"):
        wire(recorder, "", "openai", RequestOptions(), messages=[
            {"role": "system", "content": "Ask."}, {"role": "user", "content": "Is it?"}
        ])  # fmt: skip


TEMPLATE = ClientTemplate(
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]",
    {"bos_token": "<s>", "eos_token": "</s>"},
    stops=["</s>"],
)
VALUES = {
    "temperature": 0.5, "top_p": 0.9, "max_tokens": 9, "stop": ["X"],
    "frequency_penalty": 0.25, "presence_penalty": None,
}  # fmt: skip
PROMPT = "<s>[user]Is it?[assistant]"
COMPLETION = {
    "model": "m", "stream": False, "prompt": PROMPT, "seed": 7, "user": "d1-endpoint",
    "temperature": 0.5, "top_p": 0.9, "max_tokens": 9, "stop": ["X", "</s>"],
    "frequency_penalty": 0.25,
}  # fmt: skip
GENERATION = {
    "return_full_text": False, "details": True, "do_sample": True, "temperature": 0.5,
    "top_p": 0.9, "max_new_tokens": 9, "stop": ["X", "</s>"], "frequency_penalty": 0.25, "seed": 7,
}  # fmt: skip
TEXT_BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vllm": ("/v1/completions",
             COMPLETION | {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}),
    "sglang": ("/v1/completions",
               COMPLETION | {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}),
    "llamacpp": ("/v1/completions", COMPLETION
                 | {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "cache_prompt": True}),
    "transformers": ("/v1/completions", {k: v for k, v in COMPLETION.items() if k != "user"}),
    "tgi": ("/generate", {"inputs": PROMPT, "parameters": GENERATION | {"adapter_id": "m"}}),
}  # fmt: skip


def test_the_text_routes_of_all_dialects_are_in_this_table():
    assert set(TEXT_BODIES) == {name for name in PROFILES if DIALECTS[name].text_route}


@pytest.mark.parametrize("profile", TEXT_BODIES)
def test_a_rendered_prompt_goes_out_in_exactly_this_body(recorder: Recorder, profile: str):
    path, body = TEXT_BODIES[profile]
    sent = wire(recorder, "", profile, RequestOptions(), template=TEMPLATE, **VALUES)
    assert (sent[0], sent[2]) == (path, body)
    extra = RequestOptions(extra_body={"seed_of_team": 1, "frequency_penalty": None})
    sent = wire(
        recorder, "", profile, extra, template=TEMPLATE, temperature_of_attempt=0.0, **VALUES
    )
    fields = dict(body.get("parameters", body), seed_of_team=1)
    del fields["frequency_penalty"]
    fields["temperature"] = 0.0
    if path == "/generate":  # greedy, which TGI says by not sampling
        del fields["temperature"], fields["top_p"]
        fields["do_sample"] = False
    assert sent[2].get("parameters", sent[2]) == fields


def test_an_empty_sampling_block_leaves_the_text_routes_to_the_servers_defaults(
    recorder: Recorder,
):
    for profile, (path, body) in TEXT_BODIES.items():
        if path == "/generate":
            kept = {"return_full_text", "details", "do_sample", "stop", "seed", "adapter_id"}
            body = body["parameters"]
        else:
            kept = {"model", "stream", "prompt", "seed", "user", "stop"} & set(body)
            kept |= set(DIALECTS[profile].neutral)
        sent = wire(recorder, "", profile, RequestOptions(), template=TEMPLATE)[2]
        expected = {key: body[key] for key in kept} | {"stop": ["</s>"]}
        assert sent.get("parameters", sent) == expected


def test_a_stop_text_that_a_server_leaves_in_the_answer_is_cut_off(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
):
    said = "Yes, it is.\nUser: and"
    message = {"message": {"content": said}, "text": said, "finish_reason": "length"}
    monkeypatch.setitem(ANSWERS, False, {"choices": [message]})

    async def ask(profile: str, template: ClientTemplate | None) -> Reply:
        async with Endpoint(
            [recorder.url], profile=profile, model="m", template=template,
            sampling={**NOT_SENT, "stop": ["Nobody:", "\nUser:"]},
        ) as endpoint:  # fmt: skip
            return await endpoint.chat([{"role": "user", "content": "Is it?"}], seed=7)

    for template in (None, TEMPLATE):
        reply = asyncio.run(ask("transformers", template))
        assert (reply.content, reply.finish_reason) == ("Yes, it is.", "stop")
    assert asyncio.run(ask("vllm", None)).content == said


@pytest.mark.parametrize("tokens", [1, 2])
def test_where_a_server_begins_the_text_itself_is_asked_of_its_count(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tokens: int
):
    monkeypatch.setitem(ANSWERS, False, {
        "choices": [{"text": "Yes.", "finish_reason": "stop"}], "usage": {"prompt_tokens": tokens},
    })  # fmt: skip
    body = wire(recorder, "", "transformers", RequestOptions(), template=TEMPLATE)[2]
    assert body["prompt"] == (PROMPT if tokens == 1 else PROMPT.removeprefix("<s>"))
