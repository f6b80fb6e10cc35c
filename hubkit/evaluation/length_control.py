"""Win rates as they would be if both answers were equally long: AlpacaEval's fit, and a smaller one
for a single comparison.

`alpaca_eval_win_rate` is AlpacaEval 2's length-controlled win rate. It needs the judge's
probabilities and AlpacaEval's own file of a gamed baseline's annotations. `equal_length_win_rate`
needs neither and is *not* AlpacaEval's: over published models the two differ by 5 points on
average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.errors import SourceError
from hubkit.evaluation.records import parse
from hubkit.statistics import Bootstrap, Number

if TYPE_CHECKING:
    from hubkit.statistics import Indices, Values

GAMED_BASELINE = "tatsu-lab/alpaca_eval:df_gamed.csv"
"""Annotations of AlpacaEval's gamed baseline, with each instruction's difficulty."""
_GAMED_WEIGHT = 0.2 / 2  # of a row; there are two gamed baselines
_FOLDS, _STRENGTHS = 5, 10


def alpaca_eval_win_rate(
    annotations: Sequence[Mapping[str, Any]], gamed: Sequence[Mapping[str, Any]]
) -> float:
    """Compute AlpacaEval 2's length-controlled win rate.

    The method of Dubois et al. 2024 (arXiv 2404.04475) and of the package alpaca-eval 0.6.6: a
    logistic regression without intercept of the judge's probability on ``tanh(length difference /
    its standard deviation)``, the instruction's difficulty and a model term, fitted together with
    the gamed baseline's rows at weight 0.2, its L1 penalty chosen by five-fold cross-validation;
    read off at a length difference of zero.

    Args:
        annotations: AlpacaEval's, in the order of its 805 instructions (or with their ``index``):
            ``output_1`` the baseline's, ``output_2`` the model's, ``preference`` from 1 to 2.
        gamed: The rows of `GAMED_BASELINE`: ``index``, ``preference`` (0 to 1), ``std_delta_len``,
            ``instruction_difficulty``, ``not_gamed_baseline``.

    Returns:
        The rate, from 0 to 1.

    Raises:
        SourceError: An annotation's instruction has no difficulty, or too few have a preference."""
    import numpy as np

    difficulty: dict[int, float] = {}
    for row in gamed:
        difficulty.setdefault(int(row["index"]), float(row["instruction_difficulty"]))
    indices = [int(row.get("index", number)) for number, row in enumerate(annotations)]
    if unknown := [index for index in indices if index not in difficulty]:
        raise SourceError(
            f"annotation {unknown[0]} is of an instruction whose difficulty AlpacaEval does not "
            "publish; length control is only for its 805 instructions"
        )
    lengths = np.array([len(r["output_1"]) - len(r["output_2"]) for r in annotations], float)
    scaled = lengths / (lengths.std(ddof=1) or 1.0)
    hard = np.array([difficulty[index] for index in indices])
    preference = np.array([_probability(row.get("preference")) for row in annotations])
    model = np.column_stack([np.tanh(scaled), hard, np.ones(len(hard))])
    has_preference = ~np.isnan(preference)
    if has_preference.sum() < _FOLDS:
        raise SourceError(
            f"only {has_preference.sum()} annotations have a preference; nothing can be fitted"
        )
    gamed_features = np.array(
        [
            (np.tanh(float(r["std_delta_len"])), float(r["instruction_difficulty"]), _is_ungamed(r))
            for r in gamed
        ]
    )
    targets = np.array([float(r["preference"]) for r in gamed])
    weights = np.where(gamed_features[:, 2] > 0, 1.0, _GAMED_WEIGHT)
    features = np.concatenate([gamed_features, model[has_preference]])
    coefficients = _fit(
        features,
        np.concatenate([targets, preference[has_preference]]),
        np.concatenate([weights, np.ones(int(has_preference.sum()))]),
    )
    at_equal_length = np.column_stack([np.zeros(len(hard)), hard, np.ones(len(hard))])
    return float((1 / (1 + np.exp(-at_equal_length @ coefficients))).mean())


def alpaca_eval_of(files: Sequence[Path], gamed: Path) -> dict[str, float]:
    """Compute `alpaca_eval_win_rate` of each file of annotations among `files`, by model.

    Args:
        gamed: `GAMED_BASELINE` on this machine.

    Raises:
        SourceError: A file cannot be read, or none holds annotations."""
    baseline, _ = parse(gamed.read_bytes(), gamed.name)
    rates = {}
    for file in files:
        if file.suffix in (".json", ".jsonl"):
            records, _ = parse(file.read_bytes(), file.name)
            if records and "preference" in records[0] and "output_1" in records[0]:
                name = str(records[0].get("generator_2", file.stem))
                rates[name] = alpaca_eval_win_rate(records, baseline)
    if not rates:
        raise SourceError("none of the files holds AlpacaEval's annotations; leave --gamed out")
    return rates


def _probability(preference: Any) -> float:
    """AlpacaEval's preference (1: the baseline, 2: the model, 0: a draw) as a probability."""
    if preference is None or preference != preference:
        return float("nan")
    return (float(preference) or 1.5) - 1


def _is_ungamed(row: Mapping[str, Any]) -> float:
    return float(str(row["not_gamed_baseline"]).casefold() in ("true", "1", "1.0"))


def _fit(features: Any, targets: Any, weights: Any) -> Any:
    """L1-penalised logistic regression on probabilities: every row stands once as a win, once as a
    loss, weighted by its probability. The penalty is the best of ten by weighted log loss over five
    folds of rows."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    def fitted(rows: Any, strength: float) -> Any:
        twice = np.concatenate([features[rows], features[rows]])
        labels = np.repeat([1, 0], len(rows))
        chance = np.concatenate([targets[rows], 1 - targets[rows]])
        model = LogisticRegression(
            C=strength,
            l1_ratio=1.0,
            solver="liblinear",
            fit_intercept=False,
            random_state=123,
        )
        model.fit(twice, labels, sample_weight=chance * np.tile(weights[rows], 2))
        return model.coef_[0]

    def loss(rows: Any, coefficients: Any) -> float:
        chance = 1 / (1 + np.exp(-features[rows] @ coefficients))
        chance = np.clip(chance, 1e-15, 1 - 1e-15)
        target = targets[rows]
        logs = target * np.log(chance) + (1 - target) * np.log(1 - chance)
        return float(-(weights[rows] * logs).mean())

    numbers = np.arange(len(features))
    folds = numbers % _FOLDS
    strengths = np.logspace(-4, 4, _STRENGTHS)
    losses = [
        np.mean([loss(numbers[folds == k], fitted(numbers[folds != k], c)) for k in range(_FOLDS)])
        for c in strengths
    ]
    return fitted(numbers, float(strengths[int(np.argmin(losses))]))


def equal_length_win_rate(
    questions: Sequence[str],
    points: Sequence[float],
    length_differences: Sequence[float],
    bootstrap: Bootstrap,
) -> Number:
    """Estimate what the win rate would be if both models' answers were equally long.

    A logistic regression of the outcome on a model term and on ``tanh(length difference / its
    standard deviation)``, read off at a difference of 0. Unlike AlpacaEval's length-controlled win
    rate it has no term for an instruction's difficulty, no gamed baseline, outcomes (1, 0.5, 0) in
    the place of probabilities, and a unit L2 penalty on the length coefficient."""
    import numpy as np

    if not questions:
        return Number(None, 0)
    differences = np.array(length_differences, dtype=float)
    lengths = np.tanh(differences / (differences.std() or 1.0))
    outcomes = np.array(points, dtype=float)
    ids = {question: index for index, question in enumerate(dict.fromkeys(questions))}
    places = np.array([ids[question] for question in questions])

    def statistic(indices: Indices) -> Values:
        counts = np.stack([np.bincount(draw, minlength=len(ids)) for draw in indices])
        return _at_equal_length(lengths, outcomes, counts[:, places].astype(float))

    value = float(_at_equal_length(lengths, outcomes, np.ones((1, len(outcomes))))[0])
    low, high = bootstrap.interval(len(ids), statistic)
    number = Number(value, len(outcomes))
    return number if low != low else Number(value, len(outcomes), low, high)


def _at_equal_length(lengths: Values, points: Values, weights: Any) -> Values:
    """Newton's method for many weightings of the same rows at once: ``(draws, rows)`` weights →
    ``(draws,)`` rates.
    """
    import numpy as np

    strength, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(strength[:, None] + slope[:, None] * lengths, -30, 30)))
        error, curve = weights * (points - chance), weights * chance * (1 - chance) + 1e-9
        up, side = error.sum(axis=1), (error * lengths).sum(axis=1) - slope
        a, b, c = (
            curve.sum(axis=1),
            (curve * lengths).sum(axis=1),
            (curve * lengths**2).sum(axis=1) + 1.0,
        )
        determinant = a * c - b * b
        strength = np.clip(strength + np.clip((c * up - b * side) / determinant, -4, 4), -20, 20)
        slope = np.clip(slope + np.clip((a * side - b * up) / determinant, -4, 4), -20, 20)
    rates: Values = 1 / (1 + np.exp(-strength))
    return rates
