"""The benchmark questions that ship: all there, well spread, nobody else's text, and they join
MT-Bench's own.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from hubkit.errors import SourceError
from hubkit.evaluation import questions

MT_BENCH = ROOT.parent / "shared" / "data" / "fastchat" / "mt_bench__question.jsonl"
CATEGORIES = [
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
]
ROWS = questions.follow_ups()
TURNS = [turn for row in ROWS for turn in row["follow_ups"]]


@pytest.fixture
def mt_bench() -> list[dict[str, Any]]:
    if not MT_BENCH.exists():
        pytest.skip("MT-Bench's questions are not on this machine")
    return [json.loads(line) for line in MT_BENCH.read_text("utf-8").splitlines()]


def test_the_follow_ups_have_no_fault() -> None:
    assert questions.faults(ROWS, range(81, 161)) == []
    assert len(ROWS) == 80 and len(TURNS) == 480
    assert [row["category"] for row in ROWS] == [name for name in CATEGORIES for _ in range(10)]
    assert all(set(turn) == {"text", "needs_context", "phenomenon"} for turn in TURNS)


def test_they_belong_to_the_questions_and_quote_no_more_than_a_few_words(
    mt_bench: list[dict[str, Any]],
) -> None:
    assert [(row["question_id"], row["category"]) for row in ROWS] == [
        (row["question_id"], row["category"]) for row in mt_bench
    ]
    for row, theirs in zip(ROWS, mt_bench, strict=True):
        runs = {run for turn in theirs["turns"] for run in _runs(turn, 6)}
        for turn in row["follow_ups"]:
            assert not runs & _runs(turn["text"], 6), (
                f"{row['question_id']} quotes its question: {turn['text']}"
            )


def _runs(text: str, size: int) -> set[tuple[str, ...]]:
    found = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(found[at : at + size]) for at in range(len(found) - size + 1)}


def test_lengths_are_like_peoples_and_no_order_of_phenomena_rules() -> None:
    lengths = sorted(len(turn["text"].split()) for turn in TURNS)
    assert lengths[0] <= 2 and 7 <= lengths[240] <= 14 and lengths[-5] >= 30
    orders = Counter(tuple(turn["phenomenon"] for turn in row["follow_ups"]) for row in ROWS)
    assert orders.most_common(1)[0][1] <= 4
    last = Counter(row["follow_ups"][-1]["phenomenon"] for row in ROWS)
    assert last.most_common(1)[0][1] <= 40
    openings = Counter(" ".join(turn["text"].lower().split()[:3]) for turn in TURNS)
    assert openings.most_common(1)[0][1] <= 6, openings.most_common(3)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda rows: rows.pop(), "not the questions' ids"),
        (lambda rows: rows[0]["follow_ups"].pop(), "5 follow-ups"),
        (
            lambda rows: rows[0]["follow_ups"][0].update(text="What is the capital of France?"),
            "nothing in it points",
        ),
        (
            lambda rows: _shift(rows).update(text="Why does it cost that much?"),
            "marked as standing alone",
        ),
        (lambda rows: rows[5]["follow_ups"][1].update(rows[9]["follow_ups"][2]), "nearly the same"),
        (lambda rows: rows[3]["follow_ups"][0].update(phenomenon="short"), "short means"),
        (lambda rows: rows[3]["follow_ups"][0].update(phenomenon="joke"), "is no phenomenon"),
        (
            lambda rows: rows[3]["follow_ups"][0].update(text=" and so on and on again "),
            "blank, padded",
        ),
        (
            lambda rows: [t.update(phenomenon="anaphora") for t in rows[7]["follow_ups"]],
            "only anaphora",
        ),
        (
            lambda rows: [_t.update(phenomenon="anaphora") for r in rows for _t in r["follow_ups"]],
            "of all turns",
        ),
        (
            lambda rows: [
                t.update(text=t["text"] + " and so" * 20) for r in rows for t in r["follow_ups"]
            ],
            "on average",
        ),
    ],
)
def test_every_check_finds_its_fault(spoil: Any, says: str) -> None:
    rows = copy.deepcopy(ROWS)
    spoil(rows)
    assert any(says in fault for fault in questions.faults(rows, range(81, 161)))


def _shift(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(turn for row in rows for turn in row["follow_ups"] if turn["phenomenon"] == "shift")


def test_extended_questions_have_eight_turns_theirs_first(mt_bench: list[dict[str, Any]]) -> None:
    rows = questions.extended(MT_BENCH)
    assert len(rows) == 80 and all(len(row["turns"]) == 8 for row in rows)
    assert all(
        row["turns"][:2] == theirs["turns"] for row, theirs in zip(rows, mt_bench, strict=True)
    )
    assert rows[0]["turns"][2:] == [turn["text"] for turn in ROWS[0]["follow_ups"]]
    assert rows[20]["reference"] == mt_bench[20]["reference"]


def test_a_question_file_that_is_not_one_is_a_sentence(tmp_path: Path) -> None:
    for content, says in (
        (b"\xff\xfe", "cannot be read"),
        (b"[1]\n", "line 1"),
        (b"{}\n", "lacks 80"),
        (b"{", "line 1"),
    ):
        (tmp_path / "q.jsonl").write_bytes(content)
        with pytest.raises(SourceError, match=says):
            questions.extended(tmp_path / "q.jsonl")
    with pytest.raises(SourceError, match="cannot be read"):
        questions.extended(tmp_path / "none.jsonl")


def test_the_offline_conversations_are_eight_turns_in_every_category() -> None:
    rows = questions.offline()
    assert Counter(row["category"] for row in rows) == dict.fromkeys(CATEGORIES, 2)
    assert len({row["question_id"] for row in rows}) == 16
    turns = [turn for row in rows for turn in row["turns"]]
    assert len(turns) == len(set(turns)) == 128 and all(
        turn.strip() == turn and turn for turn in turns
    )
    for row in rows:
        assert len(row["turns"]) == 8 and len(row.get("reference", row["turns"])) == 8
        leaning = sum(bool(questions.signs(turn)) for turn in row["turns"][1:])
        assert leaning >= 5, (
            f"{row['question_id']}: only {leaning} of seven go on from what was said"
        )


def test_the_offline_conversations_are_not_mt_benchs(mt_bench: list[dict[str, Any]]) -> None:
    theirs = {run for row in mt_bench for turn in row["turns"] for run in _runs(turn, 8)}
    for row in questions.offline():
        for turn in row["turns"]:
            assert not theirs & _runs(turn, 8)
