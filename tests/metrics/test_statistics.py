"""Statistics: known effects are recovered, intervals cover, tests keep their level, power is what
it says."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from hubkit.statistics import (
    Adjusted,
    Bootstrap,
    PairedDifference,
    _t_tails,
    among_several,
    holm,
    noise,
    power,
    ratio,
    sign_flip_p,
    smallest_detectable_effect,
)


def clustered(
    rng: np.random.Generator, clusters: int, mean: float, *, within: float = 0.5
) -> list[tuple[int, float]]:
    """Observations of clusters of 1 to 6, each cluster with an offset of its own."""
    rows = []
    for cluster in range(clusters):
        offset = rng.normal(mean, 1.0)
        rows += [(cluster, rng.normal(offset, within)) for _ in range(rng.integers(1, 7))]
    return rows


@pytest.mark.parametrize("clusters", [8, 40])
def test_intervals_over_clusters_cover_the_truth_and_ones_over_observations_do_not(
    clusters: int,
) -> None:
    rng, covered, naive = np.random.default_rng(1), [], []
    bootstrap = Bootstrap(resamples=400)
    for _ in range(400):
        rows = clustered(rng, clusters, 2.0)
        number = bootstrap.mean(rows)
        assert number.value == pytest.approx(fmean(value for _, value in rows))
        assert number.low is not None and number.high is not None
        covered.append(number.low <= 2.0 <= number.high)
        flat = bootstrap.mean_of([value for _, value in rows])
        assert flat.low is not None and flat.high is not None
        naive.append(flat.low <= 2.0 <= flat.high)
    assert 0.92 <= fmean(covered) <= 0.985, fmean(covered)
    assert fmean(naive) < 0.85, "observations of a cluster are not independent"


def test_skewed_values_of_few_units_are_covered_nearly_as_often_as_said() -> None:
    rng = np.random.default_rng(2)
    hits = []
    for _ in range(400):
        number = Bootstrap(resamples=400).mean_of(list(rng.exponential(1.0, 25)))
        assert number.low is not None and number.high is not None
        hits.append(number.low <= 1.0 <= number.high)
    assert 0.90 <= fmean(hits) <= 0.98, fmean(hits)


def test_a_paired_difference_is_recovered_and_a_null_is_called_one_in_twenty() -> None:
    rng = np.random.default_rng(3)
    found, false_p, false_interval, recovered = [], [], [], []
    for _ in range(200):
        question = rng.normal(5, 2, 30)  # shared by both: cancels in pairs
        first = {(q, turn): question[q] + rng.normal(0, 0.5) for q in range(30) for turn in (1, 2)}
        second = {key: question[key[0]] + rng.normal(0, 0.5) for key in first}
        null = Bootstrap(resamples=300).difference(first, second)
        false_p.append(null.p_value is not None and null.p_value < 0.05)
        false_interval.append(null.outside_noise)
        better = {key: value + 0.5 for key, value in first.items()}
        effect = Bootstrap(resamples=300).difference(better, second)
        found.append(effect.outside_noise)
        recovered.append(effect.difference)
    assert fmean(recovered) == pytest.approx(0.5, abs=0.02) and fmean(found) == 1.0
    assert fmean(false_p) <= 0.09 and 0.01 <= fmean(false_interval) <= 0.09


def test_paired_differences_of_clusters_are_covered() -> None:
    rng, hits = np.random.default_rng(8), []
    for _ in range(200):
        offset = rng.normal(0.3, 1.0, 20)
        first = {
            (c, n): offset[c] + rng.normal(0, 0.5) for c in range(20) for n in range(1 + c % 4)
        }
        found = Bootstrap(resamples=300).difference(first, dict.fromkeys(first, 0.0))
        assert found.low is not None and found.high is not None
        hits.append(found.low <= 0.3 <= found.high)
    assert 0.91 <= fmean(hits) <= 0.985, fmean(hits)


def test_a_median_is_covered() -> None:
    rng, hits = np.random.default_rng(9), []
    for _ in range(300):
        number = Bootstrap(resamples=300).median_of(list(rng.exponential(1.0, 31)))
        assert number.low is not None and number.high is not None
        hits.append(number.low <= math.log(2) <= number.high)
    assert 0.91 <= fmean(hits) <= 0.985, fmean(hits)


def test_a_statistic_that_draws_for_itself_is_covered() -> None:
    rng, hits = np.random.default_rng(10), []
    for _ in range(300):
        values = rng.normal(2.0, 1.0, 25)

        def spread(own: np.random.Generator, values: np.ndarray = values) -> float:
            return float(own.choice(values, len(values)).mean())

        low, high = Bootstrap(resamples=200).replicate(spread, len(values))
        hits.append(low <= 2.0 <= high)
    assert 0.91 <= fmean(hits) <= 0.985, fmean(hits)


def test_what_only_one_side_has_is_left_out_and_one_cluster_has_no_interval() -> None:
    single = Bootstrap().difference({("q", 1): 3.0, ("r", 1): 9.0}, {("q", 1): 1.0})
    assert (single.difference, single.n, single.clusters) == (2.0, 1, 1)
    assert single.low is None and not single.outside_noise and single.smallest_detectable is None
    nothing = Bootstrap().difference({("q", 1): 3.0}, {})
    assert nothing.difference is None and nothing.p_value is None and nothing.n == 0
    assert Bootstrap().mean([]).value is None


def test_intervals_narrow_with_data_and_are_the_same_for_the_same_seed() -> None:
    values = [float(number % 11) for number in range(400)]
    wide, narrow = Bootstrap().mean_of(values[:20]), Bootstrap().mean_of(values)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high  # type: ignore[operator]
    assert Bootstrap().mean_of(values) == narrow != Bootstrap(seed=1).mean_of(values)
    assert Bootstrap().median_of([1, 2, 3, 4, 100]).value == 3


def test_few_clusters_widen_as_student_says() -> None:
    normal = np.random.default_rng(4).normal(0, 1, 100_000)
    low, high = Bootstrap().ends(normal, 1_000_000)
    assert (low, high) == (pytest.approx(-1.96, abs=0.03), pytest.approx(1.96, abs=0.03))
    _, high = Bootstrap().ends(normal, 5)  # √(5/4) · t(0.975; 4) = 1.118 · 2.776
    assert high == pytest.approx(3.104, abs=0.15)
    assert all(map(math.isnan, Bootstrap().ends([1.0, 2.0], 1)))


def test_draws_without_weight_are_left_out() -> None:
    low, high = Bootstrap().interval(3, ratio([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]))
    assert (low, high) == (1.0, 1.0)


def test_sign_flips_are_counted_exactly_for_few_and_sampled_for_many() -> None:
    assert sign_flip_p([1.0, 1.0, 1.0]) == 2 / 8
    assert sign_flip_p([1.0] * 13) == 2 / 2**13
    assert sign_flip_p([1.0] * 40) < 0.001 and sign_flip_p([1.0, -1.0] * 20) == 1.0


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "b": 0.06, "c": 0.06}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def paired(p_value: float | None, low: float, high: float) -> PairedDifference:
    return PairedDifference((low + high) / 2, low, high, p_value, None, 9, 9, 0.95)


def test_what_is_outside_the_noise_alone_need_not_be_so_among_several() -> None:
    several = {
        "a": paired(0.01, 0.1, 0.3),
        "b": paired(0.04, 0.1, 0.3),
        "c": paired(0.03, 0.1, 0.3),
        "d": paired(None, 0.1, 0.3),
    }
    assert among_several(several) == {
        "a": Adjusted(0.03, True),
        "b": Adjusted(0.06, False),
        "c": Adjusted(0.06, False),
        "d": Adjusted(None, False),
    }
    assert among_several({"b": several["b"]}) == {"b": Adjusted(0.04, True)}
    unsure = paired(0.01, -0.1, 0.3)
    assert among_several({"e": unsure}) == {"e": Adjusted(0.01, False)}, "its interval holds 0"


def test_a_table_without_any_difference_is_called_one_in_at_most_one_of_twenty() -> None:
    rng, alone, adjusted = np.random.default_rng(11), [], []
    for _ in range(100):
        table = {
            n: Bootstrap(resamples=100).difference(
                {(k,): value for k, value in enumerate(rng.normal(0, 1, 20))},
                {(k,): 0.0 for k in range(20)},
            )
            for n in range(10)
        }
        alone.append(any(c.outside_noise for c in table.values()))
        adjusted.append(any(found.outside_noise for found in among_several(table).values()))
    assert fmean(alone) > 0.2 and fmean(adjusted) <= 0.1, (fmean(alone), fmean(adjusted))


@pytest.mark.parametrize(
    ("degrees", "t"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (30, 2.04227)],
)
def test_students_p_value_is_that_of_the_tables(degrees: int, t: float) -> None:
    assert _t_tails(t, degrees) == _t_tails(-t, degrees) == pytest.approx(0.05, abs=1e-6)
    assert _t_tails(0.0, degrees) == 1.0


def test_power_is_what_simulations_find() -> None:
    effect = smallest_detectable_effect(2.0, 50)
    assert effect == pytest.approx((1.959964 + 0.841621) * 2 / math.sqrt(50), rel=1e-5)
    assert power(effect, 2.0, 50) == pytest.approx(0.8, abs=1e-3)
    assert power(0.0, 1.0, 9) == pytest.approx(0.05)
    rng = np.random.default_rng(5)
    found = [
        Bootstrap(resamples=300).mean_of(list(rng.normal(effect, 2.0, 50))).excludes_zero
        for _ in range(400)
    ]
    assert 0.74 <= fmean(found) <= 0.86, fmean(found)


def test_a_mean_over_pairs_covers_and_a_mean_over_units_does_not() -> None:
    rng, covered, naive = np.random.default_rng(6), [], []
    for _ in range(200):
        x = rng.normal(0, 1, 25)
        gaps = np.abs(x[:, None] - x[None])
        number = Bootstrap(resamples=200).mean_over_pairs(gaps)
        assert number.value == pytest.approx(gaps.sum() / (25 * 24))
        assert number.low is not None and number.high is not None
        truth = 2 / math.sqrt(math.pi)  # E|x - y| of two standard normals
        covered.append(number.low <= truth <= number.high)
        units = Bootstrap(resamples=200).mean_of(list(gaps.sum(1) / 24))
        assert units.low is not None and units.high is not None
        naive.append(units.low <= truth <= units.high)
    assert 0.90 <= fmean(covered) <= 0.98, fmean(covered)
    assert fmean(naive) < 0.85, "a pair's two units are both drawn"
    assert Bootstrap().mean_over_pairs([[0.0]]).value is None


def test_an_interval_of_two_samples_covers_a_distance_although_it_is_biased() -> None:
    rng, hits = np.random.default_rng(7), []
    for _ in range(200):
        first, second = rng.normal(0, 1, 40), rng.normal(1.5, 1, 60)

        def gap(
            i: np.ndarray, j: np.ndarray, a: np.ndarray = first, b: np.ndarray = second
        ) -> float:
            return abs(float(a[i].mean() - b[j].mean()))

        value = abs(float(first.mean() - second.mean()))
        low, high = Bootstrap(resamples=200).of_two((40, 60), gap, value=value, lowest=0.0)
        hits.append(low <= 1.5 <= high)
    assert 0.91 <= fmean(hits) <= 0.98, fmean(hits)


def test_only_this_module_says_what_is_noise_or_makes_an_interval() -> None:
    assert noise(True) == "outside the noise" and noise(False) == "within the noise"
    root = Path(__file__).parents[2]
    files = [*(root / "hubkit").rglob("*.py"), *(root / "spaces").rglob("*.py"),
             *(root / "cards").rglob("*.jinja")]  # fmt: skip
    assert len(files) > 300
    for file in files:
        if file.name == "statistics.py":
            continue
        text = file.read_text("utf-8")
        for own in ('outside the noise"', 'within the noise"', '"within the noise', "percentile(",
                    "0.975", "1.96"):  # fmt: skip
            assert own not in text, f"{file}: {own} belongs into hubkit/statistics.py"


def test_an_interval_over_clusters_and_replicates_covers_the_truth() -> None:
    """40 conversations, three seeds that disagree: 95 % intervals hold the effect that was planted
    in about 95 of 100 worlds, and one that ignored the seeds would not."""
    rng = np.random.default_rng(5)
    covered = ignoring = 0
    worlds = 400
    for world in range(worlds):
        seeds, talks = rng.normal(0, 0.05, (3, 1)), rng.normal(0, 0.2, (1, 40))
        totals = 0.1 + seeds + talks + rng.normal(0, 0.05, (3, 40))
        statistics = Bootstrap(resamples=200, seed=world)
        estimate = statistics.over_replicates(totals.tolist(), [1.0] * 40)
        assert estimate.low is not None and estimate.high is not None
        covered += estimate.low <= 0.1 <= estimate.high
        assert (estimate.p_value < 0.05) == estimate.outside_noise  # type: ignore[operator]
        alone = statistics.mean_of(totals.mean(0).tolist())
        assert alone.low is not None and alone.high is not None
        ignoring += alone.low <= 0.1 <= alone.high
    assert 0.93 <= covered / worlds <= 0.99 and ignoring / worlds < 0.9


def test_replicates_that_agree_add_nothing() -> None:
    values = [0.1, 0.3, 0.2, 0.6, 0.4]
    one = Bootstrap(resamples=500).over_replicates([values], [1.0] * 5)
    three = Bootstrap(resamples=500).over_replicates([values] * 3, [1.0] * 5)
    assert (one.low, one.high) == pytest.approx((three.low, three.high))
    assert three.replicates_share == pytest.approx(0, abs=1e-9) and one.replicates_share is None
