"""A scorecard as the world sees it: in the asker's card, in the Hub's entries; the benchmark as a
dataset.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from publishing.test_cards import RESULTS, facts, ref
from publishing.test_push import card_of, outputs, recipe, rows, stage  # noqa: F401 - fixtures

from hubkit.evaluation import questions
from hubkit.hub import Hub, Ref, connect
from hubkit.metrics import scorecards
from hubkit.metrics.scorecards import Row, Scorecard
from hubkit.publishing import Benchmark, PushOptions, lint, publish, render, scorecard
from hubkit.recipe import Recipe


def value(middle: float, spread: float = 0.0, n: int = 28) -> dict[str, Any]:
    return {
        "value": middle,
        "n": n,
        "low": middle - spread or None,
        "high": middle + spread or None,
    }


HOSTILE = "<b>bold</b> | `code`"
CARD = Scorecard(
    [
        Row("people", None, {"words_per_turn": value(14, 4), "likeness_auc": value(0.52, 0.1)},
            {"perplexity": "-"}),
        Row("asker", {"repo_id": "me/parrot-ask"},
            {"perplexity": {"value": 20.123, "n": 1, "low": None, "high": None},
            "words_per_turn": value(16, 3), "likeness_auc": value(0.7, 0.1)},
            {"end_recall": HOSTILE}, {"failed": 2}),
    ],
    {"contexts": 28, "openings": 8, "context_chars": 700, "seed": 42,
     "sampling": {"temperature": 0.7, "top_p": 1.0, "max_tokens": 48}},
)  # fmt: skip
SCORED = RESULTS | {"scorecard": CARD.to_dict()}


@pytest.fixture(scope="module")
def hub(hubkit_home: Path) -> Hub:
    return connect()


def test_the_asker_s_card_shows_it_and_the_chat_model_s_does_not() -> None:
    card = render(facts("asker", results=SCORED, files=["scorecard.png"]))
    assert lint(card, "asker") == []
    assert (
        "| words per turn | people's is best | 14.0 \\[10.0, 18.0\\] | 16.0 \\[13.0, 19.0\\] |"
        in card
    )
    assert "](scorecard.png)" in card and "2 requests failed" in card and "<b>" not in card
    assert "](scorecard.png)" not in render(facts("asker", results=SCORED, files=["README.md"]))
    assert "Scorecard" not in render(facts("asker")) and "words per turn" not in render(
        facts("chat", results=SCORED)
    )
    assert "words per turn" in render(facts("results", results=SCORED))


def test_the_hub_reads_its_model_index_and_its_entries() -> None:
    data = ModelCard(render(facts("asker", results=SCORED))).data
    found = {result.metric_type: result for result in data.eval_results}
    assert list(found) == ["loss", "perplexity", "words_per_turn", "likeness_auc"]
    assert (
        found["words_per_turn"].metric_value == 16 and found["perplexity"].dataset_split == "test"
    )
    corpus = ref("corpus", "me/parrot-sharegpt", "dataset")
    entries = parse_eval_result_entries(yaml.safe_load(scorecard.entries(CARD, corpus)))
    first = entries[0]
    assert (first.task_id, first.value, first.dataset_id) == (
        "perplexity",
        20.123,
        "me/parrot-sharegpt",
    )
    assert entries[1].dataset_revision == corpus.revision
    assert (
        entries[1].notes == "words per turn; n = 28; 95% interval 13.000 to 19.000; people 14.000"
    )
    name, results = model_index_to_eval_results(
        yaml.safe_load(scorecard.model_index_yaml(CARD, corpus))["model-index"]
    )
    assert name == "asker" and len(results) == 3


@pytest.mark.parametrize("broken", [{}, {"rows": 3}, {"rows": [{"name": "x"}], "settings": {}}, []])
def test_results_without_a_readable_scorecard_have_none(broken: Any) -> None:
    assert (
        scorecard.from_results({"scorecard": broken}) is None
        and scorecard.from_results(None) is None
    )
    assert "Scorecard" not in render(facts("asker", results=RESULTS | {"scorecard": broken}))


def test_a_push_brings_picture_entries_and_card_and_is_then_quiet(
    hub: Hub,
    recipe: Recipe,  # noqa: F811
    outputs: dict[str, Ref],  # noqa: F811
    tmp_path: Path,
) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    record = json.loads(hub.read(outputs["eval"], "provenance/eval.json"))
    (folder / "provenance").mkdir()
    (folder / "provenance" / "eval.json").write_text(json.dumps(record | {"report": SCORED}))
    (folder / "scorecard.png").write_bytes(scorecards.picture(CARD))
    scored = hub.commit(outputs["eval"].repo_id, folder, "scored", repo_type="dataset")
    told = {**outputs, "eval": scored}
    changes = publish(hub, recipe, told, options=PushOptions(with_spaces=False))
    repo_id = hub.qualify(recipe.repos.asker)
    assert {"scorecard.png", ".eval_results/scorecard.yaml"} <= {
        c.path for c in changes if c.repo_id == repo_id
    }
    head = hub.resolve(repo_id)
    assert hub.read(head, "scorecard.png") == scorecards.picture(CARD)
    (entry, *_) = yaml.safe_load(hub.read(head, ".eval_results/scorecard.yaml"))
    assert entry["dataset"]["id"] == hub.qualify(recipe.repos.corpus)
    assert entry["dataset"]["revision"] == outputs["corpus"].revision
    assert "Scorecard: how like people it plays" in card_of(hub, repo_id)
    assert publish(hub, recipe, told, options=PushOptions(with_spaces=False)) == []


def test_the_benchmark_is_a_dataset_that_loads(
    hub: Hub,
    recipe: Recipe,  # noqa: F811
    outputs: dict[str, Ref],  # noqa: F811
    tmp_path: Path,
) -> None:
    benchmark = Benchmark(questions.files(), questions.summary())
    one = {"corpus": outputs["corpus"]}
    publish(hub, recipe, one, options=PushOptions(with_spaces=False, benchmark=benchmark))
    repo_id = hub.qualify(
        "mt-bench-8"
    )  # the same whatever the recipe: another test's push may have made it
    there = set(hub.api.list_repo_files(repo_id, repo_type="dataset"))
    assert {"mt-bench-8.jsonl", "offline-16.jsonl", "GUIDELINE.md", "README.md"} <= there
    assert lint(card_of(hub, repo_id, "dataset"), "benchmark") == []
    assert (
        publish(hub, recipe, one, options=PushOptions(with_spaces=False, benchmark=benchmark)) == []
    )
    folder = hub.snapshot(hub.resolve(repo_id, repo_type="dataset"))
    from datasets import load_dataset

    whole = load_dataset(str(folder), split="test", cache_dir=str(tmp_path))
    assert whole.num_rows == 80 and len(whole[0]["follow_ups"]) == 6
    offline = load_dataset(str(folder), "offline-16", split="test", cache_dir=str(tmp_path))
    assert offline.num_rows == 16 and len(offline[0]["turns"]) == 8
    checked = load_dataset(str(folder), "offline-checks", split="test", cache_dir=str(tmp_path))
    assert checked.num_rows == 12 and {len(row["checks"]) for row in checked} == {3}


def test_the_section_says_which_encoder_and_who_judged() -> None:
    turing = {"judge": "a judge", "pairs": 5, "stopped": "tokens"}
    settings = {**CARD.settings, "embedder": "an/encoder", "turing": turing}
    text = " ".join(scorecard.section(Scorecard(CARD.rows, settings)).split())
    assert "Embeddings: an/encoder. Judge: a judge, at most 5 pairs a player" in text
    assert "It stopped early: tokens." in text and "Judge" not in scorecard.section(CARD)
