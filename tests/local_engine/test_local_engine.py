"""The embedded engine from outside: a process, its addresses, TGI's routes."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from support.engine_server import Running, lora, shared_engine, smollm2, start
from support.waiting import until

OPEN = [{"role": "user", "content": "Write one sentence about the sea."}]
HELLO = [
    {"role": "system", "content": "Answer."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="session")
def engine() -> Running:
    return shared_engine()


def chat(engine: Running, messages=HELLO, serves: str = "base", **options):
    status, answer = engine.post(
        "/v1/chat/completions",
        {"messages": messages, "max_tokens": 16, "temperature": 0, **options},
        serves,
    )
    assert status == 200, answer
    return answer


def text_of(answer) -> str:
    return answer["choices"][0]["message"]["content"]


def test_state_file_says_where_what_and_which_commit(engine: Running) -> None:
    assert set(engine.state["addresses"]) == {"base", "asker", "chat"}
    assert engine.state["pid"] == engine.process.pid
    info = engine.get("/info")
    assert info["model_sha"] == engine.state["revision"]
    assert info["max_total_tokens"] == 1024
    assert set(info["adapters"]) == {"asker", "chat"}


def test_chat_answers_with_usage(engine: Running) -> None:
    answer = chat(engine)
    assert "Paris" in text_of(answer)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_stream_spells_the_same_text_and_ends_with_done(engine: Running) -> None:
    whole = text_of(chat(engine))
    body = {"messages": HELLO, "max_tokens": 16, "temperature": 0, "stream": True}
    request = urllib.request.Request(
        engine.url() + "/v1/chat/completions", data=json.dumps(body).encode()
    )
    with urllib.request.urlopen(request) as answer:
        events = [
            line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")
        ]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == whole
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (
        len(chunks) - 1
    ) + ["stop"]


def test_an_address_serves_its_adapter_by_default_and_any_by_name(engine: Running) -> None:
    texts = {
        serves: text_of(chat(engine, OPEN, serves=serves)) for serves in ("base", "asker", "chat")
    }
    assert len(set(texts.values())) == 3
    assert text_of(chat(engine, OPEN, model="asker")) == texts["asker"]
    assert text_of(chat(engine, OPEN, serves="asker", model="base")) == texts["base"]
    assert text_of(chat(engine, OPEN, serves="chat", model="tgi")) == texts["chat"]
    status, answer = engine.post(
        "/generate", {"inputs": "Hi", "parameters": {"adapter_id": "nobody"}}
    )
    assert (status, answer["error_type"]) == (422, "validation")


def test_the_next_turn_computes_only_what_is_new(engine: Running) -> None:
    messages = [{"role": "user", "content": "Tell me about the history of bread, please."}]
    first = chat(engine, messages)
    messages += [
        {"role": "assistant", "content": text_of(first)},
        {"role": "user", "content": "And of cheese?"},
    ]
    second = chat(engine, messages)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"]
    assert second["usage"]["prompt_tokens"] - cached < 40


def test_a_final_assistant_message_is_continued(engine: Running) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "The capital of France is"}]
    status, prompt = engine.post("/chat_tokenize", {"messages": messages})
    assert status == 200
    assert prompt["templated_text"].endswith("The capital of France is")
    assert text_of(chat(engine, messages, max_tokens=4)).lstrip().startswith("Paris")


def test_characters_in_pieces_arrive_whole(engine: Running) -> None:
    prompt = "Emoji: 🎉 😀 🚀 🎉 😀 🚀 🎉 😀"
    parameters = {"max_new_tokens": 24, "details": True}
    status, answer = engine.post("/generate", {"inputs": prompt, "parameters": parameters})
    assert status == 200
    assert answer["details"]["generated_tokens"] == len(answer["details"]["tokens"]) == 24
    assert "🚀" in answer["generated_text"]
    assert "�" not in answer["generated_text"]


def test_stop_sequence_is_kept_and_named(engine: Running) -> None:
    parameters = {"max_new_tokens": 40, "stop": ["Paris"], "details": True}
    status, answer = engine.post(
        "/generate", {"inputs": "The capital of France is", "parameters": parameters}
    )
    assert status == 200
    assert answer["generated_text"].endswith("Paris")
    assert answer["details"]["finish_reason"] == "stop_sequence"


def test_what_outgrows_the_context_is_refused_up_front(engine: Running) -> None:
    status, answer = engine.post(
        "/generate", {"inputs": "word " * 900, "parameters": {"max_new_tokens": 400}}
    )
    assert (status, answer["error_type"]) == (422, "validation")
    assert "must be <= 1024" in answer["error"]


def test_warm_start_needs_no_conversion(tmp_path: Path) -> None:
    cold = start(
        "--model", str(smollm2()), "--slots", "1", "--threads", "1", "--cache-dir", str(tmp_path)
    )
    cold.stop()
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.gguf")}
    warm = start(
        "--model", str(smollm2()), "--slots", "1", "--threads", "1", "--cache-dir", str(tmp_path)
    )
    warm.stop()
    assert files == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.gguf")}
    assert not list(tmp_path.glob("*.part"))


def test_an_adapter_repo_alone_is_served_on_its_base(tmp_path: Path) -> None:
    engine = start(
        "--model", str(lora("asker")), "--slots", "1", "--threads", "1", "--dtype", "f32"
    )
    assert engine.get("/info", lora("asker").name)["model_id"] == str(smollm2())
    assert text_of(chat(engine, OPEN, serves=lora("asker").name)) == text_of(
        chat(shared_engine(), OPEN, serves="asker")
    )
    engine.stop()


def test_the_process_dies_with_its_parent() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from support import engine_server as e; "
        "import os, signal;r = e.start('--model', str(e.smollm2()), '--slots', '1'); "
        "print(r.process.pid, flush=True);os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False
    )
    pid = int(done.stdout)
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_stopping_removes_the_state_file(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    engine = start(
        "--model",
        str(smollm2()),
        "--slots",
        "1",
        "--threads",
        "1",
        "--state-file",
        str(state),
        wait=False,
    )
    until(state.exists)
    assert json.loads(state.read_text())["pid"] == engine.process.pid
    engine.stop()
    assert engine.process.returncode == 0
    assert not state.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "/nowhere/at/all"], "not at"),
        (["--model", "{model}", "--listen", "127.0.0.1:0=ghost"], "ghost"),
        (["--model", "{model}", "--adapter", "x={model}"], "adapter"),
    ],
)
def test_a_start_that_cannot_work_says_why_in_a_sentence(arguments: list[str], said: str) -> None:
    arguments = [argument.replace("{model}", str(smollm2())) for argument in arguments]
    engine = start(*arguments, wait=False, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert engine.process.wait(240) == 1
    log = engine.log.read_text()
    assert said in log
    assert "Traceback" not in log
