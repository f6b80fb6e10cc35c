"""Training on a GPU: tokens/s, memory and model FLOPs utilisation. Skipped, with the reason, where
there is none.

Run with ``make bench-gpu`` (or ``pytest -m bench -s tests/bench/test_train_gpu.py``). Weights are
random, from a configuration: speed does not depend on them. Writes ``results/train_gpu.json``. The
goal for the 13B shape is 50 % utilisation."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from figures import RESULTS, write
from support.tiny_models import tiny_tokenizer

from hubkit.training.estimate import GIB, PEAK_TFLOPS, flops_per_token

ABOUT = "Training on one GPU, packed rows of random tokens: speed, memory, model FLOPs utilisation."
SHAPES = {
    "SmolLM2-135M, full": {
        "shape": {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
        "lora": None,
        "batch": 8,
        "length": 4096,
        "checkpointing": False,
    },
    "LLaMA-2-13B, LoRA": {
        "shape": {
            "vocab_size": 32000,
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "tie_word_embeddings": False,
        },
        "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "batch": 4,
        "length": 4096,
        "checkpointing": True,
    },
}
WARM_UP, STEPS = 3, 10


@pytest.mark.bench
@pytest.mark.parametrize("name", SHAPES)
def test_tokens_memory_and_utilisation(name, tmp_path, capsys):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU on this machine")
    measured = measure(tmp_path, **SHAPES[name])
    device = torch.cuda.get_device_name(0)
    with capsys.disabled():
        print(f"\n{name} on {device}: " + ", ".join(f"{k} {v:.3g}" for k, v in measured.items()))
    path = RESULTS / "train_gpu.json"
    known = json.loads(path.read_text("utf-8"))["shapes"] if path.exists() else {}
    share = measured["utilisation"] if math.isfinite(measured["utilisation"]) else None
    known[name] = {"device": device, **measured, "utilisation": share}
    write("train_gpu", ABOUT, "make bench-gpu", {"shapes": known}, add=False)
    assert measured["tokens/s"] > 0


def measure(
    folder: Path, *, shape: dict, lora: dict | None, batch: int, length: int, checkpointing: bool
) -> dict:
    """Train on packed rows of random tokens; the first steps are not counted."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
    from trl import SFTConfig

    from hubkit.training.trainer import trainer_class

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (WARM_UP, WARM_UP + STEPS):
                torch.cuda.synchronize()
                marks.append(time.monotonic())

    marks: list[float] = []
    config = LlamaConfig(max_position_embeddings=length, use_cache=False, **shape)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16 if lora else torch.float32)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    rows = [torch.randint(10, 400, (length,)).tolist() for _ in range(batch * (WARM_UP + STEPS))]
    sft = SFTConfig(
        str(folder),
        max_steps=WARM_UP + STEPS,
        per_device_train_batch_size=batch,
        max_length=length,
        packing=True,
        bf16=True,
        gradient_checkpointing=checkpointing,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
    )
    trainer = trainer_class()(
        model=model,
        args=sft,
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        processing_class=tiny_tokenizer(folder),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora) if lora else None,
        callbacks=[Clock()],
    )
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    speed = STEPS * batch * length / (marks[1] - marks[0])
    total = sum(p.numel() for p in trainer.model.parameters())
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    needed = flops_per_token(total, trained, recompute=False)  # utilisation counts no recomputation
    peak = next(
        (v for part, v in PEAK_TFLOPS.items() if part in torch.cuda.get_device_name(0)),
        float("nan"),
    )
    return {
        "tokens/s": speed,
        "GiB": torch.cuda.max_memory_allocated() / GIB,
        "utilisation": speed * needed / (peak * 1e12),
    }
