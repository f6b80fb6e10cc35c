"""Preference pairs and the optimised model, end to end and small: killed in both stages, and on
from there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.loading import datasets_of, splits_of
from support.mock_endpoint import Handle, mock
from support.tiny_models import tiny_base, write_rows

from hubkit.hub import Ref, connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
TALK = [("user", "How do I bake bread?"), ("assistant", "Mix flour."), ("user", "What about rye?")]
SFT = {
    "num_train_epochs": 1,
    "max_length": 128,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
}
RUN = [sys.executable, "-m", "hubkit"]


@pytest.fixture(scope="module")
def answers() -> Iterator[Handle]:
    """The model that answers without the context, slowly enough to be killed in the middle."""
    with mock(latency=0.15, deterministic=True) as server:
        yield server


@pytest.fixture(scope="module")
def recipe(
    hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory, answers: Handle
) -> Iterator[list[str]]:
    """The arguments of a small recipe with a preference block; a tiny base, and mocks in the seats
    of the rollout.
    """
    folder = tmp_path_factory.mktemp("preferring")
    hub = connect()
    base = hub.qualify("preferring-base")
    hub.commit(base, tiny_base(folder / "base"), "A tiny base")
    rows = [[*TALK, ("assistant", f"Use less water, {n} times.")] for n in range(24)]
    write_rows(folder / "chats.parquet", rows)
    training = {
        "lora": {"r": 4, "target_modules": "all-linear"},
        "sft": {**SFT, "bf16": False, "packing": False},
    }
    with mock() as asker, mock() as chat:
        asker.script(texts=["And how long does it take?"])
        block = {
            "chat": {"repo": base, "endpoints": [answers.url]},
            "pairs": 45,
            "in_flight": 2,
            "checkpoint_minutes": 1e-9,
            "dpo": {"num_train_epochs": 3, "max_length": 96, "per_device_train_batch_size": 2,
                    "bf16": False, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
                    "logging_steps": 1, "beta": 0.1},
        }  # fmt: skip
        changes: dict[str, Any] = {
            "corpus.sources": [{"path": str(folder / "chats.parquet"), "license": "other"}],
            "corpus.filters": [],
            "corpus.openings": 8,
            "corpus.test": 4,
            "asker": {"base": base, "seat": "user", **training},
            "chat": {"base": base, "seat": "assistant", **training},
            "rollout.asker": {"repo": "asker", "endpoints": [asker.url]},
            "rollout.chat": {"repo": base, "endpoints": [chat.url]},
            "rollout.dialogues": 8,
            "rollout.turns": {"kind": "fixed", "value": 3},
            "rollout.retry_on": [],
            "curate.filters": [],
            "preference": block,
            "eval.conversations": 3,
            "eval.max_tokens": 256,
            "eval.scorecard": None,  # asks for longer turns than so small a base can say
            "eval.against": {
                "openings": 4, "turns": 2, "rewards": [{"name": "format"}], "context": 512,
                "sampling": {"max_tokens": 12}, "chat_sampling": {"max_tokens": 12},
            },
            "repos": {name: f"preferring-{name}" for name in
                      ("corpus", "asker", "dialogues", "chat", "results", "preference", "aligned")},
        }  # fmt: skip
        yield [
            "parrot",
            *[part for k, v in changes.items() for part in ("--set", f"{k}={json.dumps(v)}")],
        ]


def kill_when(arguments: list[str], is_there: Any, log: Path) -> None:
    """Start a command and kill it as soon as `is_there` says so."""
    with log.open("ab") as out:
        driver = subprocess.Popen([*RUN, *arguments], stdout=out, stderr=out)
    deadline = time.monotonic() + 400
    while not is_there():
        assert driver.poll() is None and time.monotonic() < deadline, log.read_text(
            "utf-8", "replace"
        )[-3000:]
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def journal(home: Path) -> int:
    """Replies on disk so far."""
    return sum(
        len(p.read_bytes().splitlines())
        for p in home.glob("runs/parrot-prefer-*/scratch/journal/*.jsonl")
    )


@pytest.fixture(scope="module")
def loop(recipe: list[str], hubkit_home: Path) -> dict[str, Any]:
    """What ``hubkit run --json`` printed, after a kill in the middle of each of the two stages."""
    log = hubkit_home / "preferring.log"
    kill_when(["run", *recipe], lambda: journal(hubkit_home) > 6, log)
    marks = "runs/parrot-align-*/scratch/*/checkpoint-[2-9]/hubkit-complete"
    kill_when(["run", *recipe], lambda: list(hubkit_home.glob(marks)), log)
    done = subprocess.run(
        [*RUN, "run", *recipe, "--json"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def stages(loop: dict[str, Any]) -> dict[str, Any]:
    return {stage["stage"]: stage for stage in loop["stages"]}


def at(stage: dict[str, Any]) -> Ref:
    return Ref(stage["repo_id"], stage["repo_type"], stage["revision"])


def test_nothing_is_asked_for_twice_and_training_went_on_from_its_checkpoint(
    stages: dict[str, Any], answers: Handle
) -> None:
    made, aligned = stages["prefer"]["report"], stages["align"]["report"]
    asked = [entry["ask"] for entry in answers.ledger()]
    assert (
        made["wanted"] == 45 == made["pairs"] + sum(made["dropped"].values()) and made["pairs"] > 30
    )
    # What was in flight when it was killed may be asked for again: two requests at most.
    assert made["from_journal"] >= 6 and made["wanted"] <= len(asked) <= made["wanted"] + 2
    assert aligned["resumed_from_step"] >= 2 and aligned["rows"]["pairs_used"] > 30
    for name in ("prefer", "align"):
        titles = [
            c.title
            for c in connect().api.list_repo_commits(
                at(stages[name]).repo_id, repo_type=stages[name]["repo_type"]
            )
        ]
        assert len([title for title in titles if f"[{name}:" in title]) == 1


def test_the_pairs_are_a_dataset_that_stock_clients_load(stages: dict[str, Any]) -> None:
    from hubkit import load_dataset

    pairs = load_dataset("preferring-preference", split="train", revision="v1")
    assert pairs.num_rows == stages["prefer"]["report"]["pairs"]
    assert set(pairs["strategy"]) == {"neglect", "hallucination", "misunderstanding"}
    assert all(row[-1]["role"] == "user" and len(row) >= 3 for row in pairs["prompt"])


def test_every_dataset_is_read_by_stock_datasets(stages: dict[str, Any], tmp_path: Path) -> None:
    names = [f"preferring-{name}" for name in ("corpus", "dialogues", "preference", "results")]
    for name, folder in datasets_of(connect(), names).items():
        assert splits_of(folder, tmp_path / name)


def test_the_optimised_model_stands_beside_the_chat_model_and_is_judged_beside_it(
    stages: dict[str, Any],
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    hub = connect()
    assert stages["align"]["inputs"]["chat"]["revision"] == stages["chat"]["revision"]
    assert stages["align"]["inputs"]["preference"]["revision"] == stages["prefer"]["revision"]
    base = hub.snapshot(hub.resolve(hub.qualify("preferring-base")))
    model = AutoModelForCausalLM.from_pretrained(base)
    found = {name: hub.snapshot(at(stages[name])) for name in ("chat", "align")}
    config = json.loads((found["align"] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == hub.qualify("preferring-base")
    assert PeftModel.from_pretrained(model, found["align"]).peft_config.keys() == {"default"}
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in found.values()]
    assert weights[0] != weights[1]
    judged = stages["eval"]["report"]["aligned"]
    assert set(judged["against"]) == {"base", "chat"} and judged["arms"]["chat"] == \
        stages["eval"]["report"]["chat"]["arms"]["trained"]  # fmt: skip


def test_every_chat_model_met_the_asker_and_its_base(stages: dict[str, Any]) -> None:
    table = stages["eval"]["report"]["against"]
    assert table["chats"] == ["base", "chat", "aligned"]
    assert table["askers"] == ["asker", "base as user"]
    for cell in table["cells"]:
        assert cell["n"] + sum(cell["failures"].values()) == 4
    assert {(d["asker"], d["chat"]) for d in table["differences"]} == {
        (asker, chat)
        for asker in ("asker", "base as user", "all askers")
        for chat in ("chat", "aligned")
    }
    hub = connect()
    results = hub.resolve(hub.qualify("preferring-results"), repo_type="dataset")
    assert hub.read(results, "against.png")[:4] == b"\x89PNG"
    card = hub.read(results, "README.md").decode()
    assert "## Chat models against askers" in card and "| aligned |" in card


def test_cards_of_both_are_published_with_what_was_trimmed(
    loop: dict[str, Any], stages: dict[str, Any]
) -> None:
    hub = connect()
    published = {change["repo_id"] for change in loop["published"]}
    assert {hub.qualify("preferring-preference"), hub.qualify("preferring-aligned")} <= published
    pairs, aligned = (
        hub.read(
            hub.resolve(hub.qualify(f"preferring-{name}"), repo_type=kind), "README.md"
        ).decode()
        for name, kind in (("preference", "dataset"), ("aligned", "model"))
    )
    used = stages["align"]["report"]["rows"]
    assert (
        f"used {used['pairs_used']} of {used['pairs_read']}" in pairs
        and f"histories of {used['trimmed']} " in pairs
    )
    assert (
        "the chat model that it was before" in aligned
        and "Direct preference optimisation" in aligned
    )
    assert stages["prefer"]["revision"] in aligned


def test_another_beta_runs_the_optimisation_alone(recipe: list[str], loop: dict[str, Any]) -> None:
    changed = [*recipe, "--set", "preference.dpo.beta=0.2", "--dry-run", "--json"]
    done = subprocess.run(
        [*RUN, "run", *changed], capture_output=True, text=True, check=True, env=os.environ
    )
    states = {planned["stage"]: planned["state"] for planned in json.loads(done.stdout)}
    assert [name for name, state in states.items() if state != "done"] == ["align", "eval"]


def test_two_processes_align_as_the_plan_says(
    recipe: list[str], loop: dict[str, Any], cli: Any
) -> None:
    halved = [
        "--set",
        "preference.dpo.per_device_train_batch_size=1",
        "--set",
        "preference.dpo.beta=0.3",
    ]
    spread = [*halved, "--launch", "ddp", "--processes", "2", "--json"]
    planned = json.loads(cli("align", *recipe, *spread, "--dry-run").stdout)
    assert (planned["kind"], planned["processes"], planned["batch"]) == ("dpo", 2, 2) and planned[
        "refusals"
    ] == []
    done = cli("align", *recipe, *spread)
    assert done.returncode == 0, done.stderr
    [made] = json.loads(done.stdout)["stages"]
    report = made["report"]
    assert (report["processes"], report["steps"]) == (2, planned["steps"]), report
    assert report["rows"]["pairs_used"] == planned["rows"] and report["tokens"] == planned["tokens"]


def test_a_recipe_without_the_block_says_that_it_has_no_such_stage(
    hubkit_home: Path, cli: Any
) -> None:
    done = cli("prefer", "realm", "--dry-run")
    assert (
        done.returncode == 1
        and "has no stage 'prefer': it has no 'preference' block" in done.stderr
    )
