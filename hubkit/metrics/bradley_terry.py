"""Strengths of contestants from votes on pairs of them.

Takes who beat whom, each vote with the cluster (a visitor) that cast it; gives each contestant's
strength compared with one of them, with an interval."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubkit.statistics import Bootstrap, Number

if TYPE_CHECKING:
    from hubkit.statistics import Indices, Values

_STEPS = 500
_PRIOR = 0.5  # wins of either side of a pair that was voted on, before any vote


@dataclass(frozen=True, slots=True)
class Comparison:
    """One vote: `points` of `first` against `second` are 1, ½ for a tie, or 0."""

    cluster: Hashable
    first: str
    second: str
    points: float


def bradley_terry(
    votes: Sequence[Comparison], anchor: str, bootstrap: Bootstrap
) -> dict[str, Number]:
    """Estimate strengths in the Bradley-Terry model (1952): the log odds that a contestant beats
    `anchor`, whose own is 0.

    Fitted by Hunter's MM algorithm (2004, doi 10.1214/aos/1079120141); a tie is half a win for
    either, and each pair that was voted on begins with half a win on both sides, so that one who
    always wins has a finite strength. The interval draws clusters, as one visitor's votes are not
    independent.

    Returns:
        Contestant → log odds, `n` its votes; no value for one whom no chain of votes ties to the
        anchor."""
    import numpy as np

    names = list(dict.fromkeys([anchor, *(n for v in votes for n in (v.first, v.second))]))
    clusters = list(dict.fromkeys(vote.cluster for vote in votes))
    index_of = {name: at for at, name in enumerate(names)}
    row = {cluster: at for at, cluster in enumerate(clusters)}
    wins = np.zeros((len(clusters), len(names), len(names)))
    counts = dict.fromkeys(names, 0)
    for vote in votes:
        first, second, mine = index_of[vote.first], index_of[vote.second], row[vote.cluster]
        wins[mine, first, second] += vote.points
        wins[mine, second, first] += 1 - vote.points
        counts[vote.first] += 1
        counts[vote.second] += 1
    total = wins.sum(0)
    compared = (total + total.T) > 0
    values = _strengths(total[None] + _PRIOR * compared)[0]
    reachable = _reach(compared)
    result = {}
    for name, at in index_of.items():
        if not reachable[at]:
            result[name] = Number(None, counts[name])
            continue

        def strength(indices: Indices, at: int = at) -> Values:
            weights = np.zeros((len(indices), len(clusters)))
            np.add.at(weights, (np.arange(len(indices))[:, None], indices), 1.0)
            resampled = (weights @ wins.reshape(len(clusters), -1)).reshape(-1, *total.shape)
            estimates: Values = _strengths(resampled + _PRIOR * compared)[:, at]
            return estimates

        value = float(values[at])
        low, high = (0.0, 0.0) if not at else bootstrap.interval(len(clusters), strength)
        result[name] = (
            Number(value, counts[name])
            if math.isnan(low)
            else Number(value, counts[name], low, high)
        )
    return result


def _strengths(wins: Any) -> Any:
    """Log odds against the first contestant, of ``(fits, contestants, contestants)`` wins."""
    import numpy as np

    games = wins + wins.transpose(0, 2, 1)
    victories = np.maximum(wins.sum(2), 1e-12)
    strengths = np.ones(victories.shape)
    for _ in range(_STEPS):
        pairs = strengths[:, :, None] + strengths[:, None, :]
        new = victories / np.maximum((games / pairs).sum(2), 1e-12)
        new /= np.exp(np.log(new).mean(1, keepdims=True))
        converged = np.abs(np.log(new / strengths)).max() < 1e-7
        strengths = new
        if converged:
            break
    return np.log(strengths / strengths[:, :1])


def _reach(compared: Any) -> Any:
    """Whom a chain of votes ties to the first contestant."""
    import numpy as np

    visited = np.zeros(len(compared), bool)
    visited[0] = True
    for _ in range(len(compared)):
        visited |= compared[visited].any(0)
    return visited
