"""What a study's differences allow one to say: each is one of several."""

from __future__ import annotations

from typing import Any

import pytest

from hubkit.evaluation.utility import FOLLOW_UPS, TurnLosses, summary, verdicts
from hubkit.statistics import Bootstrap

SHIFTS = [0.5, 1.2, 0.2, 1.4, 0.1, 1.0]  # of six conversations, when an arm is worse


def losses(by: float) -> TurnLosses:
    ids = [str(number) for number in range(len(SHIFTS))]
    nats = [[20.0, 20.0 + 10 * by * shift] for shift in SHIFTS]
    return TurnLosses(ids, nats, [[10, 10] for _ in ids])


def report(**arms: float) -> dict[str, Any]:
    made = summary(
        {arm: [losses(by)] for arm, by in arms.items()},
        statistics=Bootstrap(2000),
        baseline=losses(0.0),
    )
    return {**made, "titles": {}}


def test_a_difference_counts_for_less_among_more_arms() -> None:
    def of(made: dict[str, Any], arm: str, against: str) -> dict[str, Any]:
        (found,) = [
            entry
            for entry in made["differences"]
            if (entry["arm"], entry["against"], entry["depth"]) == (arm, against, FOLLOW_UPS)
        ]
        return found

    two, four = report(people=0.0, single=1.0), report(people=0.0, single=1.0, a=0.02, b=0.01)
    alone, among = of(two, "single", "people"), of(four, "single", "people")
    assert alone["p_holm"] == alone["p_value"] == among["p_value"] < 0.05
    assert alone["outside_noise"] and alone["low"] > 0
    assert among["p_holm"] == pytest.approx(6 * among["p_value"]) and not among["outside_noise"]
    back = of(four, "people", "single")
    assert back["value"] == -among["value"] and back["p_holm"] == among["p_holm"]
    assert "(Holm), outside the noise" in verdicts(two)[0]
    assert "(Holm), within the noise" in verdicts(four)[0]


def test_what_students_gained_on_their_base_is_paired() -> None:
    gained = report(same=0.0, worse=1.0)["less_base"]
    same, worse = gained["same"][FOLLOW_UPS], gained["worse"][FOLLOW_UPS]
    assert (same["value"], same["low"], same["high"]) == (0.0, 0.0, 0.0)
    assert worse["value"] == pytest.approx(sum(SHIFTS) / len(SHIFTS)) and worse["low"] > 0
    assert gained["worse"]["1"]["value"] == 0.0, "only follow-ups were made worse"
