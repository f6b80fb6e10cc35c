"""Measures on embeddings: how far topics spread, and how often a dialogue moves from one to
another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.errors import SourceError, refusing_remote_code
from hubkit.progress import Progress, silent
from hubkit.tokenization import load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Matrix = npt.NDArray[np.float32]

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
_MAX_TOKENS = 128
_BATCH = 32


def embed(texts: Sequence[str], model: Path, *, progress: Progress = silent) -> Matrix:
    """Unit vectors of `texts`, one a row, by the encoder in folder `model`: mean of its last layer,
    first 128 tokens.

    Raises `SourceError` where the folder holds no such model.
    """
    import numpy as np
    import torch

    tokenizer, encoder = _encoder(model)
    order = sorted(
        range(len(texts)), key=lambda i: len(texts[i])
    )  # alike lengths share a batch: less padding
    vectors = np.zeros((len(texts), encoder.config.hidden_size), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            head = [texts[i][: _MAX_TOKENS * 8] or " " for i in batch]
            inputs = tokenizer(
                head, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
            )
            hidden = encoder(**inputs).last_hidden_state
            weight = inputs["attention_mask"].unsqueeze(-1)
            mean = (hidden * weight).sum(1) / weight.sum(1)
            vectors[batch] = torch.nn.functional.normalize(mean, dim=1).numpy()
            progress(start + len(batch), len(order), "turns embedded")
    return vectors


@lru_cache(maxsize=1)
def _encoder(model: Path) -> tuple[Any, Any]:
    """The tokenizer and the model in a folder, loaded once for all calls in a row."""
    import torch
    from transformers import AutoModel

    try:
        tokenizer = load_tokenizer(model)
        with refusing_remote_code(str(model)):
            encoder = AutoModel.from_pretrained(
                model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            ).eval()
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{model} holds no encoder that can be loaded: {' '.join(str(error).split())[:200]}"
        ) from None
    return tokenizer, encoder


def mean_cosine(vectors: Matrix) -> float | None:
    """Mean of all pairwise cosines, each vector with itself included; lower is more diverse.

    Exactly the mean of the full matrix of arXiv 2308.11534's topic diversity (there with another
    encoder), but in linear time: for unit vectors it is the squared length of their mean."""
    return float((vectors.mean(0, dtype=float) ** 2).sum()) if len(vectors) else None


def nearest_distance(vectors: Matrix, block: int = 1024) -> float | None:
    """Mean cosine distance to the nearest other text; low where a dataset says nearly the same
    again and again.
    """
    import numpy as np

    if len(vectors) < 2:
        return None
    nearest = np.empty(len(vectors))
    for start in range(0, len(vectors), block):
        close = vectors[start : start + block] @ vectors.T
        close[np.arange(len(close)), np.arange(start, start + len(close))] = -1
        nearest[start : start + block] = close.max(1)
    return float((1 - nearest).mean())


def cluster_entropy(vectors: Matrix, *, clusters: int = 20, seed: int = 0) -> float | None:
    """Entropy (0–1) of how texts spread over k-means `clusters`: 1 is evenly. None for fewer than
    ten texts a cluster.

    Compare only equal numbers of texts and clusters.
    """
    import numpy as np
    from sklearn.cluster import KMeans

    if len(vectors) < 10 * clusters:
        return None
    labels = KMeans(clusters, random_state=seed, n_init=4).fit_predict(vectors)
    shares = np.bincount(labels, minlength=clusters) / len(labels)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(clusters))


def shifts(dialogue: Matrix, threshold: float = 0.3) -> int:
    """How often a human turn is further than cosine `threshold` from the human turn before it: our
    own definition.
    """
    return int(((dialogue[1:] * dialogue[:-1]).sum(1) < threshold).sum())


def plane(vectors: Matrix) -> Matrix:
    """Two coordinates a text for a map: the first two principal components."""
    import numpy as np

    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    projected: Matrix = centred @ axes[:2].T
    return projected
