"""The cross-simulator table: means, intervals and paired differences of rewards, and what is
missing.
"""

from __future__ import annotations

import json

import pytest

from hubkit.metrics.cross_table import (
    ALL,
    CrossTable,
    Scored,
    cross_table,
    notes,
    of,
    picture,
    table,
)
from hubkit.statistics import Bootstrap

REWARDS = {  # (asker, chat) → openings' rewards
    ("own", "base"): [0.1, 0.2, 0.3, None],
    ("own", "tuned"): [0.4, 0.4, 0.7, 0.9],
    ("told", "base"): [0.5, 0.5, None, 0.5],
    ("told", "tuned"): [0.5, None, 0.5, 0.4],
}


@pytest.fixture(scope="module")
def made() -> CrossTable:
    scored = [
        Scored(
            asker, chat, opening, reward, {"judges": reward},
            "" if reward is not None else "judges: judge_timeout", "answers", 2,
        )
        for (asker, chat), rewards in REWARDS.items()
        for opening, reward in enumerate(rewards)
    ]  # fmt: skip
    return cross_table(["own", "told"], ["base", "tuned"], scored, bootstrap=Bootstrap(500, seed=1))


def test_a_cell_is_the_mean_of_what_is_there(made: CrossTable) -> None:
    cell = made.cell("own", "base")
    assert (cell.mean, cell.n) == (pytest.approx(0.2), 3), "what is masked never scores 0"
    assert cell.failures == {"judges: judge_timeout": 1} and cell.mean_answers == 2
    assert cell.low is not None and cell.high is not None and cell.low < 0.2 < cell.high


def test_differences_are_paired_by_opening(made: CrossTable) -> None:
    entries = {(entry.asker, entry.chat): entry for entry in made.differences}
    own, told, both = entries["own", "tuned"], entries["told", "tuned"], entries[ALL, "tuned"]
    assert own.difference == pytest.approx((0.3 + 0.2 + 0.4) / 3) and own.n == 3
    assert told.difference == pytest.approx((0.0 - 0.1) / 2) and told.n == 2
    assert both.difference == pytest.approx((0.3 + 0.2 + 0.4 + 0.0 - 0.1) / 5) and both.n == 5
    for entry in made.differences:
        assert entry.than == "base" and entry.p_value is not None and entry.p_holm is not None
        assert entry.p_holm >= entry.p_value


def test_it_survives_json_and_says_what_is_missing(made: CrossTable) -> None:
    assert of(json.loads(json.dumps(made.to_dict()))) == made
    heads, rows = table(made)
    assert heads == ["chat model", "with own", "with told"] and rows[0][0] == "base"
    assert "base with own: 1 without a reward (judges: judge_timeout 1)" in notes(made)
    assert any("tuned less base, with all askers: +0.16" in note for note in notes(made))
    assert picture(made)[:4] == b"\x89PNG"


def test_a_pair_that_never_met_is_no_zero() -> None:
    scored = [Scored("a", "x", 0, 1.0), Scored("a", "y", 0, None, reason="not_held")]
    made = cross_table(["a"], ["x", "y"], scored, bootstrap=Bootstrap(50), stopped="budget_usd")
    assert made.cell("a", "y").mean is None and made.differences[0].difference is None
    assert table(made)[1][1] == ["y", "n/a"] and picture(made)
    assert "budget_usd ended it early" in notes(made)[-1]


def test_a_difference_is_outside_the_noise_only_among_all_of_its_table() -> None:
    """Six openings that are all better have p = 2/64: enough alone, not in a table of three."""

    def judged(*chats: str) -> CrossTable:
        scored = [
            Scored("own", chat, opening, float(chat == "tuned") + 0.1 * opening)
            for chat in chats
            for opening in range(6)
        ]
        return cross_table(["own"], chats, scored, bootstrap=Bootstrap(200))

    (alone,) = judged("base", "tuned").differences
    assert (alone.p_value, alone.p_holm, alone.outside_noise) == (2 / 64, 2 / 64, True)
    crowded = judged("base", "tuned", "one", "other")
    among = crowded.differences[0]
    assert among.low is not None and among.low > 0, "its own interval is as it was"
    assert (among.p_value, among.p_holm, among.outside_noise) == (2 / 64, 6 / 64, False)
    corrected = "within the noise, p 0.094 (Holm's correction for 3 comparisons)"
    assert corrected in notes(crowded)[0]
