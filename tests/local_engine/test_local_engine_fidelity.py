"""The engine computes what transformers computes in float32, whatever was asked of it before.

Tolerances: full precision (F32 weights, F16 cache) stays within 0.05 of every log-probability that
matters and picks the same text. Q8_0 is allowed a mean total-variation distance of 0.08 on the
first token; the slow tests print what it really costs on fifty prompts."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from support.engine_server import Running, lora, shared_engine, smollm2, start, trained
from support.paths import SHARED_DATA

TOP = 5
F32_TOLERANCE = 0.05
Q8_MEAN_DISTANCE = 0.08


@pytest.fixture(scope="session")
def engine() -> Running:
    return shared_engine()


@functools.cache
def prompts(count: int) -> list[str]:
    """Real questions, each once."""
    questions = sorted((SHARED_DATA / "fastchat").rglob("*question*.jsonl"))
    if not questions:
        pytest.skip("no benchmark questions here")
    lines = [
        json.loads(line) for path in questions for line in path.read_text("utf-8").splitlines()
    ]
    texts = [line["turns"][0] if "turns" in line else line["text"] for line in lines]
    return [text for text in dict.fromkeys(texts) if len(text) < 400][:count]


@functools.cache
def reference(adapter: str | None) -> tuple[Any, Any]:
    """transformers, float32, and its tokenizer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # threads that wait for each other crawl on a busy machine
    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(folder(adapter)))
    return model.eval(), AutoTokenizer.from_pretrained(
        trained() if adapter == "trained" else smollm2()
    )


def folder(adapter: str) -> Path:
    """Where an adapter lies."""
    return trained() if adapter == "trained" else lora(adapter)


def expected(adapter: str | None, text: str, new_tokens: int = 0) -> tuple[Any, str]:
    """transformers' first-token log-probabilities after `text` as a user's turn, and its greedy
    answer.
    """
    import torch

    model, tokenizer = reference(adapter)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        logprobs = model(**ids, logits_to_keep=1).logits[0, -1].log_softmax(-1)
        answer = ""
        if new_tokens:
            out = model.generate(**ids, max_new_tokens=new_tokens, do_sample=False)
            answer = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return logprobs, answer


def served(
    engine: Running, adapter: str | None, text: str, new_tokens: int
) -> tuple[dict[int, float], str]:
    """The engine's best first tokens (ids) with their log-probabilities, and its greedy answer."""
    model = adapter or "base"
    status, rendered = engine.post(
        "/chat_tokenize", {"model": model, "messages": [{"role": "user", "content": text}]}
    )
    assert status == 200, rendered
    options = {"max_new_tokens": new_tokens, "details": True, "top_n_tokens": TOP}
    body = {
        "inputs": rendered["templated_text"],
        "parameters": {**options, **({"adapter_id": adapter} if adapter else {})},
    }
    status, answer = engine.post("/generate", body)
    assert status == 200, answer
    first = answer["details"]["top_tokens"][0]
    return {item["id"]: item["logprob"] for item in first}, answer["generated_text"]


def differences(
    engine: Running, adapter: str | None, texts: list[str]
) -> list[tuple[float, float]]:
    """Per prompt: the largest log-probability error, and the probability mass that moved, over the
    best tokens.
    """
    found = []
    for text in texts:
        truth, _ = expected(adapter, text)
        top, _ = served(engine, adapter, text, 1)
        pairs = [(logprob, float(truth[token])) for token, logprob in top.items()]
        worst = max(abs(ours - theirs) for ours, theirs in pairs)
        moved = sum(abs(math.exp(ours) - math.exp(theirs)) for ours, theirs in pairs) / 2
        found.append((worst, moved))
    return found


@pytest.mark.parametrize("adapter", [None, "asker"])
def test_full_precision_agrees_with_transformers(engine: Running, adapter: str | None) -> None:
    found = differences(engine, adapter, prompts(4))
    assert max(worst for worst, _ in found) < F32_TOLERANCE
    for text in prompts(2):
        assert served(engine, adapter, text, 12)[1] == expected(adapter, text, 12)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "adapter"), [(d, a) for d in ("f32", "q8_0") for a in (None, "asker", "trained")]
)
def test_fidelity_on_fifty_prompts(dtype: str, adapter: str | None) -> None:
    own = [f"--adapter={adapter}={folder(adapter)}"] if adapter else []
    engine = start(
        "--model", str(smollm2()), *own, "--threads", "1", "--context", "1024", "--dtype", dtype
    )
    found = differences(engine, adapter, prompts(50))
    same = [
        served(engine, adapter, text, 24)[1] == expected(adapter, text, 24)[1]
        for text in prompts(50)[:10]
    ]
    engine.stop()
    worst, moved = max(worst for worst, _ in found), statistics.mean(moved for _, moved in found)
    print(
        f"\n{dtype}, {adapter or 'base'}: worst {worst:.4f}, mean distance {moved:.4f}, "
        f"same text {sum(same)} of 10"
    )
    if dtype == "f32":
        assert worst < F32_TOLERANCE and all(same)
    else:
        assert moved < Q8_MEAN_DISTANCE


@pytest.mark.slow
def test_an_adapters_output_never_depends_on_what_another_computed() -> None:
    """One slot, the same prompt through every adapter, an unlike prompt between two of them:
    llama.cpp's own prompt cache (`cache_ram_mib`) then offers each adapter what another one has
    computed for that very prompt."""
    story = "Tell me about tea, where it grows, who drinks it and why. " * 6
    unlike = "Count: " + ", ".join(str(number) for number in range(60))
    one_slot = ("--slots", "1", "--threads", "1", "--context", "1024", "--dtype", "f32")
    fresh = {}
    for adapter in ("base", "asker", "chat"):
        own = [f"--adapter={adapter}={lora(adapter)}"] if adapter != "base" else []
        alone = start("--model", str(smollm2()), *own, *one_slot)
        fresh[adapter] = served(alone, adapter, story, 12)
        alone.stop()
    both = start(
        "--model",
        str(smollm2()),
        f"--adapter=asker={lora('asker')}",
        f"--adapter=chat={lora('chat')}",
        *one_slot,
    )
    for adapter in ("asker", "chat", "base", "asker", "base", "chat"):
        top, text = served(both, adapter, story, 12)
        assert text == fresh[adapter][1], adapter
        for token, logprob in fresh[adapter][0].items():
            assert abs(top.get(token, -99) - logprob) < F32_TOLERANCE, adapter
        served(both, "base", unlike, 1)
    both.stop()


def test_slots_tell_dialogues_seats_and_adapters_apart() -> None:
    from hubkit.local_engine.engine import Job
    from hubkit.local_engine.slots import SlotPool

    async def play() -> None:
        pool = SlotPool(4, batch_tokens=128)
        system = list(range(30))

        async def turn(prompt: list[int], reply: list[int], adapter: str | None) -> tuple[int, int]:
            job = Job(prompt, 8, adapter=adapter)
            slot = await pool.acquire(job)
            shared = slot.shared_prefix(prompt) if slot.adapter == adapter else 0
            pool.release(slot, job, reply, computed=True)
            return slot.id, shared

        one = [*system, *range(101, 107)]
        first, _ = await turn(one, [1] * 50, "asker")
        other, _ = await turn([*system, *range(200, 250)], [2] * 50, "asker")
        assert other != first, (
            "a dialogue that shares only the system message must not evict another"
        )
        same_prompt, shared = await turn(one, [3] * 50, "chat")
        assert (same_prompt not in (first, other), shared) == (True, 0), (
            "another adapter's cache is never used"
        )
        again, shared = await turn([*one, *[1] * 50, 7, 8, 9], [4], "asker")
        assert (again, shared) == (first, len(one) + 50), (
            "the next turn finds its own slot and all of its prefix"
        )

    asyncio.run(play())


def test_prompts_that_the_engine_is_not_ready_for_wait_where_leaving_costs_nothing() -> None:
    from hubkit.local_engine.engine import Job
    from hubkit.local_engine.slots import Slot, SlotPool

    async def play() -> None:
        pool = SlotPool(4, batch_tokens=128)

        async def settled(*jobs: Job) -> list[asyncio.Task[Slot]]:
            tasks = [asyncio.create_task(pool.acquire(job)) for job in jobs]
            await asyncio.sleep(0)
            return tasks

        long = [Job([seed] * 200, 8, adapter="asker") for seed in range(3)]
        first, gone, last = await settled(*long)
        (chat,) = await settled(Job([9] * 200, 8, adapter="chat"))
        assert chat.done(), "the prompts of another adapter are another batch"
        assert first.done() and (pool.busy, pool.waiting) == (2, 2)

        gone.cancel()
        await asyncio.sleep(0)
        assert (pool.busy, pool.waiting) == (2, 1), "who has left is not counted as waiting"
        pool.begun(first.result())
        assert (await last).id != first.result().id, "the next one is there for the next batch"

        for task, job in zip((first, last), (long[0], long[2]), strict=True):
            pool.release(task.result(), job, [], computed=True)
        short = await settled(*(Job([seed] * 40, 8, adapter="asker") for seed in range(20, 24)))
        assert [task.done() for task in short] == [True, True, True, False], "no slot is left"
        again = await settled(Job([0] * 200 + [1], 8, adapter="asker"))
        pool.release(short[0].result(), long[1], [], computed=False)
        await asyncio.sleep(0)
        assert short[3].done() and not again[0].done(), "in arrival order"

    asyncio.run(play())


def test_the_transformers_engine_serves_the_same_contract() -> None:
    torch_engine = start(
        "--model",
        str(smollm2()),
        f"--adapter=asker={lora('asker')}",
        "--engine",
        "transformers",
        "--context",
        "512",
    )
    assert torch_engine.get("/info")["engine"] == "transformers"
    for adapter in (None, "asker"):
        text = prompts(1)[0]
        assert served(torch_engine, adapter, text, 6)[1] == expected(adapter, text, 6)[1]
    torch_engine.stop()


def test_the_transformers_engine_on_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    cuda = start("--model", str(smollm2()), "--engine", "transformers", "--context", "512")
    top, _ = served(cuda, None, prompts(1)[0], 8)
    truth, _ = expected(None, prompts(1)[0])
    tokenizer = reference(None)[1]
    best = max(top, key=lambda token: top[token])
    assert abs(top[best] - float(truth[tokenizer.encode(best)[0]])) < 0.2  # bfloat16
    cuda.stop()


def test_an_architecture_without_a_conversion_is_served_by_transformers(tmp_path: Path) -> None:
    import shutil

    from transformers import GPTJConfig, GPTJForCausalLM

    config = GPTJConfig(
        vocab_size=49152,
        n_embd=32,
        n_layer=2,
        n_head=2,
        rotary_dim=16,
        n_positions=256,
        eos_token_id=2,
    )
    GPTJForCausalLM(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (smollm2() / name).exists():
            shutil.copy(smollm2() / name, tmp_path / name)
    other = start("--model", str(tmp_path), "--context", "256")
    assert other.get("/info")["engine"] == other.state["engine"] == "transformers"
    assert "no conversion for GPTJForCausalLM" in other.state["engine_reason"]
    status, answer = other.post("/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": 3}})
    assert status == 200, answer
    other.stop()
    refused = start("--model", str(tmp_path), "--engine", "llamacpp", wait=False)
    assert refused.process.wait(240) == 1
    assert "llama.cpp has no conversion for GPTJForCausalLM" in refused.log.read_text()
