"""Every architecture trains by LoRA, merges, and is loaded by stock libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import ARCHITECTURES, tiny_model_of, write_rows

from hubkit.chat_templates import for_base
from hubkit.conversation import swap_roles
from hubkit.recipe import Training
from hubkit.training import Base, plan, train

FAST = ("qwen3", "gemma3_text", "gpt2", "mamba")
ROWS = [
    [("user", f"How do I bake bread {i}?"), ("assistant", "Mix flour."), ("user", "And rye?")]
    for i in range(4)
]
SFT = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
SFT |= {"max_length": 64, "warmup_steps": 0, "max_grad_norm": 1.0}


@pytest.mark.parametrize(
    "model_type",
    [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES],
)
def test_an_architecture_trains_merges_and_loads(tmp_path, model_type):
    base = tiny_model_of(tmp_path / "base", model_type)
    data = write_rows(tmp_path / "rows.parquet", ROWS)
    # of a Mamba, PEFT refuses the output projection
    targets = ["in_proj", "x_proj"] if model_type == "mamba" else "all-linear"
    lora = {"r": 4, "target_modules": targets}
    block = Training(base="acme/tiny", seat="user", lora=lora, sft=SFT)
    made = plan(block, [data], Base(base, "acme/tiny"), seed=1)
    assert made.refusals == [] and made.trainable_parameters
    adapter = trained(tmp_path / "adapter", block, data, base)
    merged = trained(
        tmp_path / "merged", block.model_copy(update={"merge_adapter": True}), data, base
    )
    before, by_adapter, whole = logits(base, adapter, merged)
    assert (by_adapter - before).abs().max() > 1e-4, "training changed something"
    assert (by_adapter - whole).abs().max() < 2e-2 * before.abs().max(), "merged is the same model"


def trained(folder: Path, block: Training, data: Path, base: Path) -> Path:
    """The folder of a model trained on `data`."""
    out = folder / "out"
    report = train(block, [data], Base(base, "acme/tiny"), out, seed=1, work=folder / "work")
    assert report.steps == 2 and report.final_loss is not None
    return out


def logits(base: Path, adapter: Path, merged: Path) -> tuple[Any, Any, Any]:
    """What the base, the base under the adapter and the merged model say, as stock loaders read
    them."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    view = swap_roles({"role": role, "content": content} for role, content in ROWS[0][:2])
    text = tokenizer.apply_chat_template(view, tokenize=False, add_generation_prompt=True)
    assert text == for_base(base).prompt(view, "user")
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
        below = AutoModelForCausalLM.from_pretrained(base)
        by_adapter = PeftModel.from_pretrained(below, str(adapter)).eval()(ids).logits
        whole = AutoModelForCausalLM.from_pretrained(merged).eval()(ids).logits
    return before, by_adapter, whole
