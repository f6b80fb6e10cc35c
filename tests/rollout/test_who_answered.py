"""Rows name the model that the server said it was; a run is not mixed from two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rollout.test_rollout import PROVENANCE, block, openings, roll, rows
from support.mock_endpoint import mock

from hubkit.errors import RecipeError, StageError
from hubkit.rollout import JournalSpec, Seats, estimate
from hubkit.serving import ServedModel
from hubkit.serving.model_names import is_another_model

ELSEWHERE = {"endpoints": ["http://127.0.0.1:1"]}


def test_rows_name_the_model_that_the_server_said_it_was(tmp_path: Path) -> None:
    seat = {**ELSEWHERE, "repo": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    with mock(answers_as="acme/llama-70b") as server:
        report = roll(server, tmp_path, block(chat=seat, asker={"repo": "asker", **ELSEWHERE}))
    assert report.models == {"asker": {"acme/llama-70b": 12}, "chat": {"acme/llama-70b": 18}}
    for row in rows(tmp_path):
        assert row["chat"] == {"repo_id": "acme/llama-70b", "revision": None}
        assert row["models"] == [None, *["acme/llama-70b"] * 5]


@pytest.mark.parametrize(
    ("name", "repo", "alias", "another"),
    [
        ("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "x", False),
        ("smollm2-135m-instruct-q8_0.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct", "x", False),
        ("chat", "HuggingFaceTB/SmolLM2-135M-Instruct", "chat", False),
        ("/data/model", "HuggingFaceTB/SmolLM2-135M-Instruct", "tgi", False),
        ("gpt-4o-2024-08-06", "gpt-4o", "gpt-4o", False),
        ("acme/llama-70b", "HuggingFaceTB/SmolLM2-135M-Instruct", "acme/llama-70b", True),
        ("llama-70b", "HuggingFaceTB/SmolLM2-135M-Instruct", "chat", True),
    ],
)
def test_which_names_are_another_models(name: str, repo: str, alias: str, another: bool) -> None:
    assert is_another_model(name, repo, alias) == another


def test_another_model_at_the_same_address_is_another_run(tmp_path: Path) -> None:
    given: dict[str, Any] = {"dialogues": 8, "in_flight": 1}
    with mock(answers_as="one/model") as server:
        server.script(status=401, after=7)
        with pytest.raises(ValueError, match="401"):
            roll(server, tmp_path, block(**given))
    with (
        mock(answers_as="two/model") as server,
        pytest.raises(StageError, match=r"begun with 'one/model'.*'two/model'"),
    ):
        roll(server, tmp_path, block(**given))
    with mock(answers_as="one/model") as server:
        assert roll(server, tmp_path, block(**given)).end_reasons == {"target_turns": 8}


def test_a_model_without_a_repo_is_declared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give name and license"):
        block(chat={**ELSEWHERE, "repo": None})
    with pytest.raises(ValueError, match="give endpoints"):
        block(chat={"repo": None, "name": "GPT-X", "license": "its terms"})
    seat = {**ELSEWHERE, "repo": None, "name": "GPT-X", "license": "its terms", "model": "gpt-x"}
    assert block(chat=seat).chat.model_name == "GPT-X (declared; licence: its terms)"
    provenance = {"chat": {"repo_id": None, "declared": True, "name": "GPT-X"}}
    with mock(answers_as="gpt-x-2026") as server:
        roll(server, tmp_path, block(chat=seat), provenance=provenance)
    row = rows(tmp_path)[0]
    assert row["chat"] == {"repo_id": None, "revision": None} and row["models"][1] == "gpt-x-2026"


def test_a_budget_in_dollars_without_prices_is_refused(tmp_path: Path) -> None:
    far = {"endpoints": ["https://far.example/v1"]}
    priced = {"usd_per_million_input": 1.0, "usd_per_million_output": 2.0}
    with mock() as server:
        for seats in ({}, {"chat": far, "asker": priced}):
            with pytest.raises(RecipeError, match=r"caps nothing.*budget_tokens"):
                roll(server, tmp_path, block(budget_usd=1.0, **seats))
        assert server.stats()["requests"] == 0
        roll(server, tmp_path, block(budget_usd=1.0, chat={**far, **priced}))


def test_cached_tokens_have_a_price_of_their_own() -> None:
    from hubkit.serving.budget import Spent

    prices = {"usd_per_million_input": 1.0, "usd_per_million_output": 2.0}
    seat = block(chat={**prices, "usd_per_million_cached_input": 0.1}).chat
    spent = Spent({"assistant": [0, 0]})
    spent.add("assistant", 1_000_000, 0, cached=400_000)
    assert spent.usd({"assistant": seat}) == pytest.approx(0.64)
    later = Spent({"assistant": [0, 0]})
    later.gain(spent.sums())
    assert later.usd({"assistant": seat}) == pytest.approx(0.64)


def test_an_estimate_asks_the_endpoint_at_least_once(tmp_path: Path) -> None:
    given = block(dialogues=9)
    with mock() as server:
        model, journal = ServedModel.at(server.url), JournalSpec(tmp_path, 7, PROVENANCE)
        for sampled in (4, 5, 6):  # the sample is in the journal from the second time on
            before = server.stats()["answered"]
            guess = estimate(given, openings(), Seats(model, model), journal, dialogues=4)
            assert guess.sampled == sampled and server.stats()["answered"] > before
