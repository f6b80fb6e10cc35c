"""Lineage names every role in which a commit was read."""

from __future__ import annotations

from typing import Any

import pytest

from hubkit.hub import Ref
from hubkit.publishing import card_data, cards, lineage, lint, metadata
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


def test_a_model_without_a_repo_is_in_it_as_declared() -> None:
    seat = {"repo": None, "name": "GPT-X", "license": "its terms", "endpoints": ["https://x.test"]}
    found = records({"openings": DATA, "asker": MODEL})
    found["stage0"]["block"] = {"asker": {"repo": "asker", "name": None}, "chat": seat}
    tree = lineage.trace(OWN, lambda ref: found if ref == OWN else {})
    lines = lineage.text(tree).splitlines()
    assert lines[-1] == "└─ chat: GPT-X (declared; licence: its terms)"
    assert lineage.picture(tree).startswith(b"\x89PNG")
    node = tree.made_from[-1]
    assert node.to_dict() | {"made_from": []} == {
        "role": "chat", "repo_id": "GPT-X", "repo_type": "declared",
        "revision": "licence: its terms", "made_from": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answered_by", "name"),
    [
        ({"gpt-x-2026": 9}, "GPT-X (declared; licence: its terms)"),
        ({"acme/llama-70b": 9},
         "acme/llama-70b (so named by the server; the recipe names GPT-X (declared; licence: "
         "its terms))"),
    ],
)  # fmt: skip
def test_a_card_says_that_the_model_was_declared(answered_by: dict[str, int], name: str) -> None:
    seat = "{repo: null, name: GPT-X, license: its terms, endpoints: ['https://x.test']}"
    recipe = load("parrot", overrides=[f"rollout.chat={seat}"])
    found = records({"openings": DATA, "asker": MODEL})
    found["rollout"] = found.pop("stage0") | {
        "block": recipe.rollout.model_dump(mode="json"),
        "report": {"models": {"chat": answered_by}},
    }
    facts = card_data.from_records("dialogues", "o/made", recipe, found)
    assert metadata.answering_model(facts) == name
    card = cards.render(facts)
    row = next(line for line in card.splitlines() if line.startswith("| chat | GPT-X"))
    assert "no repo, as the recipe declares it" in row and "licence: its terms" in row
    assert "Its answers were written by" in card and "/GPT-X" not in card
    problems = lint(card, "dialogues")
    assert not [p for p in problems if "config" not in p]  # which need a curated version
