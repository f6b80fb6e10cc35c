"""Measures: each against a value worked out by hand or by another library; datasets beside a
baseline; versions.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hubkit.errors import SourceError
from hubkit.metrics import Helpers, definitions, diff, plots, published, stats, step_table
from hubkit.metrics.human_likeness import human_likeness
from hubkit.metrics.lexical import (
    distinct,
    leans_on_context,
    mtld,
    mtld_released,
    repeated_share,
    self_rouge,
    words,
)
from hubkit.metrics.sampling import Dialogue, sample
from hubkit.metrics.topics import cluster_entropy, mean_cosine, nearest_distance, plane, shifts

PEOPLE_SAY = "why does my bread not rise when it is cold outside and what can i do about that?"
MACHINES_SAY = (
    "Could you please elaborate further regarding aforementioned considerations "
    "concerning implementation?"
)
PEOPLE, MACHINE = PEOPLE_SAY.split(), MACHINES_SAY.split()


def parquet(path: Path, dialogues: list[list[str]], **columns: list[Any]) -> Path:
    roles = ("user", "assistant")
    rows = [
        {
            "id": f"d{i}",
            "messages": [{"role": roles[t % 2], "content": text} for t, text in enumerate(turns)],
        }
        | {name: values[i] for name, values in columns.items()}
        for i, turns in enumerate(dialogues)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def made_up(vocabulary: list[str], number: int, turns: int = 6, seed: int = 0) -> list[list[str]]:
    rng = random.Random(seed)
    return [[" ".join(rng.choices(vocabulary, k=12)) for _ in range(turns)] for _ in range(number)]


def test_mtld_by_hand_and_by_another_library() -> None:
    assert mtld(["a", "b"] * 10) == pytest.approx(3.0 * 20 / 20, abs=0.4)
    assert mtld(["a", "b", "c"]) is None, "no word comes twice: no factor"
    assert mtld([]) is None
    syllables = [
        a + b for a in "bcdfg" for b in ("a", "e", "i", "o", "u", "ar", "er", "ir", "or", "ur")
    ]
    text = " ".join(random.Random(1).choices(syllables, k=400))
    assert mtld(words(text)) == pytest.approx(29.30305000365041), "what lexicalrichness 0.5.1 gives"


def test_distinct_self_rouge_and_repeats_by_hand() -> None:
    assert distinct(["a b a b"], 2, budget=3) == pytest.approx(2 / 3)
    assert distinct(["a b"], 1) is None, "too little text to compare"
    assert self_rouge(["the cat sat", "the cat ran"]) == pytest.approx(100 * 2 / 3)
    assert self_rouge(["alone"]) is None
    assert repeated_share(["Go on!", "go on", "why?"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "turn",
    ["Why?", "and in winter?", "Can you make it shorter?", "What did you mean by that?", "go on"],
)
def test_turns_that_lean_on_context(turn: str) -> None:
    assert leans_on_context(turn)


@pytest.mark.parametrize(
    "turn",
    [
        "Write a poem about bread.",
        "Is it possible to fly to Mars?",
        "Why do cats purr when people stroke cats gently?",
    ],
)
def test_turns_that_stand_alone(turn: str) -> None:
    assert not leans_on_context(turn)


def test_topic_measures_are_the_slow_formulas() -> None:
    vectors = np.random.default_rng(0).normal(size=(150, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    full = vectors.astype(float) @ vectors.T.astype(float)
    assert mean_cosine(vectors) == pytest.approx(full.mean(), abs=1e-6)
    np.fill_diagonal(full, -1)
    assert nearest_distance(vectors, block=64) == pytest.approx((1 - full.max(1)).mean(), abs=1e-5)
    assert shifts(np.array([[1, 0], [1, 0], [0, 1]], np.float32)) == 1
    spread = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0)
    assert cluster_entropy(spread, clusters=4) == pytest.approx(1.0)
    assert cluster_entropy(spread[:60], clusters=20) is None
    assert plane(vectors).shape == (150, 2)


def _dialogues(vocabulary: list[str], number: int, seed: int) -> list[Dialogue]:
    return [
        Dialogue(str(i), [{"role": "user", "content": t} for t in turns])
        for i, turns in enumerate(made_up(vocabulary, number, seed=seed))
    ]


def test_likeness_tells_strangers_apart_and_not_brothers() -> None:
    people, others = _dialogues(PEOPLE, 30, 1), _dialogues(PEOPLE, 30, 2)
    same = human_likeness(others, people, seed=3, resamples=50)
    assert same and same.low < 0.5 < same.high and same.turns == 150
    machine = human_likeness(_dialogues(MACHINE, 30, 2), people, seed=3, resamples=50)
    assert machine and machine.auc > 0.99 and machine.low > 0.9
    assert human_likeness(people[:3], people, seed=3) is None


def _of_one_kind(number: int, seed: int) -> list[Dialogue]:
    """Dialogues of one population whose turns are alike within a dialogue, as people's are."""
    rng = random.Random(seed)
    vocabulary = [a + b + c for a in "bdfgklm" for b in "aeiou" for c in "nrst"]
    made = []
    for at in range(number):
        topic = rng.sample(vocabulary, 12)
        turns = [" ".join(rng.choices(topic, k=8) + rng.choices(vocabulary, k=4)) for _ in range(4)]
        messages = [{"role": role, "content": t} for t in turns for role in ("user", "assistant")]
        made.append(Dialogue(str(at), messages))
    return made


def test_the_likeness_of_people_to_people_is_chance_and_its_interval_says_so() -> None:
    found = []
    for seed in range(12):
        people = _of_one_kind(40, seed)
        found.append(human_likeness(people[:20], people[20:], seed=seed, draws=5, resamples=40))
    assert np.mean([one.auc for one in found]) == pytest.approx(0.5, abs=0.06)
    assert sum(one.low <= 0.5 <= one.high for one in found) >= 10, "95 % intervals of a true null"


def test_datasets_are_told_apart_on_equal_numbers_of_turns(tmp_path: Path) -> None:
    files = {
        "many": [parquet(tmp_path / "many", made_up(MACHINE, 40, seed=1))],
        "few": [parquet(tmp_path / "few", made_up(MACHINE, 12, seed=3))],
        "real": [parquet(tmp_path / "real", made_up(PEOPLE, 60, turns=8, seed=2))],
    }
    values = [one.values["likeness_auc"] for one in stats(files, baseline="real", size=60).datasets]
    assert [value.n for value in values] == [24, 24, 24]
    assert values[2].low < 0.5 < values[2].high, "people against people"


def test_openings_and_given_turns_do_not_count_as_the_asker_s(tmp_path: Path) -> None:
    turns = ["q1", "a1", "q2", "a2", "q3"]
    for given, followups in ((1, ["q2", "q3"]), (3, ["q3"])):
        finish = [None] * given + ["stop"] * (5 - given)
        path = parquet(tmp_path / "a", [turns], finish_reasons=[finish])
        (dialogue,) = sample("x", [path], size=5, seed=0).dialogues
        assert dialogue.followups == followups and dialogue.human == ["q1", "q2", "q3"]


def test_samples_are_the_same_whatever_the_order(tmp_path: Path) -> None:
    rows = [[f"q {i}", "a"] for i in range(50)]
    one = sample("x", [parquet(tmp_path / "a", rows)], size=10, seed=1)
    assert one.total == 50 and len(one.dialogues) == 10
    assert sample("x", [tmp_path / "a"], size=10, seed=1) == one
    assert sample("x", [tmp_path / "a"], size=10, seed=2).dialogues != one.dialogues


def test_stats_of_two_datasets_beside_a_baseline(tmp_path: Path) -> None:
    files = {
        "asker": [parquet(tmp_path / "asker", made_up(MACHINE, 40, seed=1))],
        "real": [parquet(tmp_path / "real", made_up(PEOPLE, 40, turns=8, seed=2))],
    }
    report = stats(files, tmp_path / "out", baseline="real", size=30)
    asker, real = report.datasets
    assert asker.values["human_turns"].value == 3 and real.values["human_turns"].value == 4
    assert asker.values["likeness_auc"].value > 0.95
    assert real.values["likeness_auc"].low < 0.5 < real.values["likeness_auc"].high
    assert (asker.dialogues, asker.sampled) == (40, 30)
    stored = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert set(stored["datasets"][0]["values"]) <= set(stored["definitions"]) <= set(definitions())
    assert all(entry["formula"] and entry["source"] for entry in stored["definitions"].values())
    for name in ("turns.png", "lengths.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    columns, rows = report.table()
    assert columns == ["measure", "asker", "real (baseline)"] and len(rows) >= 12


def test_topics_with_a_real_encoder_from_random_weights(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    known = {
        word: i for i, word in enumerate(["[UNK]", "[PAD]", *dict.fromkeys([*PEOPLE, *MACHINE])])
    }
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(tmp_path / "m")
    config = BertConfig(
        vocab_size=len(known),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(tmp_path / "m")
    files = {"asker": [parquet(tmp_path / "asker", made_up(MACHINE, 12, seed=1))]}
    report = stats(files, tmp_path / "out", helpers=Helpers(embedder=tmp_path / "m"), size=30)
    values = report.datasets[0].values
    assert 0 < values["mean_cosine"].value <= 1 and values["topic_shifts"].n == 12
    assert "cluster_entropy" in report.datasets[0].missing and "topics.png" in report.files
    with pytest.raises(SourceError, match="no encoder"):
        stats(files, helpers=Helpers(embedder=tmp_path / "asker"), size=5)


def test_a_judge_is_asked_when_there_is_one(tmp_path: Path) -> None:
    files = {"x": [parquet(tmp_path / "a", made_up(PEOPLE, 4))]}
    seen: list[int] = []

    def judge(conversations: Any) -> list[bool | None]:
        seen.extend(map(len, conversations))
        return [len(messages) == 3 for messages in conversations[:-1]] + [None]

    (measured,) = stats(files, helpers=Helpers(judge=judge), size=5).datasets
    judged = measured.values["context_judged_per_dialogue"]
    assert judged.value == 1.0 and judged.n == 3, (
        "a dialogue with a turn that has no verdict is left out"
    )
    assert measured.judged == {"turns": 8, "without_verdict": 1} and sorted(set(seen)) == [3, 5]
    assert "context_judged_per_dialogue" not in stats(files, size=5).datasets[0].values


def test_versions_differ_by_rows_added_dropped_and_changed(tmp_path: Path) -> None:
    old = parquet(tmp_path / "v1", [["a", "b"], ["c", "d"], ["e", "f"]])
    rows = [["a", "b"], ["c", "changed"]]
    new = parquet(tmp_path / "v2", [*rows, ["x", "y"]], id=["d0", "d1", "d9"])
    found = diff([old], [new])
    assert (found.before, found.after, found.added, found.dropped, found.changed, found.same) == (
        3,
        3,
        1,
        1,
        1,
        1,
    )
    assert found.examples == {"added": ["d9"], "dropped": ["d2"], "changed": ["d1"]}
    with pytest.raises(SourceError, match="comes twice"):
        diff([old, old], [new])


def test_the_step_table_stands_beside_the_published_one(tmp_path: Path) -> None:
    tally = {"count": 1, "examples": ["x"]}
    step = {
        "rows_in": 9,
        "rows_out": 8,
        "conversations_out": 8,
        "dropped": {"not_basic_latin": tally},
        "changed": {},
    }
    report = {
        "rows_read": 12,
        "unreadable": 1,
        "joined": 2,
        "steps": [{"name": "basic_latin", **step}],
    }
    columns, rows = step_table(report, "realm")
    assert rows == [
        ["read", "9", "9", "90,664", "90,664"],
        ["basic_latin", "8", "8", "41,304", "41,304"],
    ]
    assert step_table(report)[0] == columns[:3]
    plots.funnel(tmp_path / "funnel.png", report)
    assert (tmp_path / "funnel.png").stat().st_size > 2000


def test_published_numbers_name_their_source() -> None:
    assert all(entry["source"] and entry["values"] for entry in published()["measures"])
    assert set(published()["steps"]) == {"parrot", "realm"}


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no dialogue with a human turn"):
        stats({"x": [parquet(tmp_path / "a", [[""]])]})
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "b")
    with pytest.raises(SourceError, match="no column messages"):
        stats({"x": [tmp_path / "b"]})
    with pytest.raises(SourceError, match="cannot be read as parquet"):
        stats({"x": [tmp_path / "gone"]})


@pytest.mark.parametrize(
    ("text", "released"),
    [  # what lexicalrichness 0.5.1 says of the same text
        ("What is the capital of France?", 6.0),
        ("well-known 42 the the", 3.0),
        ("It's it's IT'S done", 5.25),
    ],
)
def test_mtld_is_the_released_ones_under_its_own_name(text: str, released: float) -> None:
    assert mtld_released(text) == pytest.approx(released, abs=0.01)
    assert mtld(words(text)) != pytest.approx(released, abs=0.01), "ours is another measure"
    assert mtld_released("42 -!") is None


def test_pooled_lengths_weigh_long_dialogues_and_the_table_says_how_many_were_measured(
    tmp_path: Path,
) -> None:
    rows = [["one two", "a b c d"], ["x", "y"] * 3]
    files = {"x": [parquet(tmp_path / "p", rows)]}
    report = stats(files, size=5)
    values = report.datasets[0].values
    assert values["tokens_per_turn"].value == pytest.approx((6 + 6) / 8)
    assert values["tokens_per_answer"].value == pytest.approx((4 + 1) / 2)
    table = dict((row[0], row[1]) for row in stats(files, size=1).table()[1])
    assert table["dialogues"] == "2" and table["of them measured"] == "1"


def test_a_metric_of_ones_own_is_measured_like_the_others(tmp_path: Path) -> None:
    from hubkit.metrics import METRICS

    def questions(dialogue: Any) -> float:
        """questions per dialogue

        human turns that end with a question mark"""
        return float(sum(turn.endswith("?") for turn in dialogue.human))

    METRICS["questions"] = questions
    try:
        rows = [["why?", "so", "and?", "ok"], ["hm", "yes"], ["what?", "that"]]
        report = stats({"x": [parquet(tmp_path / "p", rows)]}, size=5)
        table, data = report.table()[1], report.to_dict()
    finally:
        del METRICS["questions"]
    value = report.datasets[0].values["questions"]
    assert value.value == 1.0 and value.n == 3 and value.low is not None
    assert any(row[0] == "questions per dialogue" for row in table)
    assert "end with a question mark" in data["definitions"]["questions"]["formula"]
