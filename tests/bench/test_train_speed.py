"""Useful tokens per second: this trainer beside stock TRL defaults, on the same rows, in one process.

Run with ``make bench`` (or ``pytest -m bench -s tests/bench/test_train_speed.py``). Both train the same number of
loss-bearing tokens of the same conversations with the same adapter; stock TRL is what its documentation shows:
``SFTTrainer`` with ``assistant_only_loss`` and its defaults, bf16 off because this machine has none. The two take
turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median

import pytest
from tiny_models import tiny_base, write_rows

from hubkit.recipe import Training
from hubkit.schema import swap_roles
from hubkit.train import train

BASE = os.environ.get("BENCH_BASE")  # a folder with SmolLM2-135M-Instruct, for figures that mean something
DATA = os.environ.get("BENCH_DATA")  # a parquet file with real conversations
ROUNDS, ROWS = int(os.environ.get("BENCH_ROUNDS", "3")), int(os.environ.get("BENCH_ROWS", "16"))
MAX_LENGTH = 384
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
SYSTEM = "You are a person talking with an AI assistant."


def conversations() -> list[list[tuple[str, str]]]:
    import pyarrow.parquet as pq

    if DATA:
        rows = pq.read_table(DATA, columns=["messages"]).slice(0, ROWS).to_pylist()
        return [[(m["role"], m["content"]) for m in row["messages"]] for row in rows]
    talk = [("user", "How do I bake bread?"), ("assistant", "Mix flour, water and yeast. " * 20), ("user", "And rye?")]
    return [[*talk, ("assistant", "Use less water. " * n)] for n in range(1, ROWS + 1)]


def ours(folder: Path, base: Path, data: Path) -> tuple[float, int]:
    sft = {"num_train_epochs": 1, "max_length": MAX_LENGTH, "per_device_train_batch_size": 1}
    sft |= {"gradient_accumulation_steps": 8, "gradient_checkpointing": False}
    block = Training(base="x/y", seat="user", system=SYSTEM, lora=LORA, sft=sft)
    report = train(block, [data], base, folder / "out", base_repo_id="x/y", seed=1, work=folder / "work")
    return report.tokens / report.tokens_per_second, report.loss_tokens


def stock(folder: Path, base: Path, rows: list[list[tuple[str, str]]]) -> tuple[float, int]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from hubkit import chat_template
    from hubkit.train.loading import load_base, load_tokenizer

    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = chat_template.for_training(base, "user")
    system = [{"role": "system", "content": SYSTEM}]
    views = [system + swap_roles({"role": r, "content": c} for r, c in row) for row in rows]
    config = SFTConfig(
        str(folder / "stock"),
        num_train_epochs=1,
        max_length=MAX_LENGTH,
        assistant_only_loss=True,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        load_base(base, adapter=False),
        config,
        train_dataset=Dataset.from_list([{"messages": view} for view in views]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    return seconds, sum(label != -100 for row in trainer.train_dataset for label in row["labels"][1:])


@pytest.mark.bench
def test_useful_tokens_per_second_beside_stock_trl(tmp_path, capsys):
    base = Path(BASE) if BASE else tiny_base(tmp_path / "base")
    rows = conversations()
    data = write_rows(tmp_path / "train.parquet", rows)
    seconds: dict[str, list[float]] = {"hubkit": [], "stock TRL": []}
    tokens: dict[str, int] = {}
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, (took, useful) in (
            ("hubkit", ours(folder, base, data)),
            ("stock TRL", stock(folder, base, rows)),
        ):
            seconds[name].append(took)
            tokens[name] = useful
    with capsys.disabled():
        for name, took in seconds.items():
            speed = tokens[name] / median(took)
            print(
                f"\n{name}: {tokens[name]} loss-bearing tokens, median {median(took):.1f} s, {speed:.0f} useful/s",
                end="",
            )
        print(f"\nratio {median(seconds['stock TRL']) / median(seconds['hubkit']):.2f} on {BASE or 'a tiny model'}")
    assert tokens["hubkit"] == tokens["stock TRL"], "both must learn from the same tokens"
