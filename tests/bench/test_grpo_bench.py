"""Seconds of a GRPO step, and the share of them in generation: this run beside TRL's own script.

``make bench``, or ``pytest -m bench -s tests/bench/test_grpo_bench.py``, writes
``results/grpo.json``. Both train the same adapter on the same openings with the same number of
answers of the same length and the same reward; TRL's own is what its documentation shows:
``GRPOTrainer`` with a reward function over prompts. The two take turns, so that what else the
machine does falls on both. Conversations have one answer here, as TRL's have: askers add their own
time, which a run's report states (``seconds_by_part``).

The laptop's base is trained; BENCH_BASE names a base's folder instead, BENCH_TINY a model of two
layers, to see that it runs (nothing is written then)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from figures import spread, write
from support.tiny_models import tiny_base, write_rows

from hubkit.recipe import Reinforce, SeatConfig
from hubkit.reinforcement import (
    REWARDS,
    AskerSeat,
    Episode,
    GRPOTask,
    Opening,
    RewardContext,
    register,
    reinforce,
)
from hubkit.serving import ServedModel
from hubkit.training import Base

ABOUT = "GRPO beside TRL's own script: seconds of a step, and the share of them in generation."
TINY = bool(os.environ.get("BENCH_TINY"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
STEPS, TOKENS = 3, 16 if TINY else 48
LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
GRPO = {
    "max_steps": STEPS, "num_generations": 4, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "max_completion_length": TOKENS, "learning_rate": 1e-5,
    "beta": 0.001, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
    "save_strategy": "no", "disable_tqdm": True,
}  # fmt: skip
OPENINGS = [f"How do I bake bread of kind {i}? Tell me the steps." for i in range(8)]
SEAT: dict[str, Any] = {"endpoints": ["http://127.0.0.1:9"], "repo": None, "name": "nobody",
                        "license": "none", "profile": "openai", "model": "none"}  # fmt: skip


@dataclass
class Clock:
    """What a run took in all of its steps, and in generation."""

    steps_s: float = 0.0
    generation_s: float = 0.0
    tokens: int = 0
    calls: list[int] = field(default_factory=list)

    def watch(self, trainer: Any) -> None:
        """Time the training and the generation of `trainer`."""
        generate, step = trainer._generate_single_turn, trainer.training_step

        def generated(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            ids, logprobs = generate(*args, **kwargs)
            self.generation_s += time.perf_counter() - started
            self.tokens += sum(map(len, ids))
            return ids, logprobs

        def stepped(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            loss = step(*args, **kwargs)
            self.steps_s += time.perf_counter() - started
            return loss

        trainer._generate_single_turn, trainer.training_step = generated, stepped


def ours(base: Path, folder: Path) -> Clock:
    """hubkit's run, of one answer a conversation."""
    clock = Clock()
    block = Reinforce(
        askers={"asker": SeatConfig(**SEAT)}, answers=1, openings=len(OPENINGS), held_out=0,
        context=512, rewards=[{"name": "bench_words"}], lora=LORA, grpo=GRPO, flat_batches=99,
    )  # fmt: skip
    nobody = AskerSeat("asker", ServedModel.at("http://127.0.0.1:9"), SeatConfig(**SEAT))
    openings = [Opening(str(i), text) for i, text in enumerate(OPENINGS)]
    rewards = RewardContext(folder / "rewards")
    task = GRPOTask(block, base, base, [nobody], rewards, openings, [], folder / "journal", {})
    make = task.trainer

    def trainer(*args: Any) -> Any:
        made = make(*args)
        clock.watch(made)
        return made

    task.trainer = trainer  # type: ignore[method-assign]
    data = [write_rows(folder / "openings.parquet", [[("user", "Hi")]])]
    reinforce(task, data, Base(base, "x/base"), folder / "out", seed=1, work=folder / "work")
    return clock


def stock(base: Path, folder: Path) -> Clock:
    """TRL's own, as its documentation shows it."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from hubkit.chat_templates import for_base

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = for_base(base).source("assistant")
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in OPENINGS]

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(len(completion[0]["content"].split()) % 7) for completion in completions]

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
        reward_funcs=reward,
        args=GRPOConfig(str(folder / "stock"), use_cpu=True, seed=1, **GRPO),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )
    clock = Clock()
    clock.watch(trainer)
    trainer.train()
    return clock


def chat_model(folder: Path) -> tuple[str, Path]:
    """(name, folder) of the model that is trained: the laptop's own."""
    if TINY:
        return "a tiny model", tiny_base(folder / "base")
    if named := os.environ.get("BENCH_BASE"):
        return Path(named).name, Path(named)
    from hubkit import pipeline
    from hubkit.hub import connect
    from hubkit.pipeline.stage import WEIGHTS
    from hubkit.recipe import load

    hub, name = connect(), load("parrot", profiles=["laptop"]).chat.base
    return name, hub.snapshot(pipeline.require(hub, name), allow_patterns=WEIGHTS)


@pytest.mark.bench
def test_grpo_steps_beside_trl_s_own(tmp_path: Path) -> None:
    @register
    def bench_words() -> Callable[[Episode], float]:
        return lambda episode: float(len(episode.answers[0].split()) % 7)

    name, base = chat_model(tmp_path)
    clocks: dict[str, list[Clock]] = {"hubkit": [], "trl": []}
    try:
        for number in range(ROUNDS):
            for arm, run in (("hubkit", ours), ("trl", stock)):
                folder = tmp_path / f"{arm}-{number}"
                folder.mkdir()
                clocks[arm].append(run(base, folder))
    finally:
        del REWARDS["bench_words"]
    found = {
        arm: {
            "seconds_a_step": spread(clock.steps_s / STEPS for clock in runs),
            "share_in_generation": spread(clock.generation_s / clock.steps_s for clock in runs),
            "tokens_generated": spread(clock.tokens for clock in runs),
        }
        for arm, runs in clocks.items()
    }
    print(found)
    if not TINY:
        write("grpo", ABOUT, "pytest -m bench tests/bench/test_grpo_bench.py",
              {"base": name, "steps": STEPS, **found}, "trl", "transformers", "torch")  # fmt: skip
