"""Measures of turns in an embedding space: told from people's or not, how varied, about what, and
fitting their context or not.

Takes an encoder (`Embed`), contexts and turns; gives values of a scorecard's row. Everybody is held
against *other* people at other contexts; people too, which shows what so few turns come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from hubkit.evaluation.scorecard.contexts import Context
from hubkit.metrics import Measured, Value
from hubkit.metrics.two_sample import (
    alike_in_length,
    cluster_divergence,
    coverage,
    two_sample,
)
from hubkit.statistics import Bootstrap

if TYPE_CHECKING:
    from hubkit.metrics.topics import Matrix

Embed = Callable[[Sequence[str]], "Matrix"]
"""Texts → unit vectors, one a row."""
FEWEST = 25
_TESTED = (
    "embedding_auc",
    "embedding_auc_null",
    "embedding_auc_detectable",
    "embedding_auc_matched",
)
MEASURES = (*_TESTED, "density", "coverage", "cluster_divergence", "context_fit")
Said = Sequence[tuple[Context, str]]
"""Turns, each with the context it was said in."""


class EmbeddingSpace:
    """What people said elsewhere, as vectors, and the encoder that turns join it by."""

    def __init__(self, embed: Embed, reference: Said, *, resamples: int, seed: int) -> None:
        self._embed, self._resamples, self._seed = embed, resamples, seed
        self._reference = [text for _, text in reference]
        self._people = embed(self._reference)
        self._contexts: dict[str, Matrix] = {}

    def measure(self, row: Measured, turns: Said) -> None:
        """Record each of `MEASURES` of `turns`, or why it cannot be taken."""
        fewest = min(len(turns), len(self._reference))
        if fewest < FEWEST:
            row.missing |= dict.fromkeys(MEASURES, f"fewer than {FEWEST} turns on a side")
            return
        texts = [text for _, text in turns]
        vectors = self._embed(texts)
        self._two_sample(row, texts, vectors)
        covered = coverage(vectors, self._people, resamples=self._resamples)
        assert covered is not None
        row.record_number("density", covered.density_number)
        row.record_number("coverage", covered.coverage_number)
        divergence = cluster_divergence(
            vectors, self._people, resamples=self._resamples, seed=self._seed
        )
        row.record_number("cluster_divergence", divergence)
        fits = context_fit(vectors, self._context_vectors([context for context, _ in turns]))
        row.record_number("context_fit", Bootstrap(self._resamples, seed=self._seed).mean_of(fits))

    def _two_sample(self, row: Measured, texts: Sequence[str], vectors: Matrix) -> None:
        test = partial(two_sample, resamples=self._resamples, seed=self._seed)
        whole = test(vectors, self._people)
        row.values["embedding_auc"] = Value(whole.auc, whole.n, whole.low, whole.high)
        row.values["embedding_auc_null"] = Value(whole.null_high, whole.n)
        row.values["embedding_auc_detectable"] = Value(whole.detectable, whole.n)
        first, second = alike_in_length(texts, self._reference, seed=self._seed)
        if len(first) < FEWEST:
            row.missing["embedding_auc_matched"] = (
                f"fewer than {FEWEST} turns are as long as people's"
            )
            return
        matched = test(vectors[first], self._people[second])
        row.values["embedding_auc_matched"] = Value(
            matched.auc, matched.n, matched.low, matched.high
        )

    def _context_vectors(self, contexts: Sequence[Context]) -> Matrix:
        import numpy as np

        new = {c.id: _exchange(c) for c in contexts if c.id not in self._contexts}
        if new:
            vectors = self._embed(list(new.values()))
            self._contexts |= dict(zip(new, vectors, strict=True))
        return np.stack([self._contexts[context.id] for context in contexts])


def context_fit(turns: Matrix, contexts: Matrix) -> list[float]:
    """Per turn, the share of the other turns' contexts that it is less alike (cosine) than its own,
    ties half. A turn from elsewhere gives 0.5 on average, however human it is."""
    import numpy as np

    cosines = turns.astype(float) @ contexts.astype(float).T
    own_context = np.diag(cosines)[:, None]
    better = (own_context > cosines).sum(1) + ((own_context == cosines).sum(1) - 1) / 2
    return [float(share) for share in better / max(len(turns) - 1, 1)]


def _exchange(context: Context) -> str:
    """What a turn follows: the last human turn, and the answer to it."""
    return "\n".join(message["content"] for message in context.messages[-2:])
