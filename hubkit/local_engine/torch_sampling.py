"""The next token of every sequence of a batch at once, on the model's device.

Each sequence has its own `Sampling` and its own seeded source of one uniform number per token, so a
text depends on its seed and not on its place in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hubkit.local_engine.engine import Sampling, Step

if TYPE_CHECKING:
    import torch


@dataclass(eq=False, slots=True)
class Draws:
    """A sequence's sampling state.

    Attributes:
        sampling: Its parameters.
        top_n: How many of the best tokens are reported.
        random: The source of its uniform numbers, on the CPU.
        counts: How often each token occurred, (vocabulary,), where a penalty needs it.
    """

    sampling: Sampling
    top_n: int
    random: Any
    counts: Any = field(default=None)

    @property
    def penalised(self) -> bool:
        """Whether what has occurred changes what comes."""
        return self.sampling.repetition_penalty != 1.0 or bool(self.sampling.frequency_penalty)


def choose(logits: torch.Tensor, rows: Sequence[Draws], prompts: Sequence[list[int]]) -> list[Step]:
    """Choose a token for each row.

    The order is TGI's: penalties, then (when sampling) temperature, top-k, top-p, typical-p, one
    draw.

    Args:
        logits: (rows, vocabulary), on the model's device.
        rows: One state for each row; its counts are updated.
        prompts: Each row's tokens so far, read when its counts are made for the first time.
    """
    import torch

    logits = logits.float()
    logprobs = logits.log_softmax(-1)
    scores = _penalised(logits, rows, prompts)
    chosen = scores.argmax(-1)
    sampled_rows = [i for i, row in enumerate(rows) if row.sampling.do_sample]
    if sampled_rows:
        index = torch.tensor(sampled_rows, device=logits.device)
        chosen[index] = _draw(scores[index], [rows[i] for i in sampled_rows])
    for i, row in enumerate(rows):
        if row.counts is not None:
            row.counts[chosen[i]] += 1
    width = max(row.top_n for row in rows)
    best = logprobs.topk(width) if width else None
    values = logprobs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).tolist()
    ids = chosen.tolist()
    tops = list(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best else []
    return [
        Step(
            ids[i],
            values[i],
            tuple(zip(*(part[: row.top_n] for part in tops[i]), strict=True)) if row.top_n else (),
        )
        for i, row in enumerate(rows)
    ]


def _penalised(
    logits: torch.Tensor, rows: Sequence[Draws], prompts: Sequence[list[int]]
) -> torch.Tensor:
    import torch

    places = [i for i, row in enumerate(rows) if row.penalised]
    if not places:
        return logits
    vocabulary = logits.shape[-1]
    for i in places:
        if rows[i].counts is None:
            tokens = torch.tensor(prompts[i], device=logits.device, dtype=torch.long)
            rows[i].counts = torch.bincount(tokens, minlength=vocabulary)[:vocabulary]
    counts = torch.stack([rows[i].counts for i in places])
    repetition = _column(logits, [rows[i].sampling.repetition_penalty for i in places])
    frequency = _column(logits, [rows[i].sampling.frequency_penalty for i in places])
    part = logits[places]
    repeated = torch.where(part < 0, part * repetition, part / repetition)
    part = torch.where(counts > 0, repeated, part) - frequency * counts
    scores = logits.clone()
    scores[places] = part
    return scores


def _draw(scores: torch.Tensor, rows: Sequence[Draws]) -> torch.Tensor:
    """One token for each row by inverting the cumulative distribution. `scores`: (rows,
    vocabulary).
    """
    import torch

    scores = scores / _column(scores, [row.sampling.temperature for row in rows])
    scores = _top_k_and_p(scores, rows)
    scores = _typical(scores, rows)
    wide = torch.float32 if scores.device.type == "mps" else torch.float64
    cumulative = scores.softmax(-1, dtype=wide).cumsum(-1)
    uniform = torch.cat([torch.rand(1, generator=row.random, dtype=torch.float64) for row in rows])
    # Below the total, which rounding may leave under 1: the last token has a chance above 0 then.
    target = uniform.to(scores.device, wide).unsqueeze(-1) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    last = scores.shape[-1] - 1 - scores.isfinite().flip(-1).int().argmax(-1)
    return torch.minimum(token, last)


def _top_k_and_p(scores: torch.Tensor, rows: Sequence[Draws]) -> torch.Tensor:
    """Keep the best k, then the fewest of these whose chances reach p."""
    import torch

    vocabulary = scores.shape[-1]
    top_ks = [row.sampling.top_k or vocabulary for row in rows]
    if min(top_ks) >= vocabulary and all(row.sampling.top_p >= 1 for row in rows):
        return scores
    ordered, places = scores.sort(-1, descending=True)
    rank = torch.arange(vocabulary, device=scores.device)
    ordered = ordered.masked_fill(rank >= _column(scores, top_ks), float("-inf"))
    before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
    before[:, 0] = 0.0
    share = _column(scores, [row.sampling.top_p if row.sampling.top_p < 1 else 2.0 for row in rows])
    ordered = ordered.masked_fill(before >= share, float("-inf"))
    return torch.empty_like(scores).scatter_(-1, places, ordered)


def _typical(scores: torch.Tensor, rows: Sequence[Draws]) -> torch.Tensor:
    """Keep the tokens whose surprise is nearest to the expected one, up to a mass of typical_p."""

    if all(row.sampling.typical_p >= 1 for row in rows):
        return scores
    logprobs = scores.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).nansum(-1, keepdim=True)
    places = (-logprobs - entropy).abs().argsort(-1)
    before = scores.softmax(-1).gather(-1, places).cumsum(-1).roll(1, -1)
    before[:, 0] = 0.0
    mass = [row.sampling.typical_p if row.sampling.typical_p < 1 else 2.0 for row in rows]
    removed = (before >= _column(scores, mass)).scatter(-1, places, before >= _column(scores, mass))
    return scores.masked_fill(removed, float("-inf"))


def _column(like: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    """`values` as a column, of the type and on the device of `like`."""
    import torch

    return torch.tensor(values, device=like.device, dtype=like.dtype).unsqueeze(-1)
