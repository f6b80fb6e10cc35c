"""Every architecture that llama.cpp computes: converted, the same greedy tokens as transformers,
base and LoRA.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.tiny_architectures import ARCHITECTURES, tiny_model, with_adapter

from hubkit.local_engine.conversion import adapter_to_gguf, model_to_gguf
from hubkit.local_engine.engine import Job, Step
from hubkit.local_engine.engine_choice import engine_for
from hubkit.local_engine.llamacpp import LlamaCppEngine

CONVERTERS = Path(tempfile.gettempdir()) / f"hubkit-test-models-{os.getuid()}" / "gguf"
PROMPT = [20 + i % 300 for i in range(60)]
NEW_TOKENS = 10
TOLERANCE = 0.02
NEAR_TIE = 0.05  # keys and values are cached as float16
FAST = ("Qwen3", "GPT2")


def greedy(gguf: Path, adapters: dict[str, Path], adapter: str | None) -> list[Step]:
    """What llama.cpp generates after `PROMPT`."""

    async def steps() -> list[Step]:
        engine = LlamaCppEngine(gguf, adapters, parallel=1, context=128, threads=1)
        events = [
            event async for event in engine.generate(Job(PROMPT, NEW_TOKENS, adapter=adapter))
        ]
        engine.close()
        return [event for event in events if isinstance(event, Step)]

    return asyncio.run(steps())


def expected(model: Any) -> list[tuple[int, float, float]]:
    """transformers' greedy tokens after `PROMPT`: id, log-probability, distance to the second."""
    import torch

    ids, steps = list(PROMPT), []
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
            best = logits.topk(2)
            ids.append(int(best.indices[0]))
            steps.append((ids[-1], float(best.values[0]), float(best.values[0] - best.values[1])))
            if ids[-1] == 2:
                break
    return steps


def agrees(steps: list[Step], truth: list[tuple[int, float, float]]) -> None:
    """The same tokens and log-probabilities, up to a near tie."""
    assert len(steps) > 0
    for i, (step, (token, logprob, distance)) in enumerate(zip(steps, truth, strict=False)):
        if step.token_id != token and distance < NEAR_TIE and i >= 3:
            return
        assert step.token_id == token, f"token {i}"
        assert abs(step.logprob - logprob) < TOLERANCE, f"token {i}"
    assert len(steps) == len(truth)


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ARCHITECTURES],
)
def test_llama_cpp_computes_what_transformers_computes(tmp_path: Path, architecture: str) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = tiny_model(architecture, base)
    truth = expected(model)
    peft = with_adapter(model, adapter)
    assert engine_for(base, context=128).engine == "llamacpp"
    assert engine_for(base, (adapter,), context=128).engine == "llamacpp"
    options: dict[str, Any] = {"context": 128, "cache_dir": CONVERTERS}
    model_to_gguf(base, tmp_path / "base.gguf", dtype="f32", **options)
    agrees(greedy(tmp_path / "base.gguf", {}, None), truth)
    adapter_to_gguf(adapter, base, tmp_path / "base.gguf", tmp_path / "lora.gguf", CONVERTERS)
    loras = {"a": tmp_path / "lora.gguf"}
    agrees(greedy(tmp_path / "base.gguf", loras, "a"), expected(peft))
    agrees(greedy(tmp_path / "base.gguf", loras, None), truth)


@pytest.mark.parametrize("flag", [True, False])
def test_an_adapter_of_square_layers_that_are_stored_transposed(tmp_path: Path, flag: bool) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = tiny_model("GPT2", base)
    truth = expected(with_adapter(model, adapter, targets=r".*\.attn\.c_proj", spread=0.5))
    config = adapter / "adapter_config.json"
    written = json.loads(config.read_text("utf-8"))
    assert written["fan_in_fan_out"] is True
    config.write_text(json.dumps({**written, "fan_in_fan_out": flag}), "utf-8")
    model_to_gguf(base, tmp_path / "base.gguf", dtype="f32", context=128, cache_dir=CONVERTERS)
    adapter_to_gguf(adapter, base, tmp_path / "base.gguf", tmp_path / "lora.gguf", CONVERTERS)
    agrees(greedy(tmp_path / "base.gguf", {"a": tmp_path / "lora.gguf"}, "a"), truth)


def test_layers_of_other_bases_are_not_taken_for_transposed_ones(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    with_adapter(tiny_model("Qwen3", base), adapter)
    config = adapter / "adapter_config.json"
    written = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**written, "fan_in_fan_out": True}), "utf-8")
    choice = engine_for(base, (adapter,), context=128)
    assert choice.engine == "transformers" and "fan_in_fan_out=True" in choice.reason


@pytest.mark.parametrize(
    "architecture, size", [("Phi", {"intermediate_size": 96}), ("GPT2", {"n_inner": 96})]
)
def test_layers_that_are_not_four_times_as_wide_as_the_embedding(
    tmp_path: Path, architecture: str, size: dict[str, int]
) -> None:
    model = tiny_model(architecture, tmp_path / "base", **size)
    gguf = tmp_path / "base.gguf"
    model_to_gguf(tmp_path / "base", gguf, dtype="f32", context=128, cache_dir=CONVERTERS)
    agrees(greedy(gguf, {}, None), expected(model))
