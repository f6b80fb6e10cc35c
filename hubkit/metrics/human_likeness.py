"""Can a classifier tell the asker's turns from people's? Its AUC on held-out dialogues, with an
interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubkit.metrics.sampling import Dialogue
from hubkit.statistics import Bootstrap

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

FOLDS = 5
MAX_TURNS = 600  # a side
PER_DIALOGUE = 5  # turns of one dialogue, so that no long one speaks for its side
FEWEST = (20, 5)  # turns, dialogues a side
_CHARS = 1000  # of a turn, this much is read
_RIDGE = 1.0


@dataclass(frozen=True, slots=True)
class Likeness:
    """AUC of telling synthetic from real human turns: 0.5 is chance (as human as people), 1 is
    always caught.

    `turns` is how many of each side one classifier was given.
    """

    auc: float
    low: float
    high: float
    turns: int


def available(dialogues: Sequence[Dialogue]) -> int:
    """How many turns of `dialogues` `human_likeness` could use."""
    return min(MAX_TURNS, sum(min(len(dialogue.followups), PER_DIALOGUE) for dialogue in dialogues))


def human_likeness(
    synthetic: Sequence[Dialogue],
    real: Sequence[Dialogue],
    *,
    seed: int,
    turns: int | None = None,
    draws: int = 10,
    resamples: int = 100,
    confidence: float = 0.95,
) -> Likeness | None:
    """How well a ridge classifier on TF-IDF of words and character runs tells follow-up turns
    apart, out of fold.

    Turns of one dialogue share a fold, so nothing is tested on a dialogue it was trained on. Both
    sides are cut to the same number of turns, at most `turns` (600) and five a dialogue: a
    classifier that is given more finds more, so datasets that are to be compared need the same
    number. The AUC is the mean over `draws` of dialogues and folds; its interval resamples
    dialogues and trains anew each time, so it covers the choice of both. None with fewer than 20
    turns or 5 dialogues a side. It says whether *this* classifier finds a difference in wording or
    length, not how human a turn is."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    sides = [_turns_of(real), _turns_of(synthetic)]
    limit = min(MAX_TURNS, turns or MAX_TURNS, *(sum(map(len, side)) for side in sides))
    if limit < FEWEST[0] or min(map(len, sides)) < FEWEST[1]:
        return None
    kernel = _likenesses([turn for side in sides for dialogue in side for turn in dialogue])
    places = _places(sides)
    rng = np.random.default_rng(seed)
    with threadpool_limits(1):  # many small systems: threads would wait for each other
        aucs = [
            _held_out_auc(kernel, _draw(places, limit, rng, replace=False)) for _ in range(draws)
        ]
        low, high = Bootstrap(resamples, confidence, seed).replicate(
            lambda rng: _held_out_auc(kernel, _draw(places, limit, rng, replace=True)),
            min(map(len, sides)),
        )
    auc = float(np.mean(aucs))
    return Likeness(auc, min(low, auc), max(high, auc), limit)


def _turns_of(dialogues: Sequence[Dialogue]) -> list[list[str]]:
    """What each dialogue gives, those that give nothing left out."""
    clipped = (
        [turn[:_CHARS] for turn in dialogue.followups[:PER_DIALOGUE]] for dialogue in dialogues
    )
    return [turns for turns in clipped if turns]


def _likenesses(turns: list[str]) -> Numbers:
    """Cosines of all pairs of turns, on words and on character runs, added up. The features know no
    label.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    total = np.zeros((len(turns), len(turns)))
    for kind in (
        {"ngram_range": (1, 2)},
        {"analyzer": "char_wb", "ngram_range": (2, 4), "max_features": 50_000},
    ):
        try:
            features = TfidfVectorizer(sublinear_tf=True, min_df=2, **kind).fit_transform(turns)
        except ValueError:  # no word comes twice: nothing to go by
            continue
        total += (features @ features.T).toarray()
    return total


def _places(sides: list[list[list[str]]]) -> list[list[list[int]]]:
    """Per side and dialogue, the numbers of its turns in the matrix."""
    number = iter(range(sum(len(dialogue) for side in sides for dialogue in side)))
    return [[[next(number) for _ in dialogue] for dialogue in side] for side in sides]


def _draw(
    places: list[list[list[int]]], limit: int, rng: Any, *, replace: bool
) -> tuple[Any, Any, Any]:
    """`limit` turns of either side, whole dialogues in a drawn order: their numbers, sides and
    folds.

    A dialogue that is drawn twice is in the same fold both times.
    """
    import numpy as np

    rows: list[int] = []
    labels: list[int] = []
    folds: list[int] = []
    for label, side in enumerate(places):
        order = rng.integers(0, len(side), 4 * len(side)) if replace else rng.permutation(len(side))
        fold_of = rng.permutation(len(side)) % FOLDS
        count = 0
        for dialogue in order:
            numbers = side[dialogue][: limit - count]
            rows += numbers
            labels += [label] * len(numbers)
            folds += [int(fold_of[dialogue])] * len(numbers)
            count += len(numbers)
            if count == limit:
                break
    return np.asarray(rows), np.asarray(labels), np.asarray(folds)


def _held_out_auc(kernel: Numbers, draw: tuple[Any, Any, Any]) -> float:
    """Mean over folds, each by its number of pairs, of the AUC on the turns that its classifier has
    not seen.

    Folds are not pooled: each classifier has its own offset, which would pass for a difference.
    """
    import numpy as np

    rows, labels, folds = draw
    aucs, pairs = [], []
    for fold in range(FOLDS):
        test = folds == fold
        synthetic = labels[test].sum()
        pair_count = synthetic * (test.sum() - synthetic)
        if not pair_count or len(set(labels[~test])) < 2:
            continue
        scores = _scores(kernel, rows[~test], labels[~test], rows[test])
        synthetic_scores, real_scores = (
            scores[labels[test] == 1][:, None],
            scores[labels[test] == 0],
        )
        aucs.append(
            ((synthetic_scores > real_scores).sum() + (synthetic_scores == real_scores).sum() / 2)
            / pair_count
        )
        pairs.append(pair_count)
    return float(np.average(aucs, weights=pairs)) if aucs else 0.5


def _scores(gram: Numbers, train: Any, labels: Any, test: Any) -> Numbers:
    """Kernel ridge regression of ±1, both sides of equal weight (Saunders et al. 1998)."""
    import numpy as np

    share = labels.mean()
    target = np.where(labels == 1, 1 / share, -1 / (1 - share)) / 2
    kernel = gram[np.ix_(train, train)]
    weights = np.linalg.solve(kernel + _RIDGE * np.eye(len(train)), target)
    scores: Numbers = gram[np.ix_(test, train)] @ weights
    return scores
