"""Pairs of people's own next turns with the asker's: what is drawn, what is dropped and why, and
that the asker learns them in its own seat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.mock_endpoint import mock
from support.paths import ROOT
from support.tiny_models import tiny_base, write_rows

from hubkit.errors import RecipeError, TrainingError
from hubkit.metrics.scorecards import Row, Scorecard
from hubkit.preference import people_pairs
from hubkit.preference.people_pairs import PeoplePairsReport
from hubkit.recipe import PeoplePairs, Preference, SeatConfig, load
from hubkit.serving import ServedModel
from hubkit.serving.reply_journal import JournalSpec
from hubkit.training import Base, Policy, train_dpo
from hubkit.training.rows import seat_view

REAL = "And how long does rye bread take?"
TALKS: list[list[tuple[str, Any]]] = [
    [("user", f"How do I bake bread, case {n}?"), ("assistant", "Mix rye flour. It takes long."),
     ("user", REAL)]
    for n in range(4)
]  # fmt: skip
TALKS.append([*TALKS[0][:2], ("user", "adn hwo lnog deos ryee braed tkae")])


def pairs(
    tmp_path: Path, texts: list[str], **keys: Any
) -> tuple[PeoplePairsReport, list[dict[str, Any]], int]:
    """The report, the pairs and the number of requests, where the asker says `texts` in turn."""
    data = write_rows(tmp_path / "talks.parquet", TALKS)
    block = PeoplePairs(samples=2, in_flight=1, **keys)
    with mock() as server:
        server.script(texts=texts)
        for _ in range(2):  # the second time, everything is in the journal
            report = people_pairs.build(
                block,
                [data],
                tmp_path / "out",
                people_pairs.AskerSeat(
                    ServedModel.at(server.url),
                    lambda turns, intent: seat_view(turns, "user", "You ask."),
                    end_mark="<bye>",
                ),
                JournalSpec(tmp_path / "journal", 3),
            )
        asked = len(server.ledger())
    files = sorted((tmp_path / "out" / "data").glob("*.parquet"))
    return report, [row for path in files for row in pq.read_table(path).to_pylist()], asked


def test_the_sample_nearest_in_length_is_rejected_and_typos_are_not_taught(tmp_path: Path) -> None:
    near = "Can I use less rye in the bread?"
    report, rows, asked = pairs(tmp_path, ["ok", near] * 5)
    assert asked == 10 and report.contexts == 5 and len(rows) == report.pairs == 4
    assert report.dropped == {"unknown_words": 1}
    assert all(row["rejected"][0]["content"] == near for row in rows)
    assert all(row["chosen"][0]["content"] == REAL for row in rows)
    assert [m["role"] for m in rows[0]["prompt"]] == ["system", "assistant", "user"]
    assert report.length_ratio["drawn"] > 10 and 0.9 < report.length_ratio["matched"] < 1.1
    assert report.unknown_words["chosen"] == 0 < report.unknown_words["rejected"]


def test_no_pair_is_lost_without_a_reason(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="none of 5 contexts gives a pair") as failure:
        pairs(tmp_path, ["ok", "<bye>"] * 4 + [" ", "<bye>"])
    assert "'lengths_differ': 4, 'no_usable_sample': 1" in str(failure.value)


def test_the_asker_is_trained_on_them_in_its_own_seat(tmp_path: Path) -> None:
    _, rows, _ = pairs(tmp_path, ["Can I use less rye in the bread?"])
    base = tiny_base(tmp_path / "base")
    dpo = {"max_steps": 2, "max_length": 256, "per_device_train_batch_size": 1, "bf16": False,
           "gradient_checkpointing": False}  # fmt: skip
    block = Preference(
        chat=SeatConfig(repo="asker"), dpo=dpo, lora={"r": 4, "target_modules": "all-linear"}
    )
    report = train_dpo(
        block,
        sorted((tmp_path / "out" / "data").glob("*.parquet")),
        Policy(Base(base, "me/base"), base, seat="user"),
        tmp_path / "asker",
        seed=1,
        work=tmp_path / "work",
    )
    assert report.seat == "user" and report.rows["pairs_used"] == len(rows)
    template = (tmp_path / "asker" / "chat_template.jinja").read_text()
    assert json.dumps("<|im_start|>user\n")[1:-1] in template.rpartition("generation_prompt")[2]


def test_its_bench_reads_what_the_stage_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "bench"))
    import asker_preference
    import readme

    report, _, _ = pairs(tmp_path, ["Can I use less rye in the bread?"])
    values = {"words_per_turn": {"value": 9.0, "n": 40, "low": 8.0, "high": 10.0}}
    rows = [Row(name, None, values, {}) for name in ("people", "before", "after")]
    card = Scorecard(rows, {"contexts": 40}).to_dict()
    preference = {"pairs": report.to_dict(), "dpo": {"steps": 2}, "scorecard": card}
    found = asker_preference.figures("userlm", preference)
    text = readme.asker_preference({"asker_preference": found})
    assert "4 pairs out of 5 contexts (dropped: unknown words 1), 2 steps of DPO" in text
    assert "| measure | people | before | after |" in text and "| 9 (8 to 10) |" in text


def test_only_the_asker_has_such_a_block() -> None:
    recipe = load("userlm", overrides=["asker.preference={contexts: 10}"])
    assert recipe.asker.preference and recipe.digest("asker") != load("userlm").digest("asker")
    with pytest.raises(RecipeError, match="pairs with people's next turns are for the asker"):
        load("userlm", overrides=["chat.preference={contexts: 10}"])
