"""Strangers' requests and strangers' repos: refused or bounded, and the server goes on."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engine_server import Running, shared_engine, smollm2, start

from hubkit.errors import EngineError
from hubkit.local_engine.templates import ChatTemplate, TemplateError, TemplateRenderer
from hubkit.local_engine.tensors import stored_tensors

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="session")
def engine() -> Running:
    return shared_engine()


def alive(engine: Running) -> None:
    """Nothing is left behind in its slots, and it still answers."""
    while _busy(engine):  # as long as it takes: the suite's own limit ends what hangs
        time.sleep(0.05)
    status, _ = engine.post("/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": 2}})
    assert status == 200


def _busy(engine: Running) -> float:
    counters = engine.counters()
    return counters["tgi_batch_current_size"] + counters["tgi_queue_size"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/generate", b"", 422),
        ("/generate", b"{", 422),
        ("/generate", b"\xff\xfe", 422),
        ("/generate", b"[" * 100_000, 422),
        ("/generate", b'{"inputs": "\\ud800"}', 422),
        ("/generate", {"inputs": ""}, 422),
        ("/generate", {"inputs": 3}, 422),
        ("/generate", {"inputs": "Hi", "parameters": {"temperature": float("nan")}}, 422),
        ("/generate", {"inputs": "Hi", "parameters": {"temperature": float("inf")}}, 422),
        ("/generate", {"inputs": "Hi", "parameters": {"temperature": 0}}, 422),
        ("/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": 0}}, 422),
        ("/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": 10**12}}, 422),
        ("/generate", {"inputs": "Hi", "parameters": {"top_p": 1.0}}, 422),
        ("/generate", {"inputs": "Hi", "parameters": {"stop": ["a"] * 5}}, 422),
        ("/generate", {"inputs": "Hi", "parameters": {"seed": -1}}, 422),
        ("/generate", {"inputs": "x" * 1_000_000, "parameters": {"max_new_tokens": 1}}, 422),
        (
            "/generate",
            {"inputs": " ".join(["word"] * 200_000), "parameters": {"max_new_tokens": 1}},
            422,
        ),
        ("/generate", {"inputs": "x" * 3_000_000}, 413),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}] * 10_000}, 422),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": None, "name": 3}]}, 422),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "tools": [{"type": "function", "function": {}}]},
            422,
        ),
        ("/v1/chat/completions", {"messages": HELLO, "presence_penalty": -3}, 422),
        ("/v1/completions", {"prompt": []}, 422),
        ("/v1/completions", {"prompt": ["Hi"] * 500}, 422),
    ],
)
def test_what_cannot_be_served_is_refused(
    engine: Running, path: str, body: Any, expected: int
) -> None:
    status, answer = engine.post(path, body)
    assert status == expected
    assert set(answer) == {"error", "error_type"}


@pytest.mark.parametrize("role", ["", "tool", "<|im_end|>", "x" * 300, "système"])
def test_odd_roles_are_the_templates_business(engine: Running, role: str) -> None:
    status, _ = engine.post(
        "/v1/chat/completions",
        {"messages": [{"role": role, "content": "Hi"}], "max_tokens": 2, "temperature": 0},
    )
    assert status == 200


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda children: (
            st.lists(children, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "inputs",
                        "parameters",
                        "messages",
                        "prompt",
                        "stop",
                        "role",
                        "content",
                        "stream",
                    ]
                ),
                children,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_gets_a_client_error_or_an_answer(body: Any) -> None:
    if isinstance(body, dict):
        body = {**body, "max_tokens": 1}
        if isinstance(body.get("parameters"), dict) or "inputs" in body:
            body["parameters"] = {"max_new_tokens": 1}
        body.pop("stream", None)
    for path in ("/", "/generate", "/v1/chat/completions", "/tokenize", "/invocations"):
        assert shared_engine().post(path, json.dumps(body).encode("utf-8", "surrogatepass"))[0] in (
            200,
            422,
        )


def _raw_request(
    engine: Running, body: dict[str, Any], path: str = "/generate_stream"
) -> socket.socket:
    host, port = engine.url().removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)))
    data = json.dumps(body).encode()
    sock.sendall(
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    return sock


@pytest.mark.parametrize("path", ["/generate_stream", "/generate"])
def test_a_client_that_hangs_up_frees_its_slot(engine: Running, path: str) -> None:
    long = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 1000}}
    sockets = [_raw_request(engine, long, path) for _ in range(8)]
    while engine.counters()["tgi_batch_current_size"] < 8:
        time.sleep(0.02)
    for sock in sockets:
        sock.close()
    alive(engine)


def test_connections_opened_and_dropped_cost_nothing(engine: Running) -> None:
    process = psutil.Process(engine.process.pid)
    alive(engine)
    before = process.memory_info().rss
    for _ in range(2):
        sockets = [_raw_request(engine, {"inputs": "Hi" * 150}) for _ in range(100)]
        for sock in sockets:
            sock.close()
    alive(engine)
    assert process.num_fds() < 100
    assert process.memory_info().rss - before < 100 * 2**20


def test_a_slow_reader_holds_no_slot(engine: Running) -> None:
    sock = _raw_request(engine, {"inputs": "Once", "parameters": {"max_new_tokens": 60}})
    alive(engine)
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        received += sock.recv(65536)
    assert received.count(b"data: ") == 60
    sock.close()


def test_too_many_at_once_get_429_and_the_rest_an_answer() -> None:
    small = start(
        "--model",
        str(smollm2()),
        "--slots",
        "1",
        "--threads",
        "1",
        "--max-concurrent",
        "3",
        "--context",
        "256",
    )
    body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 60}}
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: small.post("/generate", body), range(12)))
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 429}
    assert {answer["error_type"] for status, answer in answers if status == 429} == {"overloaded"}
    assert statuses.count(200) >= 3
    alive(small)
    small.stop()


def test_a_bearer_token_is_wanted_when_one_is_set() -> None:
    guarded = start(
        "--model",
        str(smollm2()),
        "--slots",
        "1",
        "--threads",
        "1",
        env={"HUBKIT_ENDPOINT_TOKEN": "s3cret"},
    )
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 1}}
    assert guarded.post("/generate", body)[0] == 401
    assert guarded.post("/generate", body, authorization="Bearer nope")[0] == 401
    assert guarded.post("/generate", body, authorization="Bearer s3cret")[0] == 200
    assert "s3cret" not in " ".join(psutil.Process(guarded.process.pid).cmdline())
    guarded.stop()


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "multiplies a string": "{{ 'a' * 10 ** 10 }}",
    "doubles a string": "{% set ns = namespace(x='a') %}"
    "{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "raises a power": "{{ 9 ** (9 ** 9) }}",
    "pads": "{{ '%1000000000d' % 1 }}",
    "writes without end": "{% for a in range(99999) %}{{ 'spam' * 100 }}{% endfor %}",
    "recurses": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "reaches for classes": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "reaches for globals": "{{ raise_exception.__globals__['sys'].exit(3) }}",
    "imports": "{{ self.__init__.__globals__.__builtins__.__import__('os').system('true') }}",
    "changes the messages": "{{ messages.append(1) }}",
    "divides by zero": "{{ 1 // 0 }}",
    "is not a template": "{% for %}",
}


@pytest.mark.attack
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_is_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubkit.local_engine.templates._RENDER_TIMEOUT_S", 2.0)

    async def attack() -> str:
        templates = {
            "bad": ChatTemplate(HOSTILE[kind], None, None),
            "good": ChatTemplate("fine", None, None),
        }
        renderer = TemplateRenderer(templates)
        with pytest.raises(TemplateError):
            await renderer.render("bad", HELLO)
        # A new worker may take longer to start on a busy machine than the hostile one was given.
        monkeypatch.setattr("hubkit.local_engine.templates._RENDER_TIMEOUT_S", 120.0)
        good = await renderer.render("good", HELLO)
        await renderer.close()
        return good

    assert asyncio.run(attack()) == "fine"


def test_a_template_that_refuses_is_a_422_in_its_words(tmp_path: Path) -> None:
    folder = tmp_path / "strict"
    shutil.copytree(smollm2(), folder, copy_function=os.link)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    strict = start("--model", str(folder), "--slots", "1", "--threads", "1")
    status, answer = strict.post("/v1/chat/completions", {"messages": HELLO})
    assert (status, answer["error_type"]) == (422, "template_error")
    assert "roles must alternate" in answer["error"]
    alive(strict)
    strict.stop()


@pytest.mark.attack
@pytest.mark.parametrize("damage", ["cut", "header", "offsets", "empty"])
def test_damaged_weights_are_named_and_not_loaded(tmp_path: Path, damage: str) -> None:
    header = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    if damage == "offsets":
        header["a"]["data_offsets"] = [0, 2**60]
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(16)
    broken = {
        "cut": content[:-4],
        "header": (2**50).to_bytes(8, "little") + text,
        "empty": b"",
    }.get(damage, content)
    path = tmp_path / "model.safetensors"
    path.write_bytes(broken)
    with pytest.raises(EngineError, match=r"model\.safetensors"):
        stored_tensors(tmp_path)


def test_a_conversion_cut_short_leaves_nothing_half(tmp_path: Path) -> None:
    from hubkit.local_engine.repo import converted

    def dies(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted(tmp_path, "key", dies)
    assert not list(tmp_path.glob("*.gguf"))

    def lives(path: Path) -> None:
        path.write_bytes(b"whole")

    assert converted(tmp_path, "key", lives).read_bytes() == b"whole"


def test_two_processes_convert_once(tmp_path: Path) -> None:
    from hubkit.local_engine.repo import converted

    calls = []

    def convert(path: Path) -> None:
        calls.append(path)
        time.sleep(0.2)
        path.write_bytes(b"x")

    threads = [
        threading.Thread(target=converted, args=(tmp_path, "key", convert)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
