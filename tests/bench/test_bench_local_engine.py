"""The embedded engine's figures compared with transformers on the same prompts. Printed, and
written to results/.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from figures import spread, write
from local_engine.test_local_engine_fidelity import prompts
from support.engine_server import Running, lora, smollm2, start

pytestmark = pytest.mark.bench
NEW_TOKENS = 64
IN_FLIGHT = (1, 8, 32)
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
DIALOGUES = int(os.environ.get("BENCH_ENGINE_DIALOGUES", "8"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    cache = str(
        tmp_path_factory.mktemp("gguf")
    )  # its own: it then holds one file, which the bare engine reads too
    running = start(
        "--model", str(smollm2()), "--slots", "32", "--context", "1024", "--cache-dir", cache
    )
    yield running
    running.stop()


def report(name: str, **figures: Any) -> None:
    figures = {
        key: round(value, 3) if isinstance(value, float) else value
        for key, value in figures.items()
    }
    figures["load"] = round(os.getloadavg()[0], 1)
    sys.stderr.write(f"\n{name}: {json.dumps(figures)}\n")
    about = (
        "The embedded engine (SmolLM2-135M-Instruct), "
        "beside transformers on the same prompts in the same run."
    )
    write(
        "local_tgi",
        about,
        "pytest -m bench tests/bench/test_bench_local_engine.py",
        {name: figures},
    )


def questions(count: int, salt: int) -> list[str]:
    """Prompts that no cache has seen: each begins with its own number."""
    return [f"({salt}.{i}) {prompts(80)[i]}" for i in range(count)]


def chat(url: str, text: str, **options: Any) -> dict[str, Any]:
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        **options,
    }
    request = urllib.request.Request(
        url + "/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def tokens_per_s(url: str, texts: list[str], **options: Any) -> float:
    """Output tokens per second of wall time, prefill included, all `texts` at once."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = list(pool.map(lambda text: chat(url, text, **options), texts))
    return sum(a["usage"]["completion_tokens"] for a in answers) / (time.perf_counter() - began)


def batch_tokens_per_s(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """The same from transformers' `generate` on one left-padded batch; what it writes behind an end
    is not counted.
    """
    import torch

    chats = [[{"role": "user", "content": text}] for text in texts]
    began = time.perf_counter()
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
    )
    with torch.inference_mode():
        out = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    elapsed = time.perf_counter() - began
    written = out[:, batch["input_ids"].shape[1] :]
    ended = (written == model.generation_config.eos_token_id).int().cumsum(1).clamp(max=1)
    return float((1 - ended).sum() + ended.amax(1).sum()) / elapsed


def test_the_front_beside_the_bare_engine(engine: Running) -> None:
    """The same prompts straight into the engine, in a process of its own, and through HTTP, turn
    about.

    First of all in this file: later this process holds torch and a model, and HTTP was then seen at
    half its speed."""
    from tokenizers import Tokenizer

    (gguf,) = Path(engine.process.args[engine.process.args.index("--cache-dir") + 1]).glob("*.gguf")
    tokenizer = Tokenizer.from_file(str(smollm2() / "tokenizer.json"))

    def encoded(text: str) -> list[int]:
        rendered = engine.post("/chat_tokenize", {"messages": [{"role": "user", "content": text}]})[
            1
        ]
        return tokenizer.encode(rendered["templated_text"], add_special_tokens=False).ids

    pairs = []
    for r in range(max(5, ROUNDS)):
        texts = questions(8, 900 + r)
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            bare = fresh.apply(bare_tokens_per_s, (gguf, [encoded(text) for text in texts]))
        pairs.append((bare, tokens_per_s(engine.url(), texts)))
    report(
        "front, 8 in flight",
        called_directly_tokens_per_s=spread(bare for bare, _ in pairs),
        over_http_tokens_per_s=spread(served for _, served in pairs),
        http_over_direct=spread(served / bare for bare, served in pairs),
    )


def test_tokens_per_second_beside_transformers_batch(engine: Running) -> None:
    """The same prompts, turn about: the engine over HTTP, and `generate` in this process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2(), padding_side="left")
    chat(engine.url(), "warm up")
    for n in IN_FLIGHT:
        pairs = []
        for r in range(ROUNDS):
            texts = questions(n, 100 * n + r)
            pairs.append(
                (tokens_per_s(engine.url(), texts), batch_tokens_per_s(model, tokenizer, texts))
            )
        report(
            f"{n} in flight",
            engine_tokens_per_s=spread(ours for ours, _ in pairs),
            transformers_tokens_per_s=spread(theirs for _, theirs in pairs),
            engine_over_transformers=spread(ours / theirs for ours, theirs in pairs),
        )


def bare_tokens_per_s(gguf: Path, prompts_ids: list[list[int]]) -> float:
    """The engine alone, in this process, which should be a fresh one."""
    from hubkit.local_engine.engine import Job, Step
    from hubkit.local_engine.llamacpp import LlamaCppEngine

    async def one(direct: LlamaCppEngine, ids: list[int]) -> int:
        return sum(
            [isinstance(event, Step) async for event in direct.generate(Job(ids, NEW_TOKENS))]
        )

    async def everything() -> float:
        direct = LlamaCppEngine(gguf, {}, parallel=32, context=1024)
        await one(direct, [1, 2, 3])
        began = time.perf_counter()
        counts = await asyncio.gather(*[one(direct, ids) for ids in prompts_ids])
        return sum(counts) / (time.perf_counter() - began)

    return asyncio.run(everything())


def test_transformers_serve() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        str(smollm2()),
        "--port",
        str(port),
    ]
    serving = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                chat(url, "warm up", model=str(smollm2()), max_tokens=2)
                break
            except OSError:
                if serving.poll() is not None:
                    pytest.skip("transformers serve does not start here")
                time.sleep(0.5)
        for n in (1, 8):
            speeds = [
                tokens_per_s(url, questions(n, 100 * n + r), model=str(smollm2()))
                for r in range(ROUNDS)
            ]
            report(f"transformers serve, {n} in flight", tokens_per_s=spread(speeds))
    finally:
        serving.terminate()
        serving.wait(20)


def test_many_turns_from_both_seats_re_use_their_prefixes() -> None:
    """8 dialogues × 5 turns × both seats, two adapters on one base: the share of prompt tokens not
    computed again.
    """
    both = start(
        "--model", str(smollm2()),
        f"--adapter=asker={lora('asker')}", f"--adapter=chat={lora('chat')}",
        "--listen=127.0.0.1:0=asker", "--listen=127.0.0.1:0=chat",
        "--slots", "16", "--context", "2048",
    )  # fmt: skip
    turns, prompts_sent = 5, Counter[str]()
    must_compute = Counter[
        str
    ]()  # prompt tokens that this seat has neither read nor written in this dialogue before

    def dialogue(number: int) -> int:
        system = {
            "role": "system",
            "content": f"You are person {number} and you ask about {prompts(8)[number][:80]}.",
        }
        said: list[str] = []
        written, known = 0, {"asker": 0, "chat": 0}
        for turn in range(2 * turns):
            asking = turn % 2 == 0
            seat = "asker" if asking else "chat"
            roles = ("assistant", "user") if asking else ("user", "assistant")
            messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
            body = {
                "messages": [system, *messages] if asking else messages,
                "max_tokens": 48,
                "temperature": 0.7,
                "seed": number,
            }
            status, answer = both.post("/v1/chat/completions", body, seat)
            assert status == 200, answer
            usage = answer["usage"]
            prompts_sent[seat] += usage["prompt_tokens"]
            must_compute[seat] += usage["prompt_tokens"] - known[seat]
            known[seat] = usage["prompt_tokens"] + usage["completion_tokens"]
            said.append(answer["choices"][0]["message"]["content"].strip() or "Go on.")
            written += usage["completion_tokens"]
        return written

    began = time.perf_counter()
    with ThreadPoolExecutor(DIALOGUES) as pool:
        tokens = sum(pool.map(dialogue, range(DIALOGUES)))
    elapsed = time.perf_counter() - began
    with urllib.request.urlopen(both.url("asker") + "/metrics") as answer:
        lines = answer.read().decode().splitlines()
    counters = {
        name: float(value)
        for name, value in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))
    }
    shares = {
        adapter: counters[f'hubkit_prompt_tokens_cached_total{{adapter="{adapter}"}}']
        / counters[f'hubkit_prompt_tokens_total{{adapter="{adapter}"}}']
        for adapter in ("asker", "chat")
    }
    both.stop()
    possible = {seat: 1 - must_compute[seat] / prompts_sent[seat] for seat in shares}
    report(
        f"{DIALOGUES} dialogues × 5 turns × both seats",
        cached_share_asker=shares["asker"],
        cached_share_chat=shares["chat"],
        possible_share_asker=possible["asker"],
        possible_share_chat=possible["chat"],
        tokens_per_s=tokens / elapsed,
        turns_per_s=2 * DIALOGUES * turns / elapsed,
    )
    assert all(shares[seat] > possible[seat] - 0.05 for seat in shares), (shares, possible)


def test_starts(tmp_path: Path) -> None:
    arguments = ("--model", str(smollm2()), "--slots", "16", "--cache-dir", str(tmp_path))
    times = []
    for _ in range(3):
        running = start(*arguments)
        times.append(running.start_s)
        memory = psutil.Process(running.process.pid).memory_info().rss / 2**20
        running.stop()
    report("start", cold_s=times[0], warm_s=spread(times[1:]), rss_mib=round(memory))


def test_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    cuda = start("--model", str(smollm2()), "--engine", "transformers", "--slots", "32")
    for n in IN_FLIGHT:
        speeds = [tokens_per_s(cuda.url(), questions(n, 100 * n + r)) for r in range(ROUNDS)]
        report(f"transformers engine on CUDA, bfloat16, {n} in flight", tokens_per_s=spread(speeds))
    cuda.stop()
