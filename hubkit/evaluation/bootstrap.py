"""Intervals by the percentile bootstrap (Efron, 1979): what would have come out for another sample
of the same kind.

Takes how many units there are (conversations, questions) and a statistic of drawn units; gives the
interval's ends. Units, not their parts, are drawn: tokens of one conversation, or turns of one
question, are not independent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]
    Values = npt.NDArray[np.float64]


def interval(
    units: int,
    statistic: Callable[[Indices], Values],
    *,
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> tuple[float, float]:
    """Ends of the percentile interval at `confidence`, from `resamples` draws of `units` units with
    replacement.

    `statistic` gets the draws, ``(resamples, units)`` indices, and gives one value a draw; a draw
    without any (nan) is left out. Both ends are nan when every draw is."""
    import numpy as np

    drawn = np.random.default_rng(seed).integers(0, units, (resamples, units))
    values = statistic(drawn)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def ratio(tops: Any, bottoms: Any) -> Callable[[Indices], Values]:
    """The statistic ``sum of tops ÷ sum of bottoms`` over what was drawn: a mean over parts, when
    units are drawn.
    """
    import numpy as np

    above, below = np.asarray(tops, dtype=float), np.asarray(bottoms, dtype=float)

    def statistic(drawn: Indices) -> Values:
        weight = below[drawn].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Values = above[drawn].sum(axis=1) / weight
        return found

    return statistic
