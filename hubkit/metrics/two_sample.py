"""Two sets of turns in an embedding space: can they be told apart, and does one cover the other?

Takes unit vectors, one a turn, of a model and of people; gives a classifier two-sample test with
its power, and density and coverage."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubkit.metrics.topics import Matrix

FOLDS = 5
NEIGHBOURS = 5


@dataclass(frozen=True, slots=True)
class TwoSample:
    """A classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545).

    Attributes:
        auc: Out-of-fold AUC of telling model from people: 0.5 is not at all.
        p_value: How often labels that are shuffled by conversation give an AUC as high.
        null_high: What AUC people against people exceed one time in twenty at this n; an AUC below
            it shows nothing.
        power: Chance of finding a model that is as far from people as this one looks, at this n.
        n: Turns of either side."""

    auc: float
    p_value: float
    null_high: float
    power: float
    n: int


def two_sample(
    model: Matrix,
    people: Matrix,
    *,
    groups: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> TwoSample:
    """Test whether a linear classifier tells a model's turns from people's.

    Ridge discriminant on the vectors, five folds; turns of one group (a conversation) share a fold
    and a label, in the permutations too. Both sides are cut to the smaller number of turns.

    Args:
        groups: What each turn belongs to, of either side; None: each turn is its own.
        permutations: Shufflings of labels that the p-value and the power come from."""
    import numpy as np

    rng = np.random.default_rng(seed)
    n = min(len(model), len(people))
    sides = [side[np.sort(rng.permutation(len(side))[:n])] for side in (model, people)]
    labelled = groups or (range(len(model)), range(len(people)))
    names = [(side, key) for side in (0, 1) for key in list(labelled[side])[:n]]
    places = {name: index for index, name in enumerate(dict.fromkeys(names))}
    group = np.array([places[name] for name in names])
    x = np.concatenate(sides).astype(float)
    label_of = np.array([side for side, _ in places])
    folds = rng.permutation(len(places)) % FOLDS
    auc = _auc(x, label_of[group], folds[group])
    null = np.array(
        [_auc(x, rng.permutation(label_of)[group], folds[group]) for _ in range(permutations)]
    )
    high = float(np.quantile(null, 0.95))
    spread = float(null.std()) or 1e-9
    return TwoSample(
        auc=auc,
        p_value=float((1 + (null >= auc).sum()) / (1 + permutations)),
        null_high=high,
        power=float((auc + rng.normal(0, spread, 10_000) > high).mean()),
        n=n,
    )


def _auc(x: Any, labels: Any, folds: Any, ridge: float = 1.0) -> float:
    """Mean AUC over folds, each by its number of pairs; 1 is the label of people."""
    import numpy as np

    aucs, weights = [], []
    for fold in range(FOLDS):
        test = folds == fold
        ones = int(labels[test].sum())
        pairs = ones * (int(test.sum()) - ones)
        if not pairs or len(set(labels[~test])) < 2:
            continue
        centre = x[~test].mean(0)
        target = np.where(labels[~test] == 1, 1.0, -1.0)
        train = x[~test] - centre
        gram = train.T @ train + ridge * np.eye(x.shape[1])
        scores = (x[test] - centre) @ np.linalg.solve(gram, train.T @ (target - target.mean()))
        positive, negative = scores[labels[test] == 1][:, None], scores[labels[test] == 0]
        aucs.append(((positive > negative).sum() + (positive == negative).sum() / 2) / pairs)
        weights.append(pairs)
    return float(np.average(aucs, weights=weights)) if aucs else 0.5


@dataclass(frozen=True, slots=True)
class Coverage:
    """Density and coverage (Naeem et al. 2020, arXiv 2002.09797).

    Attributes:
        density: How many of people's neighbourhoods a model's turn lies in, over `NEIGHBOURS`: 1
            where it is like people, less where its turns are unlike any.
        coverage: Share of people's turns that have a model's turn in their neighbourhood: low where
            a model says few different things."""

    density: float
    coverage: float
    n: int


def coverage(model: Matrix, people: Matrix, neighbours: int = NEIGHBOURS) -> Coverage | None:
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
    return Coverage(
        density=float(inside.sum() / (neighbours * n)), coverage=float(inside.any(1).mean()), n=n
    )
