"""A recipe's ``endpoints: [vllm]``: hubkit starts the server, and ends it with the stage."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support import command
from support.paths import ROOT
from support.small_run import small_recipe
from support.tiny_models import tiny_adapter, tiny_base

from hubkit.errors import RecipeError
from hubkit.hub import connect
from hubkit.recipe import load

SERVER = ROOT / "tests" / "support" / "scripted_server.py"


def _seats(runs: Path, mode: str) -> dict[str, Any]:
    engine = {"command": [sys.executable, str(SERVER), str(runs), mode], "args": ["--seed", "7"]}
    return {
        f"rollout__{seat}__{key}": value
        for seat in ("asker", "chat")
        for key, value in (("endpoints", ["vllm"]), ("engine", engine))
    }


@pytest.fixture(scope="module")
def repos(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A base and an adapter of it that asks, on the Hub."""
    hub, folder = connect(), tmp_path_factory.mktemp("models")
    base = tiny_base(folder / "base")
    name = hub.commit(hub.qualify("engine-base"), base, "A base").repo_id
    adapter = tiny_adapter(folder / "asker", base, name)
    return name, hub.commit(hub.qualify("engine-asker"), adapter, "An asker").repo_id


def test_one_server_sits_in_both_seats_and_ends_with_the_stage(
    repos: tuple[str, str], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    recipe = small_recipe(
        tmp_path, "engine-kinds", count=8, openings=4, **_seats(runs, "serve"), rollout__dialogues=3
    )
    base, adapter = repos
    recipe += ["--set", f"rollout.asker.repo={adapter}", "--set", f"rollout.chat.repo={base}"]
    for stage in ("corpus", "rollout"):
        done = command.run(stage, *recipe)
        assert done.returncode == 0, done.stderr
    [record] = [json.loads(path.read_text()) for path in runs.glob("*.json")]
    assert record["arguments"][-2:] == ["--seed", "7"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in record["pids"]), "ended with the stage"
    assert "HF_TOKEN" not in record["environment"]
    requests = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    heads = {adapter: "<|im_start|>user\n", base: "<|im_start|>assistant\n"}
    assert {r["body"]["model"] for r in requests} == set(heads), "each seat has its own model"
    for request in requests:  # rendered here: the server proves nothing of its templates
        assert request["path"] == "/v1/completions"
        assert request["body"]["prompt"].endswith(heads[request["body"]["model"]])
    hub = connect()
    dialogues = hub.resolve(hub.qualify("engine-kinds-dialogues"), repo_type="dataset")
    folder = hub.snapshot(dialogues, allow_patterns=["data/raw-*.parquet"])
    assert pq.read_table(folder / "data").num_rows == 3


def test_a_server_that_cannot_start_is_told_with_the_end_of_its_log(
    repos: tuple[str, str], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    recipe = small_recipe(tmp_path, "engine-broken", count=8, openings=4, **_seats(runs, "broken"))
    for seat in ("asker", "chat"):
        recipe += ["--set", f"rollout.{seat}.repo={repos[0]}"]
    assert command.run("corpus", *recipe).returncode == 0
    done = command.run("rollout", *recipe)
    assert done.returncode == 1 and "CUDA out of memory" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_stands_alone_and_is_one_of_those_there_are() -> None:
    for endpoints, says in (
        ('["vllm","http://127.0.0.1:1"]', "'vllm' stands alone"),
        ('["vlm"]', r"or an engine \(auto, vllm"),
    ):
        with pytest.raises(RecipeError, match=says):
            load("parrot", overrides=[f"rollout.chat.endpoints={endpoints}"])
