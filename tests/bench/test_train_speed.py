"""Useful tokens per second: this trainer beside stock TRL defaults, on the same rows, in one
process.

``make bench``, or ``pytest -m bench -s tests/bench/test_train_speed.py``, writes
``results/train_speed.json``. Both train the same number of loss-bearing tokens of the same
conversations with the same adapter; stock TRL is what its documentation shows: ``SFTTrainer`` with
``assistant_only_loss`` and its defaults, bf16 off because this machine has none. The two take
turns, so that what else the machine does falls on both.

The laptop's base and corpus are used, made first; BENCH_BASE and BENCH_DATA name a base's folder
and a parquet file instead, BENCH_TINY a model of two layers, to see that it runs (nothing is
written then)."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from figures import spread, write
from support.tiny_models import tiny_base, write_rows

from hubkit.conversation import swap_roles
from hubkit.recipe import Training
from hubkit.training import Base, train

ABOUT = "The trainer beside stock TRL's defaults: the same loss-bearing tokens, turn about."
TINY = bool(os.environ.get("BENCH_TINY"))
ROUNDS, ROWS = int(os.environ.get("BENCH_ROUNDS", "3")), int(os.environ.get("BENCH_ROWS", "16"))
MAX_LENGTH = 384
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
SYSTEM = "You are a person talking with an AI assistant."


@dataclass
class Took:
    """One run: seconds of its training loop, and its tokens, with loss and in all (padding not
    counted).
    """

    seconds: float
    loss_tokens: int
    tokens: int


def given(folder: Path) -> tuple[str, Path, list[list[tuple[str, str]]]]:
    """(name, folder) of the base, and the first rows that there are to train on."""
    import pyarrow.parquet as pq

    if TINY:
        talk = [
            ("user", "How do I bake bread?"),
            ("assistant", "Mix flour and water. " * 20),
            ("user", "And rye?"),
        ]
        rows = [[*talk, ("assistant", "Use less water. " * n)] for n in range(1, ROWS + 1)]
        return "a tiny model", tiny_base(folder / "base"), rows
    name, base, data = (
        os.environ.get("BENCH_BASE", ""),
        Path(),
        Path(os.environ.get("BENCH_DATA", "")),
    )
    if not name:
        from hubkit import pipeline
        from hubkit.hub import connect
        from hubkit.pipeline.stage import WEIGHTS, parquet
        from hubkit.recipe import load

        made, hub = load("parrot", profiles=["laptop"]), connect()
        [corpus] = pipeline.run(made, hub, only="corpus")
        name, data = made.asker.base, parquet(hub, corpus.ref, "train")[0]
        base = hub.snapshot(pipeline.require(hub, name), allow_patterns=WEIGHTS)
    found = pq.read_table(data, columns=["messages"]).slice(0, ROWS).to_pylist()
    return (
        name,
        base if base.name else Path(name),
        [[(m["role"], m["content"]) for m in r["messages"]] for r in found],
    )


def ours(folder: Path, base: Path, data: Path) -> Took:
    sft = {"num_train_epochs": 1, "max_length": MAX_LENGTH, "per_device_train_batch_size": 1}
    sft |= {"gradient_accumulation_steps": 8, "gradient_checkpointing": False}
    block = Training(base="x/y", seat="user", system=SYSTEM, lora=LORA, sft=sft)
    report = train(block, [data], Base(base, "x/y"), folder / "out", seed=1, work=folder / "work")
    return Took(report.tokens / report.tokens_per_second, report.loss_tokens, report.tokens)


def stock(folder: Path, base: Path, rows: list[list[tuple[str, str]]]) -> Took:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from hubkit import chat_templates
    from hubkit.tokenization import load_tokenizer
    from hubkit.training.loading import load_base

    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = chat_templates.for_base(base).source("user", marks=True)
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
    labels = [row["labels"] for row in trainer.train_dataset]
    useful = sum(label != -100 for row in labels for label in row[1:])
    return Took(seconds, useful, sum(map(len, labels)))


@pytest.mark.bench
@pytest.mark.usefixtures("hubkit_home")
def test_useful_tokens_per_second_beside_stock_trl(tmp_path, capsys):
    name, base, rows = given(tmp_path)
    data = write_rows(tmp_path / "train.parquet", rows)
    took: dict[str, list[Took]] = {"hubkit": [], "stock TRL": []}
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        took["hubkit"].append(ours(folder, base, data))
        took["stock TRL"].append(stock(folder, base, rows))
    figures = summary(took)
    with capsys.disabled():
        print(f"\n{name}, {len(rows)} rows: {json.dumps(figures)}")
    assert took["hubkit"][0].loss_tokens == took["stock TRL"][0].loss_tokens, (
        "both must learn from the same tokens"
    )
    if not TINY:
        given_rows = {"base": name, "conversations": len(rows)}
        command = "pytest -m bench tests/bench/test_train_speed.py"
        write("train_speed", ABOUT, command, {**given_rows, **figures}, add=False)


def summary(took: dict[str, list[Took]]) -> dict[str, Any]:
    """Medians of each, and of what hubkit gives over stock TRL in the same round."""
    ratios = [s.seconds / h.seconds for h, s in zip(took["hubkit"], took["stock TRL"], strict=True)]
    speeds = {}
    for name, runs in took.items():
        seconds = median(run.seconds for run in runs)
        speeds[name] = {
            "loss_tokens": runs[0].loss_tokens,
            "tokens": runs[0].tokens,
            "seconds": round(seconds, 2),
            "loss_tokens_per_s": round(runs[0].loss_tokens / seconds, 1),
            "tokens_per_s": round(runs[0].tokens / seconds, 1),
        }
    return {"speed": speeds, "times": spread(ratios, 2)}
