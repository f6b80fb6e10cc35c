"""Intervals, paired differences, multiple comparisons and power: the only statistics in hubkit.

Everything resamples *clusters* (conversations, questions, visitors): tokens of one conversation or
turns of one question are not independent, so they are drawn together or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, TypeVar

from hubkit.untrusted import JsonObject

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Generator = np.random.Generator
    Indices = npt.NDArray[np.int64]
    Values = npt.NDArray[np.float64]

Key = TypeVar("Key", bound=tuple[Hashable, ...])
Name = TypeVar("Name", bound=Hashable)
_CHUNK = 4_000_000  # indices drawn at once: 32 MB


def noise(outside: bool) -> str:
    """Say whether an interval lies on one side of zero; nothing else says it in words."""
    return "outside the noise" if outside else "within the noise"


@dataclass(frozen=True, slots=True)
class Number:
    """An estimate from `n` observations with its interval; all None where there is nothing to
    estimate from, `low` and `high` alone where one cluster says nothing about another."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero: "outside the noise"."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The mean of paired differences over `n` pairs in `clusters` clusters.

    `p_value` is two-sided, of the sign-flip test; `smallest_detectable` the true difference that
    this many clusters find with 80 % power."""

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    smallest_detectable: float | None
    n: int
    clusters: int
    confidence: float

    @property
    def outside_noise(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return Number(self.difference, self.n, self.low, self.high).excludes_zero

    def to_dict(self) -> JsonObject:
        """Plain data, `outside_noise` included."""
        return {**asdict(self), "outside_noise": self.outside_noise}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over clusters and replicates with its interval.

    `p_value` is two-sided, of Student's test with the interval's degrees of freedom;
    `smallest_detectable` the true value that a study of this size tells from zero with 80 % power;
    `replicates_share` the part of the variance that replicates add to that of clusters."""

    value: float
    low: float | None
    high: float | None
    p_value: float | None
    smallest_detectable: float | None
    replicates_share: float | None
    clusters: int
    replicates: int
    confidence: float

    @property
    def outside_noise(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return Number(self.value, self.clusters, self.low, self.high).excludes_zero

    def to_dict(self) -> JsonObject:
        """Plain data, `outside_noise` included."""
        return {**asdict(self), "outside_noise": self.outside_noise}


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are made: `resamples` draws of clusters with replacement, from `seed`."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def interval(
        self, clusters: int, statistic: Callable[[Indices], Values]
    ) -> tuple[float, float]:
        """Resample a statistic and return the ends of its interval.

        Args:
            clusters: How many clusters there are to draw from.
            statistic: Gets draws, ``(draws, clusters)`` indices, and returns one value a draw; nan
                where a draw has none.

        Returns:
            Both ends (see `ends`); nan for a single cluster or where every draw is nan."""
        import numpy as np

        if clusters < 2:
            return math.nan, math.nan
        values = np.concatenate([statistic(draws) for draws in self.draws(clusters)])
        return self.ends(values, clusters)

    def draws(self, clusters: int) -> Iterator[Indices]:
        """Draw clusters with replacement, `resamples` times: ``(draws, clusters)`` indices, some
        draws at a time. The same for the same seed."""
        import numpy as np

        rng = np.random.default_rng(self.seed)
        rows = max(1, _CHUNK // max(clusters, 1))
        for start in range(0, self.resamples, rows):
            yield rng.integers(0, clusters, (min(rows, self.resamples - start), clusters))

    def of_two(
        self,
        sizes: tuple[int, int],
        statistic: Callable[[Indices, Indices], float],
        *,
        value: float | None = None,
        lowest: float = -math.inf,
        highest: float = math.inf,
    ) -> tuple[float, float]:
        """Resample a statistic of two samples, each drawn for itself.

        Args:
            sizes: How many clusters either sample has.
            statistic: Gets the indices drawn of either, and returns its value.
            value: What the statistic is without resampling. Given, the resampled values are moved
                so that this is their mean: a distance or a classifier's accuracy is biased, and
                that of resamples twice.
            lowest: What values are cut at, as the statistic cannot be lower.
            highest: The same above.

        Returns:
            Both ends (see `ends`), for the smaller number of clusters."""
        import numpy as np

        rng = np.random.default_rng(self.seed)
        values = np.array(
            [
                statistic(*(rng.integers(0, size, size) for size in sizes))
                for _ in range(self.resamples)
            ],
            float,
        )
        if value is not None:
            values = np.clip(values - np.nanmean(values) + value, lowest, highest)
        return self.ends(values, min(sizes))

    def replicate(
        self, statistic: Callable[[Generator], float], clusters: int
    ) -> tuple[float, float]:
        """Resample a statistic that draws its `clusters` itself, by the generator that it is given,
        and return the ends of its interval (see `ends`)."""
        import numpy as np

        rng = np.random.default_rng(self.seed)
        return self.ends([statistic(rng) for _ in range(self.resamples)], clusters)

    def mean_over_pairs(self, values: Any) -> Number:
        """Estimate the mean of a symmetric measure over all pairs of different units.

        A pair's two units are drawn each for itself (a U-statistic, Hoeffding 1948): the mean per
        unit varies half as much as the mean over pairs does, so its interval would be too narrow.

        Args:
            values: ``(units, units)``, its diagonal ignored."""
        import numpy as np

        pairs = np.array(values, float)
        n = len(pairs)
        if n < 2:
            return Number(None, 0)
        np.fill_diagonal(pairs, 0.0)
        value = float(pairs.sum() / (n * (n - 1)))

        def statistic(indices: Indices) -> Values:
            weights = np.zeros((len(indices), n))
            np.add.at(weights, (np.arange(len(indices))[:, None], indices), 1.0)
            sums: Values = ((weights @ pairs) * weights).sum(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                means: Values = sums / (n**2 - (weights**2).sum(axis=1))
            return means

        low, high = self.interval(n, statistic)
        return Number(value, n, low, high) if not math.isnan(low) else Number(value, n)

    def ends(self, values: Any, clusters: int) -> tuple[float, float]:
        """Return the expanded percentile interval of resampled `values` of `clusters` clusters.

        The percentile interval (Efron 1979) is too narrow for few clusters; its percentiles are
        moved out to Φ(−√(n/(n−1))·t) after Hesterberg 2015, doi 10.1080/00031305.2015.1089789."""
        import numpy as np

        values = np.asarray(values, float)
        values = values[~np.isnan(values)]
        if not len(values) or clusters < 2:
            return math.nan, math.nan
        t = _t_quantile((1 + self.confidence) / 2, clusters - 1)
        tail = NormalDist().cdf(-math.sqrt(clusters / (clusters - 1)) * t)
        low, high = np.quantile(values, [tail, 1 - tail])
        return float(low), float(high)

    def mean(self, values: Iterable[tuple[Hashable, float]]) -> Number:
        """Estimate the mean of (cluster, value) observations, drawing clusters."""
        sums, n = _by_cluster(values)
        if not n:
            return Number(None, 0)
        tops, counts = zip(*sums.values(), strict=True)
        low, high = self.interval(len(sums), ratio(tops, counts))
        value = float(sum(tops) / n)
        return Number(value, n) if math.isnan(low) else Number(value, n, low, high)

    def mean_of(self, values: Sequence[float]) -> Number:
        """Estimate the mean of `values`, each a cluster of its own."""
        return self.mean(enumerate(values))

    def over_replicates(
        self, totals: Sequence[Sequence[float]], weights: Sequence[float]
    ) -> Estimate:
        """Estimate ``sum of totals ÷ sum of weights`` over clusters, averaged over replicates.

        Replicates (students trained with other seeds) are crossed with clusters (conversations):
        each was measured on all of them. The variance is that of clusters, bootstrapped with the
        replicates averaged, plus that of the replicates' own estimates over their number; the
        interval is Student's, its degrees of freedom after Satterthwaite 1946, doi 10.2307/3002019.
        So three replicates that disagree widen it as three observations must.

        Args:
            totals: One row a replicate, one value a cluster.
            weights: What each cluster weighs, the same in all replicates.

        Returns:
            The estimate; without an interval for a single cluster. A single replicate's interval
            covers the choice of clusters alone."""
        import numpy as np

        data, sizes = np.asarray(totals, float), np.asarray(weights, float)
        replicates, clusters = data.shape
        value = float(data.mean(0).sum() / sizes.sum())
        if clusters < 2:
            return Estimate(
                value, None, None, None, None, None, clusters, replicates, self.confidence
            )
        draws: list[float] = []
        statistic = ratio(data.mean(0), sizes)

        def keep(indices: Indices) -> Values:
            values = statistic(indices)
            draws.extend(values.tolist())
            return values

        self.interval(clusters, keep)
        parts = [(float(np.nanvar(draws)) * clusters / (clusters - 1), clusters - 1)]
        if replicates > 1:
            overall = data.sum(1) / sizes.sum()
            parts.append((float(overall.var(ddof=1)) / replicates, replicates - 1))
        variance = sum(part for part, _ in parts)
        below = sum(part**2 / degrees for part, degrees in parts)
        degrees = max(1, round(variance**2 / below)) if below else clusters - 1
        error = math.sqrt(variance)
        half = _t_quantile((1 + self.confidence) / 2, degrees) * error
        return Estimate(
            value=value,
            low=value - half,
            high=value + half,
            p_value=_t_tails(value / error, degrees) if error else float(value == 0),
            smallest_detectable=half + NormalDist().inv_cdf(0.8) * error,
            replicates_share=parts[-1][0] / variance if replicates > 1 and variance else None,
            clusters=clusters,
            replicates=replicates,
            confidence=self.confidence,
        )

    def median_of(self, values: Sequence[float]) -> Number:
        """Estimate the median of `values`, each a cluster of its own."""
        import numpy as np

        if not len(values):
            return Number(None, 0)
        data = np.asarray(values, float)
        low, high = self.interval(len(data), lambda indices: np.median(data[indices], axis=1))
        value = float(np.median(data))
        return Number(value, len(data)) if math.isnan(low) else Number(value, len(data), low, high)

    def difference(
        self,
        first: Mapping[Key, float],
        second: Mapping[Key, float],
    ) -> PairedDifference:
        """Compare paired observations: the mean of `first` less `second` over the keys of both.

        Args:
            first: Observations by key; a key's first part is its cluster.
            second: The same of what `first` is compared with.

        Returns:
            The difference with its interval, p-value and what this many clusters can detect."""
        pairs = [(key[0], first[key] - second[key]) for key in first if key in second]
        number = self.mean(pairs)
        sums, n = _by_cluster(pairs)
        totals = [total for total, _ in sums.values()]
        mean_size = n / len(sums) if sums else 1.0
        spread = _deviation([total / mean_size for total in totals])
        return PairedDifference(
            difference=number.value,
            low=number.low,
            high=number.high,
            p_value=sign_flip_p(totals, seed=self.seed) if n else None,
            smallest_detectable=smallest_detectable_effect(
                spread, len(sums), alpha=1 - self.confidence
            )
            if len(sums) > 1
            else None,
            n=n,
            clusters=len(sums),
            confidence=self.confidence,
        )


def ratio(tops: Any, bottoms: Any) -> Callable[[Indices], Values]:
    """Return the statistic ``sum of tops ÷ sum of bottoms`` over what was drawn: the mean over
    observations when their clusters are drawn."""
    import numpy as np

    above, below = np.asarray(tops, dtype=float), np.asarray(bottoms, dtype=float)

    def statistic(indices: Indices) -> Values:
        weight = below[indices].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            values: Values = above[indices].sum(axis=1) / weight
        return values

    return statistic


def sign_flip_p(totals: Sequence[float], *, seed: int = 0, flips: int = 10_000) -> float:
    """Test whether cluster totals of paired differences are centred on zero.

    Signs of whole clusters are flipped at random (Fisher 1935): all 2^n flips for up to 13
    clusters, else `flips` of them.

    Returns:
        The two-sided p-value; never 0, as the observed signs are one of the flips."""
    import numpy as np

    data = np.asarray(totals, float)
    observed = abs(data.sum()) - 1e-12 * np.abs(data).sum()
    if len(data) <= 13:
        signs = 1 - 2 * ((np.arange(2 ** len(data))[:, None] >> np.arange(len(data))) & 1)
        return float((np.abs(signs @ data) >= observed).mean())
    rng, hits = np.random.default_rng(seed), 0
    for start in range(0, flips, 500):
        signs = rng.choice((-1.0, 1.0), (min(500, flips - start), len(data)))
        hits += int((np.abs(signs @ data) >= observed).sum())
    return (hits + 1) / (flips + 1)


@dataclass(frozen=True, slots=True)
class Adjusted:
    """What one comparison of several says: `p_holm` is its p-value, adjusted for their number;
    `outside_noise`, whether that is below the level and the interval on one side of zero."""

    p_holm: float | None
    outside_noise: bool


def among_several(
    comparisons: Mapping[Name, PairedDifference | Estimate],
) -> dict[Name, Adjusted]:
    """Judge comparisons of one table: of twenty without any difference, one would lie
    outside the noise by its own interval.

    Args:
        comparisons: All of the table, by any name.

    Returns:
        The same names, each with its adjusted p-value (see `holm`)."""
    tested = {name: c.p_value for name, c in comparisons.items() if c.p_value is not None}
    adjusted = holm(tested)
    judged = {}
    for name, comparison in comparisons.items():
        p_value = adjusted.get(name)
        small = p_value is not None and p_value < 1 - comparison.confidence
        judged[name] = Adjusted(p_value, small and comparison.outside_noise)
    return judged


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjust p-values of several comparisons so that the chance of any false one stays at α.

    Holm's step-down method (1979): the k-th smallest of m is multiplied by m − k + 1, and none is
    smaller than the one before it."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[Name, float] = {}
    floor = 0.0
    for index, name in enumerate(ordered):
        floor = max(floor, min(1.0, p_values[name] * (len(ordered) - index)))
        adjusted[name] = floor
    return {name: adjusted[name] for name in p_values}


def power(effect: float, deviation: float, n: int, *, alpha: float = 0.05) -> float:
    """Return the chance that a two-sided test on `n` independent differences finds a true `effect`.

    Normal approximation: Φ(|effect|·√n/deviation − z) + Φ(−|effect|·√n/deviation − z).

    Args:
        effect: The true mean difference, in the unit of `deviation`.
        deviation: The standard deviation of one difference.
        n: How many differences (clusters) there are.
        alpha: The test's level."""
    if deviation <= 0:
        return 1.0 if effect else alpha
    z, shift = NormalDist().inv_cdf(1 - alpha / 2), abs(effect) * math.sqrt(n) / deviation
    return NormalDist().cdf(shift - z) + NormalDist().cdf(-shift - z)


def smallest_detectable_effect(
    deviation: float, n: int, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Return the true mean difference that `n` differences find with this `power`.

    (z(1−α/2) + z(power))·deviation/√n."""
    quantile = NormalDist().inv_cdf
    return (quantile(1 - alpha / 2) + quantile(power)) * deviation / math.sqrt(n)


def relative_error(values: Sequence[float], *, confidence: float = 0.95) -> float:
    """Return the half width of the mean's normal interval over the mean; 1 where two values or a
    mean other than zero are missing."""
    if len(values) < 2 or not sum(values):
        return 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return z * _deviation(values) / math.sqrt(len(values)) / (sum(values) / len(values))


def _by_cluster(
    values: Iterable[tuple[Hashable, float]],
) -> tuple[dict[Hashable, list[float]], int]:
    """Cluster → [sum, count], and how many observations there are."""
    sums: dict[Hashable, list[float]] = {}
    n = 0
    for cluster, value in values:
        entry = sums.setdefault(cluster, [0.0, 0])
        entry[0] += value
        entry[1] += 1
        n += 1
    return sums, n


def _deviation(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else the Cornish-Fisher series
    (Abramowitz & Stegun 26.7.5), within 1 % at 97.5 % for 3 degrees and closer for more."""
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) * math.sqrt(1 / (2 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * degrees**4)
    )


def _t_tails(t: float, degrees: int) -> float:
    """The two-sided p-value of Student's t: exact (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(degrees))
    cosine = math.cos(angle)
    term = cosine if degrees % 2 else 1.0
    total = term if degrees > 1 else 0.0
    for step in range(3 if degrees % 2 else 2, degrees - 1, 2):
        term *= cosine**2 * (step - 1) / step
        total += term
    inside = math.sin(angle) * total
    if degrees % 2:
        inside = (angle + inside) * 2 / math.pi
    return min(1.0, max(0.0, 1.0 - inside))
