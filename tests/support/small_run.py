"""A recipe small enough to roll out in a test: a corpus on the Hub, and seats that are a repo that
holds nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = (
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


def small_recipe(
    folder: Path, name: str, *, count: int, openings: int, **changes: Any
) -> list[str]:
    """The arguments of a recipe over `count` conversations, `openings` of which may open dialogues
    of two turns.

    Its repos are called by `name`. `changes` are further keys, dots written as ``__``.
    """
    from hubkit.hub import connect

    chats = [
        {
            "id": f"c{i}",
            "conversations": [
                {
                    "from": "human" if turn % 2 == 0 else "gpt",
                    "value": f"Tell me thing {turn} about {WORDS[i % len(WORDS)]} {i}, please.",
                }
                for turn in range(4)
            ],
        }
        for i in range(count)
    ]
    (folder / "chats.json").write_text(json.dumps(chats))
    hub = connect()
    repo = hub.qualify("seat-of-nobody")
    hub.api.create_repo(repo, exist_ok=True)
    hub.api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo)
    values = {
        "corpus.sources": [{"path": str(folder / "chats.json"), "license": "other"}],
        "corpus.filters": [],
        "corpus.openings": openings,
        "corpus.test": 2,
        "repos.corpus": f"{name}-corpus",
        "repos.dialogues": f"{name}-dialogues",
        "rollout.asker.repo": repo,
        "rollout.chat.repo": repo,
        "asker.base": repo,
        "rollout.turns": {"kind": "fixed", "value": 2},
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return [
        "parrot",
        *[
            part
            for key, value in values.items()
            for part in ("--set", f"{key}={json.dumps(value)}")
        ],
    ]
