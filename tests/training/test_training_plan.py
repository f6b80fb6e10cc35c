"""A plan says what a run will take: held against real small runs, and against the full-size
recipes' shapes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT
from support.tiny_models import tiny_base, write_rows

from hubkit import recipe
from hubkit.errors import RecipeError
from hubkit.recipe import Preference, Training
from hubkit.training import Base, Launch, plan, train
from hubkit.training.estimate import GIB, flops_per_token

ROWS = [
    [
        ("user", f"How do I bake bread {n}?"),
        ("assistant", "Mix flour."),
        ("user", "And rye?" * (1 + n % 5)),
    ]
    for n in range(30)
]
SFT = {
    "num_train_epochs": 2,
    "max_length": 64,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": False,
    "learning_rate": 1e-3,
}
FACTOR = 1.3  # between a planned and a measured peak, either way
LLAMA_2 = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.parquet", [*ROWS, [("user", " ")]])


@pytest.mark.parametrize("lora", [{"r": 4, "target_modules": "all-linear"}, None])
def test_a_plan_agrees_with_the_run_it_plans(tmp_path, data, lora):
    from safetensors import safe_open

    base = tiny_base(tmp_path / "base")
    block = Training(base="acme/tiny", seat="user", lora=lora, sft=SFT)
    planned = plan(block, [data], Base(base, "acme/tiny"), seed=1)
    report = train(
        block,
        [data],
        Base(base, "acme/tiny"),
        tmp_path / "out",
        seed=1,
        work=tmp_path / "work",
    )
    assert (planned.steps, planned.rows) == (report.steps, report.rows["rows_used"])
    assert (planned.tokens, planned.loss_tokens) == (report.tokens, report.loss_tokens)
    assert (
        planned.trainable_parameters == report.trainable_parameters
        and planned.parameters == report.parameters
    )
    assert planned.dropped_share == pytest.approx(1 / 31) and not planned.refusals
    weights = next((tmp_path / "out").glob("*.safetensors"))
    with safe_open(weights, "pt") as file:
        saved = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert saved == planned.trainable_parameters
    assert planned.memory_gib["optimizer"] == pytest.approx(
        8 * planned.trainable_parameters / GIB, abs=1e-3
    )


def test_estimated_operations_are_those_that_a_step_does():
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config)
    ids = torch.zeros(1, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids, labels=ids).loss.backward()
    weights = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    assert counted.get_total_flops() / 32 == pytest.approx(
        flops_per_token(weights, weights, recompute=False), rel=0.1
    )


@pytest.mark.parametrize(
    ("name", "seat", "size"), [("parrot", "asker", "13b"), ("realm", "chat", "7b")]
)
def test_the_papers_recipes_can_be_planned_from_a_config_alone(tmp_path, data, name, seat, size):
    base = tiny_base(tmp_path, "raw")
    shape = {
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "num_key_value_heads": None,
        **LLAMA_2[size],
    }
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**config, **shape, "head_dim": 128, "tie_word_embeddings": False})
    )
    (base / "model.safetensors").unlink()
    block = getattr(recipe.load(name), seat)
    options = {"seed": 1, "device": "A100", "device_gib": 80.0}
    alone = plan(block, [data], Base(base, block.base), **options)
    assert alone.parameters == pytest.approx({"7b": 6.74e9, "13b": 13.0e9}[size], rel=0.01)
    assert "GiB per device are needed and 80 are there" in " ".join(alone.refusals)
    assert "shard it" in " ".join(alone.refusals)
    spread = plan(block, [data], Base(base, block.base), launch=Launch("fsdp2", 8), **options)
    assert spread.memory_gib["optimizer"] == pytest.approx(
        alone.memory_gib["optimizer"] / 8, rel=1e-3
    )
    assert alone.hours and spread.hours == pytest.approx(alone.hours / 8)


PEAK = """
import json, resource, sys
from pathlib import Path
from hubkit.recipe import Preference, Training
from hubkit.training import Base, Policy, train, train_dpo
def rss():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
folder, sft, lora, warm, base, data, pairs = json.loads(sys.argv[1])
def run(name, base):
    if pairs:
        block = Preference(chat={"repo": "acme/tiny"}, lora=lora, dpo=sft)
        return train_dpo(block, [Path(data)], Policy(Base(Path(base), "acme/tiny"), Path(base)),
                         Path(folder) / name, seed=1, work=Path(folder) / (name + "-work"))
    block = Training(base="acme/tiny", seat="user", lora=lora, sft=sft)
    return train(block, [Path(data)], Base(Path(base), "acme/tiny"), Path(folder) / name, seed=1,
                 work=Path(folder) / (name + "-work"))
run("warm", warm)  # what the packages take by themselves
before = rss()
run("out", base)
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


def write_pairs(path: Path) -> Path:
    """Pairs of some 256 tokens a sequence."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    said = {"prompt": ("user", "How do I bake bread? " * 31),
            "chosen": ("assistant", "Mix flour. " * 6),
            "rejected": ("assistant", "Use less water. " * 5)}  # fmt: skip
    row = {name: [{"role": role, "content": text}] for name, (role, text) in said.items()}
    pq.write_table(pa.Table.from_pylist([row] * 8), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 8, "target_modules": "all-linear"}])
@pytest.mark.parametrize(("checkpointing", "pairs"), [(False, False), (True, False), (True, True)])
def test_planned_memory_is_near_a_real_runs_peak(tmp_path, lora, checkpointing, pairs):
    from transformers import LlamaConfig, LlamaForCausalLM

    warm, base = tiny_base(tmp_path / "warm"), tiny_base(tmp_path / "base")
    shape = {
        **json.loads((base / "config.json").read_text()),
        "hidden_size": 512,
        "intermediate_size": 1536,
    }
    shape |= {
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
    }
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(base)
    long = [[("user", "How do I bake bread? " * 60), ("assistant", "Mix flour.")] for _ in range(8)]
    data = (
        write_pairs(tmp_path / "pairs.parquet")
        if pairs
        else write_rows(tmp_path / "long.parquet", long)
    )
    sft = {
        "max_steps": 2,
        "max_length": 256,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
    }
    sft |= {"gradient_checkpointing": checkpointing}
    block = Training(base="acme/tiny", seat="user", lora=lora, sft=sft)
    if pairs:
        sft["per_device_train_batch_size"] = 2  # both answers of a pair go through the model
        block = Preference(chat={"repo": "acme/tiny"}, lora=lora, dpo=sft)
    planned = plan(block, [data], Base(base, "acme/tiny"), seed=1).memory_gib
    call = json.dumps([str(tmp_path), sft, lora, str(warm), str(base), str(data), pairs])
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["MALLOC_MMAP_THRESHOLD_"] = (
        "65536"  # what is freed is given back: the peak is of tensors, not of the allocator
    )
    done = subprocess.run(
        [sys.executable, "-c", PEAK, call], env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split("PEAK ")[1]) / GIB
    print(f"planned {planned}, measured {peak:.3f} GiB")
    assert planned["total"] / FACTOR < peak < planned["total"] * FACTOR


def test_a_context_over_the_bases_own_is_refused(tmp_path, data):
    base = tiny_base(tmp_path)
    block = Training(base="acme/tiny", seat="user", sft={**SFT, "max_length": 1024})
    [reason] = plan(block, [data], Base(base, "acme/tiny"), seed=1).refusals
    assert reason == "sft.max_length 1024 is more than the 512 positions that acme/tiny knows"
    with pytest.raises(RecipeError, match="1024 is more than the 512 positions"):
        train(
            block,
            [data],
            Base(base, "acme/tiny"),
            tmp_path / "out",
            seed=1,
            work=tmp_path / "work",
        )


def test_without_data_a_plan_is_what_the_recipe_expects(tmp_path):
    base = tiny_base(tmp_path)
    expected = {"conversations": 1000, "tokens": 90}
    block = Training(base="acme/tiny", seat="user", sft=SFT, expected=expected)
    made = plan(block, [], Base(base, "acme/tiny"), seed=1)
    assert (made.rows, made.tokens, made.sampled_rows) == (1000, 64_000, 0), (
        "rows are cut at max_length"
    )
    assert made.steps == 1000 / 4 * 2 and made.loss_tokens is None and made.hours > 0
    capped = block.model_copy(update={"max_tokens": 640})
    assert plan(capped, [], Base(base, "acme/tiny"), seed=1).rows == 10
    bare = plan(block.model_copy(update={"expected": None}), [], Base(base, "acme/tiny"), seed=1)
    assert bare.steps is bare.tokens is bare.hours is None and bare.memory_gib == made.memory_gib
