"""``hubkit rollout`` as a person runs it: on the embedded Hub, against endpoints of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.mock_endpoint import mock
from support.small_run import small_recipe


@pytest.fixture(scope="module")
def recipe(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small_recipe(tmp_path_factory.mktemp("chats"), "rollout-cli", count=12, openings=6)


def test_estimate_then_roll_out_with_a_cap(
    recipe: list[str], cli: Callable[..., Any], tmp_path: Path
) -> None:
    from hubkit.hub import connect

    done = cli("corpus", *recipe, "--json")
    assert done.returncode == 0, done.stderr
    with mock() as server:
        urls = ["--asker-url", server.url, "--chat-url", server.url, "--dialogues", "5"]
        done = cli("rollout", *recipe, *urls, "--estimate", "2", "--json")
        assert done.returncode == 0, done.stderr
        guess = json.loads(done.stdout)
        assert guess["sampled"] == 2 and guess["requests"] == {"asker": 5, "chat": 10}
        asked = server.stats()["answered"]
        done = cli("rollout", *recipe, *urls, "--json")
        assert done.returncode == 0, done.stderr
        assert asked == 6 and server.stats()["answered"] == 15  # the sample was not asked for again
    [stage] = json.loads(done.stdout)["stages"]
    assert stage["report"]["dialogues"] == 5
    raw = connect().snapshot(_ref(stage), allow_patterns=["data/raw-*"])
    assert pq.read_table(raw / "data").num_rows == 5


def _ref(stage: dict[str, Any]) -> Any:
    from hubkit.hub import Ref

    return Ref(stage["repo_id"], stage["repo_type"], stage["revision"])


def test_a_wrong_key_is_one_sentence(recipe: list[str], cli: Callable[..., Any]) -> None:
    with mock(key="right") as server:
        urls = ["--asker-url", server.url, "--chat-url", server.url, "--dialogues", "4"]
        urls += ["--set", "rollout.chat.sampling.temperature=0.1"]  # another run than the one above
        done = cli("rollout", *recipe, *urls)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "401" in done.stderr and "token_env" in done.stderr


def test_nothing_that_was_paid_is_asked_for_again(
    hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Any]
) -> None:
    recipe = small_recipe(tmp_path_factory.mktemp("chats"), "rollout-sizes", count=40, openings=16)
    assert cli("corpus", *recipe).returncode == 0

    def roll(dialogues: int) -> Any:
        """One command, with so many dialogues."""
        urls = ["--asker-url", server.url, "--chat-url", server.url]
        return cli("rollout", *recipe, *urls, "--dialogues", str(dialogues), "--json")

    with mock() as server:
        for dialogues, answers in ((6, 18), (2, 18), (8, 24)):  # three answers a dialogue
            done = roll(dialogues)
            assert done.returncode == 0, done.stderr
            assert server.stats()["answered"] == answers
        server.script(status=402, after=7, message="Insufficient credits")
        broke = roll(14)
        assert broke.returncode == 1 and "Insufficient credits" in broke.stderr, broke.stderr
        paid = server.stats()["answered"]
        assert 0 < paid <= 7
        server.script()
        assert roll(3).returncode == 0 and server.stats()["answered"] == 0
        done = roll(14)
        assert done.returncode == 0, done.stderr
        assert server.stats()["answered"] == (14 - 8) * 3 - paid
    report = json.loads(done.stdout)["stages"][0]["report"]
    assert report["end_reasons"] == {"target_turns": 14} and report["requests"] == 14 * 3
