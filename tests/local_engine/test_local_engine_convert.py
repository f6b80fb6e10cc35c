"""Conversion to GGUF: every variant of the Llama family computes what transformers computes; the
rest is refused.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.engine_server import smollm2

from hubkit.local_engine.engine import Job, Step, UnsupportedModelError
from hubkit.local_engine.gguf_lora import convert_lora
from hubkit.local_engine.gguf_model import check_supported, convert_model, read_config
from hubkit.local_engine.llamacpp import LlamaCppEngine

TOLERANCE = 0.02
PROMPT = list(range(300, 340))
SMALL = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "untied, one head per key": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32},
    "linear rotary scaling": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    },
    "llama 3 rotary scaling": {"rope_parameters": LLAMA3},
}


def small_model(folder: Path, **options: Any) -> Any:
    """A random Llama in `folder`, with a real tokenizer; gives the model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, **options})).eval()
    for name, values in model.named_parameters():
        if name.endswith("bias"):
            values.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    shutil.copy(smollm2() / "tokenizer.json", folder / "tokenizer.json")
    return model


def logprobs_of(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def best_of(gguf: Path, adapters: dict[str, Path], adapter: str | None = None) -> Step:
    """The engine's first step after `PROMPT`."""

    async def first() -> Step:
        engine = LlamaCppEngine(gguf, adapters, parallel=1, context=128, threads=1)
        events = [
            event async for event in engine.generate(Job(PROMPT, 1, adapter=adapter, top_n=5))
        ]
        engine.close()
        return next(event for event in events if isinstance(event, Step))

    return asyncio.run(first())


def agrees(step: Step, truth: Any) -> None:
    assert len(step.top) == 5
    for token_id, logprob in step.top:
        assert abs(logprob - float(truth[token_id])) < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_computes_what_transformers_computes(tmp_path: Path, variant: str) -> None:
    model = small_model(tmp_path, **VARIANTS[variant])
    convert_model(tmp_path, tmp_path / "out.gguf", "f32")
    agrees(best_of(tmp_path / "out.gguf", {}), logprobs_of(model, PROMPT))


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 4}}], ids=str
)
def test_an_adapter_computes_what_peft_computes(tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    model = small_model(tmp_path)
    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    peft = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, **options)
    ).eval()
    for name, values in peft.named_parameters():
        if "lora_B" in name:
            values.data.normal_(0, 0.2)
    peft.save_pretrained(tmp_path / "adapter")
    convert_model(tmp_path, tmp_path / "out.gguf", "f32")
    convert_lora(tmp_path / "adapter", read_config(tmp_path), tmp_path / "lora.gguf")
    agrees(
        best_of(tmp_path / "out.gguf", {"a": tmp_path / "lora.gguf"}, "a"),
        logprobs_of(peft, PROMPT),
    )
    with peft.disable_adapter():
        base = logprobs_of(peft, PROMPT)
    agrees(best_of(tmp_path / "out.gguf", {"a": tmp_path / "lora.gguf"}), base)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["Qwen2ForCausalLM"]},
        {"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None},
        {"sliding_window": 128},
        {"hidden_act": "gelu"},
        {"quantization_config": {"bits": 4}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_llama_cpp_would_compute_differently_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="no conversion"):
        check_supported({**read_config(smollm2()), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"alpha_pattern": {"q_proj": 3}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_adapter_that_is_more_than_a_sum_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, **change}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=next(iter(change))):
        convert_lora(tmp_path, read_config(smollm2()), tmp_path / "out.gguf")


_LOADED_AND_FREED = """
import sys
from pathlib import Path
from hubkit.local_engine.llamacpp import LlamaCppEngine
for _ in range(40):
    LlamaCppEngine(Path(sys.argv[1]), {}, parallel=1, context=64, threads=1).close()
"""


def test_an_engine_that_was_asked_for_nothing_can_be_freed(tmp_path: Path) -> None:
    """In a process of its own: where it cannot, it hangs in C++, where no signal reaches it."""
    small_model(tmp_path)
    convert_model(tmp_path, tmp_path / "out.gguf", "f32")
    command = [sys.executable, "-c", _LOADED_AND_FREED, str(tmp_path / "out.gguf")]
    assert subprocess.run(command, timeout=240, check=True).returncode == 0
