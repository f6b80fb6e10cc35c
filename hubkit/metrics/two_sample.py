"""Two sets of turns in an embedding space: can they be told apart, does one cover the other, and do
they speak of the same things?

Takes unit vectors, one a turn, of a model and of people; gives a classifier two-sample test with
its power, density and coverage, the divergence of their clusters, each with an interval, and the
turns of either side that are alike in length."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from hubkit.metrics.lexical import words
from hubkit.statistics import Bootstrap, Number

if TYPE_CHECKING:
    from hubkit.metrics.topics import Matrix

FOLDS = 5
NEIGHBOURS = 5
MOST_CLUSTERS = 20
_RIDGE = 1.0


@dataclass(frozen=True, slots=True)
class TwoSample:
    """A classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545).

    Attributes:
        auc: Out-of-fold AUC of telling model from people: 0.5 is not at all.
        p_value: How often labels that are shuffled by conversation give an AUC as high.
        null_high: What AUC people against people exceed one time in twenty at this n; an AUC below
            it shows nothing.
        detectable: The AUC that a model must have to be found with 80 % power at this n.
        power: Chance of finding a model that is as far from people as this one looks, at this n.
        n: Turns of either side.
        low: Lower end of the AUC's interval; None where none was resampled.
        high: Upper end."""

    auc: float
    p_value: float
    null_high: float
    detectable: float
    power: float
    n: int
    low: float | None = None
    high: float | None = None


def two_sample(
    model: Matrix,
    people: Matrix,
    *,
    groups: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    permutations: int = 200,
    resamples: int = 0,
    seed: int = 0,
) -> TwoSample:
    """Test whether a linear classifier tells a model's turns from people's.

    Ridge discriminant on the vectors, five folds; turns of one group (a conversation) share a fold
    and a label, in the permutations too. Both sides are cut to the smaller number of turns.

    Args:
        groups: What each turn belongs to, of either side; None: each turn is its own.
        permutations: Shufflings of labels that the p-value and the power come from.
        resamples: Draws of groups that the interval comes from; the classifier is trained anew on
            each."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # many small systems: threads would wait for each other
        return _tested(model, people, groups, permutations, Bootstrap(resamples, seed=seed))


def _tested(
    model: Matrix,
    people: Matrix,
    groups: tuple[Sequence[Hashable], Sequence[Hashable]] | None,
    permutations: int,
    bootstrap: Bootstrap,
) -> TwoSample:
    import numpy as np

    rng = np.random.default_rng(bootstrap.seed)
    n = min(len(model), len(people))
    drawn_rows = [np.sort(rng.permutation(len(side))[:n]) for side in (model, people)]
    labelled = groups or (range(len(model)), range(len(people)))
    names = [(side, labelled[side][row]) for side in (0, 1) for row in drawn_rows[side]]
    places = {name: index for index, name in enumerate(dict.fromkeys(names))}
    group = np.array([places[name] for name in names])
    x = np.concatenate([model[drawn_rows[0]], people[drawn_rows[1]]]).astype(float)
    label_of = np.array([side for side, _ in places])
    fold_of = rng.permutation(len(places)) % FOLDS
    shuffled = np.array([rng.permutation(label_of) for _ in range(permutations)])
    aucs = _aucs(x, np.vstack([label_of, shuffled])[:, group], fold_of[group])
    auc, null = float(aucs[0]), aucs[1:]
    null_high, spread = float(np.quantile(null, 0.95)), float(null.std()) or 1e-9
    low, high = (
        _interval(x, group, label_of, fold_of, auc, bootstrap)
        if bootstrap.resamples
        else (None, None)
    )
    normal = NormalDist()
    return TwoSample(
        auc=auc,
        p_value=float((1 + (null >= auc).sum()) / (1 + permutations)),
        null_high=null_high,
        detectable=min(1.0, null_high + normal.inv_cdf(0.8) * spread),
        power=1 - normal.cdf((null_high - auc) / spread),
        n=n,
        low=low,
        high=high,
    )


def _interval(
    x: Any, group: Any, label_of: Any, fold_of: Any, auc: float, bootstrap: Bootstrap
) -> tuple[float | None, float | None]:
    """Groups of either side drawn with replacement, one drawn twice in one fold."""
    import numpy as np

    rows_of = [np.flatnonzero(group == number) for number in range(len(label_of))]
    sides = [np.flatnonzero(label_of == side) for side in (0, 1)]

    def statistic(first: Any, second: Any) -> float:
        pooled = np.concatenate([sides[0][first], sides[1][second]])
        rows = np.concatenate([rows_of[number] for number in pooled])
        return float(_aucs(x[rows], label_of[group[rows]][None], fold_of[group[rows]])[0])

    low, high = bootstrap.of_two(
        (len(sides[0]), len(sides[1])), statistic, value=auc, lowest=0.0, highest=1.0
    )
    return (None, None) if np.isnan(low) else (low, high)


def _aucs(x: Any, labels: Any, folds: Any) -> Any:
    """Mean AUC over folds, each by its number of pairs, for each row of `labels`; 1 is people.

    What a ridge discriminant says of a fold is linear in the labels of the others, so one matrix
    serves every row."""
    import numpy as np

    sums, weights = np.zeros(len(labels)), np.zeros(len(labels))
    for fold in range(FOLDS):
        test = folds == fold
        if not test.any() or test.all():
            continue
        centre = x[~test].mean(0)
        train, held_out = x[~test] - centre, x[test] - centre
        if len(train) > x.shape[1]:
            gram = train.T @ train + _RIDGE * np.eye(x.shape[1])
            weigh = held_out @ np.linalg.solve(gram, train.T)
        else:
            kernel = train @ train.T + _RIDGE * np.eye(len(train))
            weigh = np.linalg.solve(kernel, train @ held_out.T).T
        target = 2.0 * labels[:, ~test] - 1
        scores = (target - target.mean(1, keepdims=True)) @ weigh.T
        ones = labels[:, test].sum(1)
        pairs = ones * (int(test.sum()) - ones)
        usable = (pairs > 0) & (np.ptp(target, axis=1) > 0)
        for row in np.flatnonzero(usable):
            sums[row] += _higher(scores[row], labels[row, test] == 1)
        weights[usable] += pairs[usable]
    return np.where(weights > 0, sums / np.maximum(weights, 1), 0.5)


def _higher(scores: Any, ones: Any) -> float:
    """In how many pairs the score of one of `ones` is above another's, ties half."""
    import numpy as np

    lower = np.sort(scores[~ones])
    below = np.searchsorted(lower, scores[ones], "left")
    return float((below + np.searchsorted(lower, scores[ones], "right")).sum() / 2)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Density and coverage (Naeem et al. 2020, arXiv 2002.09797).

    Attributes:
        density: How many of people's neighbourhoods a model's turn lies in, over `NEIGHBOURS`: 1
            where it is like people, less where its turns are unlike any.
        coverage: Share of people's turns that have a model's turn in their neighbourhood: low where
            a model says few different things.
        n: Turns of either side.
        density_number: The density with its interval over the model's turns, people's held.
        coverage_number: The coverage with its interval over people's turns, the model's held."""

    density: float
    coverage: float
    n: int
    density_number: Number
    coverage_number: Number


def coverage(
    model: Matrix, people: Matrix, neighbours: int = NEIGHBOURS, *, resamples: int = 500
) -> Coverage | None:
    """Measure how a model's turns lie in people's neighbourhoods: the balls to each person's turn's
    `neighbours`-th nearest other turn of people. Both sides are cut to the smaller number; None for
    too few."""
    import numpy as np

    n = min(len(model), len(people))
    if n <= neighbours:
        return None
    generated, real = model[:n].astype(float), people[:n].astype(float)
    among = 1 - real @ real.T
    np.fill_diagonal(among, np.inf)
    radius = np.partition(among, neighbours - 1, axis=1)[:, neighbours - 1]
    inside = (1 - real @ generated.T) <= radius[:, None]
    bootstrap = Bootstrap(resamples)
    density = bootstrap.mean_of(list(inside.sum(0) / neighbours))
    covered = bootstrap.mean_of(list(inside.any(1).astype(float)))
    return Coverage(
        density=float(inside.sum() / (neighbours * n)),
        coverage=float(inside.any(1).mean()),
        n=n,
        density_number=density,
        coverage_number=covered,
    )


def cluster_divergence(
    model: Matrix, people: Matrix, *, resamples: int = 500, seed: int = 0
) -> Number:
    """Measure how unlike two sides spread over what is talked about: the Jensen-Shannon divergence
    (Lin 1991, in bits, 0 to 1) of their shares of k-means clusters of both together.

    As in MAUVE (arXiv 2102.01454) both sides are quantised together; there the divergence is
    another. There is a cluster for ten turns a side, `MOST_CLUSTERS` at most. Few turns alone give
    a divergence, so compare with that of people and people. No value for fewer than 20 turns."""
    import numpy as np
    from sklearn.cluster import KMeans

    n = min(len(model), len(people))
    clusters = min(MOST_CLUSTERS, n // 10)
    if clusters < 2:
        return Number(None, n)
    vectors = np.concatenate([model[:n], people[:n]])
    clusters = min(clusters, len(np.unique(vectors.round(6), axis=0)))
    labels = KMeans(clusters, random_state=seed, n_init=4).fit_predict(vectors)
    sides = labels[:n], labels[n:]

    def statistic(first: Any, second: Any) -> float:
        return _jensen_shannon(
            *(np.bincount(side, minlength=clusters) / len(side) for side in (first, second))
        )

    value = statistic(*sides)
    low, high = Bootstrap(resamples, seed=seed).of_two(
        (n, n),
        lambda first, second: statistic(sides[0][first], sides[1][second]),
        value=value,
        lowest=0.0,
        highest=1.0,
    )
    return Number(value, n, low, high)


def _jensen_shannon(first: Any, second: Any) -> float:
    import numpy as np

    middle = (first + second) / 2
    total = 0.0
    for side in (first, second):
        at = side > 0
        total += float((side[at] * np.log2(side[at] / middle[at])).sum()) / 2
    return max(0.0, total)


def alike_in_length(
    first: Sequence[str], second: Sequence[str], *, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Choose turns of either side so that their lengths are alike: as many of each half power of
    two of words as both sides have.

    What is told apart among these is not told by length alone.

    Returns:
        The places of those chosen, of either side, in order."""
    rng = random.Random(seed)
    bins: list[dict[int, list[int]]] = [defaultdict(list), defaultdict(list)]
    for side, texts in zip(bins, (first, second), strict=True):
        for index, text in enumerate(texts):
            side[_length_class(text)].append(index)
    chosen: tuple[list[int], list[int]] = ([], [])
    for length in sorted(bins[0].keys() & bins[1].keys()):
        number = min(len(side[length]) for side in bins)
        for places, side in zip(chosen, bins, strict=True):
            places.extend(rng.sample(side[length], number))
    return sorted(chosen[0]), sorted(chosen[1])


def _length_class(text: str) -> int:
    """The half power of two that is nearest to the number of words."""
    return round(2 * math.log2(1 + len(words(text))))
