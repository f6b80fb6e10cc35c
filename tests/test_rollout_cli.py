"""``hubkit rollout`` as a person runs it: on the embedded Hub, against endpoints of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mock_endpoint import mock

TOPICS = (
    "bread",
    "chess",
    "rain",
    "Rome",
    "bicycles",
    "gardens",
    "the sea",
    "trains",
    "music",
    "winter",
    "maps",
    "tea",
)


@pytest.fixture(scope="module")
def recipe(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a recipe whose corpus is on the Hub, and whose two seats are a repo that holds nothing."""
    from hubkit.hub import connect

    folder = tmp_path_factory.mktemp("chats")
    chats = [
        {
            "id": f"c{i}",
            "conversations": [
                {"from": "human" if turn % 2 == 0 else "gpt", "value": f"Tell me thing {turn} about {topic}, please."}
                for turn in range(4)
            ],
        }
        for i, topic in enumerate(TOPICS)
    ]
    (folder / "chats.json").write_text(json.dumps(chats))
    hub = connect()
    repo = hub.qualify("seat-of-nobody")
    hub.api.create_repo(repo, exist_ok=True)
    hub.api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo)
    changes = {
        "corpus.sources": [{"path": str(folder / "chats.json"), "license": "other"}],
        "corpus.filters": [],
        "corpus.openings": 6,
        "corpus.test": 2,
        "repos.corpus": "rollout-cli-corpus",
        "repos.dialogues": "rollout-cli-dialogues",
        "rollout.asker.repo": repo,
        "rollout.chat.repo": repo,
        "asker.base": repo,
        "rollout.turns": {"kind": "fixed", "value": 2},
    }
    return ["parrot", *[part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]]


def test_estimate_then_roll_out_with_a_cap(recipe: list[str], cli: Callable[..., Any], tmp_path: Path) -> None:
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
        done = cli("rollout", *recipe, *urls)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "401" in done.stderr and "token_env" in done.stderr
