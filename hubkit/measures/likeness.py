"""Can a classifier tell the asker's turns from people's? Its AUC on held-out dialogues, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hubkit.measures.dialogues import Dialogue

FOLDS = 5
_CHARS = 1000  # of a turn, this much is read
MAX_TURNS = 1000  # a side
PER_DIALOGUE = 5  # turns of one dialogue, so that no long one speaks for its side


@dataclass(frozen=True, slots=True)
class Likeness:
    """AUC of telling synthetic from real human turns: 0.5 is chance (as human as people), 1 is always caught."""

    auc: float
    low: float
    high: float
    synthetic_turns: int
    real_turns: int


def human_likeness(
    synthetic: Sequence[Dialogue],
    real: Sequence[Dialogue],
    *,
    seed: int,
    resamples: int = 500,
    confidence: float = 0.95,
) -> Likeness | None:
    """How well logistic regression on TF-IDF of words and character runs tells follow-up turns apart, out of fold.

    Turns of one dialogue share a fold, so nothing is tested on a dialogue it was trained on; both sides are cut to the
    same number of turns, at most 1,000 and five a dialogue. The interval resamples dialogues, not the training of the
    classifier, so it is somewhat narrow: between two halves of real people it may just miss 0.5. None with fewer than
    25 turns or 5 dialogues a side. It says whether *this* classifier finds a difference in wording or length, not how
    human a turn is.
    """
    import numpy as np

    turns, labels, groups = _balanced(synthetic, real, seed)
    if min(labels.count(0), labels.count(1)) < 25 or len(set(groups)) < 10:
        return None
    y, who = np.asarray(labels), np.asarray(groups)
    scores = _out_of_fold(turns, y, who, seed)
    rng = np.random.default_rng(seed)
    by_group = [[np.flatnonzero(who == g) for g in np.unique(who[y == label])] for label in (0, 1)]
    drawn = []
    for _ in range(resamples):
        index = np.concatenate(
            [np.concatenate([side[i] for i in rng.integers(0, len(side), len(side))]) for side in by_group]
        )
        drawn.append(_auc(y[index], scores[index]))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Likeness(_auc(y, scores), float(low), float(high), labels.count(1), labels.count(0))


def _balanced(
    synthetic: Sequence[Dialogue], real: Sequence[Dialogue], seed: int
) -> tuple[list[str], list[int], list[int]]:
    """As many turns of either kind, whole dialogues in a seeded order until the smaller side's number is reached."""
    import random

    sides = [list(real), list(synthetic)]
    room = min(MAX_TURNS, *(sum(min(len(d.followups), PER_DIALOGUE) for d in side) for side in sides))
    turns: list[str] = []
    labels: list[int] = []
    groups: list[int] = []
    for label, side in enumerate(sides):
        random.Random(seed).shuffle(side)
        taken = 0
        for number, dialogue in enumerate(side):
            said = [turn[:_CHARS] for turn in dialogue.followups][: min(PER_DIALOGUE, room - taken)]
            taken += len(said)
            turns += said
            labels += [label] * len(said)
            groups += [2 * number + label] * len(said)
    return turns, labels, groups


def _out_of_fold(turns: list[str], y, groups, seed: int):  # type: ignore[no-untyped-def]
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline, make_union

    scores = np.zeros(len(turns))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(turns, y, groups):
        features = make_union(
            TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2)),
            TfidfVectorizer(sublinear_tf=True, min_df=2, analyzer="char_wb", ngram_range=(2, 4), max_features=50_000),
        )
        model = make_pipeline(features, LogisticRegression(max_iter=1000, class_weight="balanced"))
        model.fit([turns[i] for i in train], y[train])
        found = model.decision_function([turns[i] for i in test])
        # Ranks within the fold: each fold's model has its own offset, which would pass for a difference.
        scores[test] = found.argsort().argsort() / max(len(test) - 1, 1)
    return scores


def _auc(y, scores) -> float:  # type: ignore[no-untyped-def]
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, scores))
