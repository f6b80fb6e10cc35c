"""What identifies a result is said on the recipe's keys: pace,
place and price make nothing again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from hubkit.recipe import STAGES, Recipe, content_of_stage, decides, load
from hubkit.recipe.block import block_of
from hubkit.rollout import run_digest
from hubkit.rollout.plan import run_digest_of_0_1
from hubkit.training.identity import fingerprint_of

PROFILES = ["laptop", "capo-laptop", "reinforce-laptop"]
KEYED = [stage for stage in STAGES if stage != "publish"]
PROVENANCE: dict[str, Any] = {"asker": {"repo_id": "a"}, "chat": {"repo_id": "c"}}
PACE = {
    "asker.checkpoint_minutes": 5,
    "reinforce.in_flight": 2,
    "reinforce.grpo.logging_steps": 3,
    "asker.max_drop_share": 0.9,
    "asker.sft.dataloader_num_workers": 2,
    "asker.sft.logging_steps": 7,
    "asker.sft.save_steps": 11,
    "asker.sft.save_strategy": "steps",
    "corpus.on": "ray",
    "curate.on": "ray",
    "eval.scorecard.base_endpoints": ["http://127.0.0.1:9"],
    "eval.scorecard.in_flight": 3,
    "eval.scorecard.request_timeout_s": 7,
    "preference.checkpoint_minutes": 5,
    "preference.dpo.save_steps": 5,
    "preference.in_flight": 3,
    "preference.request_timeout_s": 7,
    "repos.collection": "Elsewhere",
    "repos.results": "elsewhere",
    "rollout.budget_tokens": 1000000,
    "rollout.chat.deploy": {"hardware": "aws-nvidia-a100-x1", "replicas": 2},
    "rollout.chat.endpoints": ["deploy"],
    "rollout.chat.profile": "vllm",
    "rollout.chat.token_env": "ACME_KEY",
    "rollout.chat.usd_per_million_input": 2.5,
    "rollout.fsync": "interval",
    "rollout.in_flight": 3,
    "rollout.lease_minutes": 2,
    "rollout.max_hours": 3,
    "rollout.on": "ray",
    "rollout.patience_s": 7,
    "rollout.request_timeout_s": 7,
    "rollout.shard_dialogues": 3,
    "rollout.shard_minutes": 2,
    "rollout.workers": 3,
}
CONTENT = {
    "rollout.chat.model": "another",
    "rollout.chat.sampling.temperature": 0.11,
    "rollout.retries_per_turn": 1,
    "rollout.chat.deploy": {"gguf": "model-q4.gguf"},
}


def blocks(block: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, block
    for name, field in block.model_fields.items():
        inner = block_of(field.annotation)
        if inner is not None:
            yield from blocks(inner, f"{path}.{name}" if path else name)


def recipe(**values: Any) -> Recipe:
    return load("parrot", profiles=PROFILES, overrides=overrides(values))


def overrides(values: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def test_every_key_says_whether_it_decides_what_is_made() -> None:
    silent = [
        f"{path}.{name}"
        for path, block in blocks(Recipe, "")
        for name, field in block.model_fields.items()
        if decides(field) is None
    ]
    assert silent == [], "annotate these with Content, Execution or Display (hubkit.recipe)"


@pytest.mark.parametrize("key", PACE)
def test_pace_place_and_price_identify_no_result(key: str, tmp_path: Path) -> None:
    before, after = recipe(), recipe(**{key: PACE[key]})
    assert before != after
    assert [s for s in KEYED if before.digest(s) != after.digest(s)] == []
    assert _run(before) == _run(after)
    for one, other in ((before.asker, after.asker), (before.preference, after.preference)):
        assert _fingerprint(one, tmp_path) == _fingerprint(other, tmp_path)


@pytest.mark.parametrize("key", CONTENT)
def test_what_dialogues_say_identifies_their_run(key: str) -> None:
    before, after = recipe(), recipe(**{key: CONTENT[key]})
    assert before.digest("rollout") != after.digest("rollout") and _run(before) != _run(after)


def test_checkpoints_count_where_the_best_of_them_is_the_result() -> None:
    stopping = {"asker.early_stopping": 2, "asker.holdout": 0.1}
    before = recipe(**stopping)
    after = recipe(**stopping, **{"asker.sft.save_steps": 3})
    assert before.digest("asker") != after.digest("asker")


def test_a_larger_run_is_the_same_run_and_another_stage() -> None:
    before, after = recipe(), recipe(**{"rollout.dialogues": 99})
    assert _run(before) == _run(after) and before.digest("rollout") != after.digest("rollout")


def test_a_record_of_an_older_version_is_read_with_what_it_lacks_and_what_it_has_more() -> None:
    now = recipe()
    block = {**now.read_by("rollout"), "in_flight": 1, "dropped_since": True}
    del block["context_full"], block["personas"]  # at their defaults
    assert content_of_stage("rollout", now.seed, block) == now.content("rollout")


def test_a_plugins_code_identifies_what_it_filters(tmp_path: Path) -> None:
    digests = []
    for number, text in enumerate(("A = 1\n", "A = 2\n")):
        path = tmp_path / f"plugin_{number}.py"
        path.write_text(text)
        digests.append(
            {s: recipe(plugins=[str(path)]).digest(s) for s in ("corpus", "asker", "rollout")}
        )
    assert digests[0]["corpus"] != digests[1]["corpus"]
    assert digests[0]["asker"] == digests[1]["asker"] == recipe().digest("asker")


def test_version_0_1_gave_this_digest() -> None:
    assert run_digest_of_0_1(recipe().rollout, 42, PROVENANCE) == (
        "28971288bf6cd65530cdbc9692c85be89df2af01b67ca5a487dba957d8105b75"
    )


def _run(made: Recipe) -> str:
    return run_digest(made.rollout, made.seed, PROVENANCE)


def _fingerprint(block: BaseModel | None, folder: Path) -> str:
    assert block is not None
    data = folder / "rows.parquet"
    data.write_bytes(b"rows")
    return fingerprint_of(block, [data], folder, "base", 42)
