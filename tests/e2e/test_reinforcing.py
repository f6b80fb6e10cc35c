"""Reinforcement against the asker and the cross-simulator table, end to end and small: one run that
was killed and resumed, what it commits and publishes, and that the next one does nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.loading import datasets_of, splits_of
from support.mock_endpoint import mock
from support.people_models import END, people_model
from support.tiny_models import tiny_base, write_rows
from support.waiting import until

from hubkit.hub import Ref, connect
from hubkit.publishing import lint
from hubkit.publishing.card_data import Kind

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SFT = {"num_train_epochs": 1, "max_length": 128, "per_device_train_batch_size": 1,
       "gradient_accumulation_steps": 4, "bf16": False, "packing": False}  # fmt: skip


@pytest.fixture(scope="module")
def arguments(
    hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[str], Any]]:
    """The arguments of a small recipe with a reinforcement and a table, and the server of the
    asker that writes people's turns."""
    folder, hub = tmp_path_factory.mktemp("reinforcing"), connect()
    base, people = hub.qualify("reinforcing-base"), hub.qualify("reinforcing-people")
    hub.commit(base, tiny_base(folder / "base"), "A tiny base")
    hub.commit(people, people_model(folder / "people", "chatml"), "It writes people's turns")
    talk = [("user", "How do I bake bread?"), ("assistant", "Mix flour."), ("user", "And rye?")]
    rows = [[*talk, ("assistant", f"Use less water, {n} times.")] for n in range(24)]
    write_rows(folder / "chats.parquet", rows)
    lora = {"r": 4, "target_modules": "all-linear"}
    with mock() as asker, mock() as chat, mock() as person:
        asker.script(texts=["And how long does it take?"])
        person.script(texts=["And with spelt?"])
        seat = {
            "repo": people, "endpoints": [person.url], "profile": "vllm", "model": "them",
            "speaks": "user", "end_token": END, "system": "You want bread.",
        }  # fmt: skip
        rewards = [{"name": "next_turn"}, {"name": "format", "weight": 0.5}]
        sampling = {"max_tokens": 8}
        changes: dict[str, Any] = {
            "corpus.sources": [{"path": str(folder / "chats.parquet"), "license": "other"}],
            "corpus.filters": [],
            "corpus.openings": 8,
            "corpus.test": 4,
            "asker": {"base": base, "seat": "user", "lora": lora, "sft": SFT, "end_mark": "[bye]"},
            "chat": {"base": base, "seat": "assistant", "lora": lora, "sft": SFT},
            "rollout.asker": {"repo": "asker", "endpoints": [asker.url]},
            "rollout.chat": {"repo": base, "endpoints": [chat.url]},
            "rollout.dialogues": 6,
            "rollout.turns": {"kind": "fixed", "value": 2},
            "rollout.retry_on": [],
            "curate.filters": [],
            "curate.measure": None,
            "preference": None,
            "reinforce": {
                "askers": {"own": {"repo": "asker", "endpoints": [asker.url]}, "people": seat},
                "answers": 2, "openings": 4, "held_out": 3, "context": 256, "rewards": rewards,
                "in_flight": 4,
                "grpo": {"max_steps": 2, "num_generations": 2, "per_device_train_batch_size": 4,
                         "max_completion_length": 8, "bf16": False, "learning_rate": 1e-3,
                         "gradient_checkpointing": False},
            },
            "eval.conversations": 3,
            "eval.max_tokens": 128,
            "eval.scorecard": None,
            "eval.against": {"openings": 3, "turns": 2, "rewards": rewards, "context": 256,
                             "askers": {"people": seat}, "sampling": sampling,
                             "chat_sampling": sampling},
            "repos": {name: f"reinforcing-{name}" for name in
                      ("corpus", "asker", "dialogues", "chat", "results", "reinforced")},
        }  # fmt: skip
        words = [p for k, v in changes.items() for p in ("--set", f"{k}={json.dumps(v)}")]
        yield ["parrot", *words], person


@pytest.fixture(scope="module")
def loop(arguments: tuple[list[str], Any], hubkit_home: Path) -> dict[str, Any]:
    """What ``hubkit run --json`` printed, after a kill in the middle of the reinforcement's first
    batch."""
    command = [sys.executable, "-m", "hubkit", "run", *arguments[0], "--json"]
    log = hubkit_home / "reinforcing.log"
    with log.open("wb") as out:
        killed = subprocess.Popen(command, stdout=out, stderr=out)

    def in_a_batch() -> bool:
        assert killed.poll() is None, log.read_text("utf-8", "replace")[-3000:]
        journals = hubkit_home.glob("runs/parrot-reinforce-*/scratch/journal/conversations.jsonl")
        return any(b'"g0/' in journal.read_bytes() for journal in journals)

    until(in_a_batch, timeout_s=900)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def stages(loop: dict[str, Any]) -> dict[str, Any]:
    return {stage["stage"]: stage for stage in loop["stages"]}


def test_it_is_one_adapter_and_its_conversations_with_rewards(stages: dict[str, Any]) -> None:
    made = stages["reinforce"]["report"]
    reinforcement = made["reinforcement"]
    assert made["steps"] == 2 and reinforcement["conversations"] == 2 * 4 + 2 * 3
    askers = reinforcement["askers"]
    assert askers["requests"] == 14, "a turn that was acknowledged is not asked for again"
    assert askers["answers_from_journal"] > 0
    assert [step["step"] for step in reinforcement["curve"]] == [1, 2]
    assert reinforcement["difference"]["clusters"] == 3 and not reinforcement["stopped"]
    assert set(reinforcement["before"]["rewards"]) == {"next_turn", "format"}
    hub, ref = (
        connect(),
        Ref(*(stages["reinforce"][key] for key in ("repo_id", "repo_type", "revision"))),
    )
    folder = hub.snapshot(ref)
    assert (folder / "adapter_model.safetensors").stat().st_size > 0
    titles = [c.title for c in hub.api.list_repo_commits(ref.repo_id)]
    assert len([title for title in titles if "[reinforce:" in title]) == 1


def test_askers_of_both_kinds_asked(
    arguments: tuple[list[str], Any], stages: dict[str, Any]
) -> None:
    tokens = stages["reinforce"]["report"]["reinforcement"]["askers"]["tokens"]
    assert all(sum(tokens[name]) > 0 for name in ("own", "people"))
    prompts = [entry["body"]["prompt"] for entry in arguments[1].ledger()]
    assert prompts and all(prompt.endswith("<|im_start|>user\n") for prompt in prompts)
    table = stages["eval"]["report"]["against"]
    assert table["askers"] == ["asker", "base as user", "people"]
    assert table["chats"] == ["base", "chat", "reinforced"]
    assert all(cell["n"] + sum(cell["failures"].values()) == 3 for cell in table["cells"])


def test_the_results_hold_every_conversation_as_a_config(stages: dict[str, Any]) -> None:
    from hubkit import load_dataset

    reinforced = load_dataset("reinforcing-results", "reinforced", split="train")
    assert reinforced.num_rows == 14 and set(reinforced["group"]) == {"before", "after", "g0", "g1"}
    assert all(row["reward"] is not None or row["masked"] for row in reinforced)
    table = load_dataset("reinforcing-results", "against", split="train")
    assert table.num_rows == sum(cell["n"] for cell in stages["eval"]["report"]["against"]["cells"])
    assert set(table["chat"]) == {"base", "chat", "reinforced"}
    assert load_dataset("reinforcing-results", split="test").num_rows > 5


def test_every_dataset_is_read_by_stock_datasets(loop: Any, tmp_path: Path) -> None:
    names = [f"reinforcing-{name}" for name in ("corpus", "dialogues", "results")]
    loaded = {
        (name, *which): rows.num_rows
        for name, folder in datasets_of(connect(), names).items()
        for which, rows in splits_of(folder, tmp_path / name).items()
    }
    configs = {(name.removeprefix("reinforcing-"), *which) for name, *which in loaded}
    assert configs == {
        *(("corpus", "default", split) for split in ("train", "openings", "test")),
        *(("dialogues", config, "train") for config in ("default", "raw")),
        ("results", "default", "test"), ("results", "reinforced", "train"),
        ("results", "against", "train"),
    }  # fmt: skip


@pytest.mark.parametrize(("repo", "kind"), [("reinforced", "model"), ("results", "dataset")])
def test_cards_lint_and_name_what_is_there(loop: dict[str, Any], repo: Kind, kind: str) -> None:
    hub = connect()
    ref = hub.resolve(hub.qualify(f"reinforcing-{repo}"), repo_type=kind)
    card = hub.read(ref, "README.md").decode()
    files = hub.api.list_repo_files(ref.repo_id, repo_type=kind)
    assert lint(card, repo, files=files) == []
    assert ("## Reward, before and after" if repo == "reinforced" else "| reinforced |") in card
    assert "against.png" in files or repo == "reinforced"


def test_the_asker_s_end_is_measured_and_said(stages: dict[str, Any]) -> None:
    ending = stages["eval"]["report"]["ending"]
    assert ending["chances"] > 0 and 0 < ending["predicted_rate"] < 1
    hub = connect()
    for repo, kind, said in (
        ("asker", "model", "an answer it ends with a probability"),
        (
            "dialogues",
            "dataset",
            "The asker ended 0 of 6 dialogues itself, so its end was not seen",
        ),
    ):
        ref = hub.resolve(hub.qualify(f"reinforcing-{repo}"), repo_type=kind)
        assert said in hub.read(ref, "README.md").decode()


def test_a_second_run_does_nothing(arguments: tuple[list[str], Any], loop: Any, cli: Any) -> None:
    planned = json.loads(cli("run", *arguments[0], "--dry-run", "--json").stdout)
    assert {stage["state"] for stage in planned} == {"done"}
