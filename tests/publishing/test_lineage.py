"""Lineage names every role in which a commit was read."""

from __future__ import annotations

from typing import Any

import pytest

from hubkit.hub import Ref
from hubkit.publishing import card_data, lineage
from hubkit.recipe import load

MODEL, DATA = Ref("o/m", "model", "a" * 40), Ref("o/d", "dataset", "b" * 40)
OWN = Ref("o/made", "dataset", "c" * 40)


def records(*stages: dict[str, Ref]) -> dict[str, dict[str, Any]]:
    return {
        f"stage{n}": {"inputs": {role: ref.to_dict() for role, ref in inputs.items()}}
        for n, inputs in enumerate(stages)
    }


@pytest.mark.parametrize(
    ("stages", "roles"),
    [
        ([{"chat": MODEL, "asker": MODEL}], "chat, asker"),
        ([{"tokenizer": MODEL, "chat": MODEL}], "chat"),
        ([{"tokenizer": MODEL}, {"asker": MODEL}, {"chat": MODEL}], "asker, chat"),
        ([{"tokenizer": MODEL}], "tokenizer"),
        ([{"base": MODEL}, {"base": MODEL}], "base"),
    ],
)
def test_a_model_is_named_by_all_that_it_was(stages: list[dict[str, Ref]], roles: str) -> None:
    found = records(*stages, {"corpus": DATA, "rollout": OWN})
    tree = lineage.trace(OWN, lambda ref: found if ref == OWN else {})
    assert [(node.role, node.ref) for node in tree.made_from] == [(roles, MODEL), ("corpus", DATA)]
    facts = card_data.from_records("dialogues", "o/made", load("parrot"), found)
    assert [(i.role, i.repo_id) for i in facts.inputs] == [
        (roles.partition(",")[0], "o/m"),
        ("corpus", "o/d"),
    ]
