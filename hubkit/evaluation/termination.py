"""Does an asker that learned an end mark know when to stop? Its probability of ending, held against
where people ended.

Takes an asker with the mark it was trained on and held-out conversations; gives, for every answer
that a person could have ended on, the probability of the mark, and how well these are calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hubkit import chat_templates
from hubkit.errors import SourceError
from hubkit.evaluation.held_out_loss import Seating, rows_of
from hubkit.progress import Progress, silent
from hubkit.recipe import Evals, Training
from hubkit.tokenization import load_tokenizer
from hubkit.training.config import quiet_environment
from hubkit.training.likelihood import load_model, score
from hubkit.training.rows import seat_view
from hubkit.untrusted import JsonObject

_BINS = 5


@dataclass(frozen=True)
class Termination:
    """Over `chances` answers, `ends` of them a conversation's last. Of a conversation that is too
    long to be scored whole, the answers that fit are chances at which people went on.

    `real_rate` is how often people ended, `predicted_rate` the mean probability of the mark;
    `at_ends` and `before_ends` the same mean where they did and did not. `brier` is the mean
    squared error, `brier_constant` that of always saying `real_rate`. `bins` are (mean probability,
    share that ended, count) over fifths of the probabilities. `real_turns` and `predicted_turns`
    are mean human turns of the conversations that were scored whole: recorded, and expected from
    the probabilities. What is a mean over nothing is None."""

    conversations: int
    chances: int
    ends: int
    real_rate: float
    predicted_rate: float
    at_ends: float | None
    before_ends: float | None
    brier: float
    brier_constant: float
    real_turns: float | None
    predicted_turns: float | None
    bins: list[tuple[float, float, int]]

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return asdict(self)


def termination(
    block: Evals,
    training: Training,
    base: Path,
    trained: Path,
    data: Sequence[Path],
    *,
    progress: Progress = silent,
) -> Termination:
    """Measure the asker in `trained`, whose block names its ``end_mark``, on up to
    ``block.conversations`` rows.

    Raises `SourceError` when the block has no end mark, or no held-out conversation has an answer
    within ``block.max_tokens``."""
    if not training.end_mark:
        raise SourceError(
            "this asker was trained without an end mark; set end_mark and train it again"
        )
    quiet_environment()
    tokenizer, model = load_tokenizer(base), load_model(base, trained)
    templates = chat_templates.for_base(
        base, template=training.template, thinking=training.thinking or "off"
    )
    measured: list[list[float]] = []
    cut: set[int] = set()
    seating = Seating.of(training)
    unit = "conversations · probabilities of the end mark"
    for row in rows_of(data):
        progress(
            len(measured), block.conversations, "conversations · probabilities of the end mark"
        )
        if len(measured) == block.conversations:
            break
        prompts = _prompts(row, training, seating, tokenizer, templates)
        fitting = [p for p in prompts if len(p.input_ids) <= block.max_tokens]
        if fitting:
            cut |= {len(measured)} if len(fitting) < len(prompts) else set()
            measured.append([math.exp(-score(model, prompt)) for prompt in fitting])
    if not measured:
        raise SourceError(
            f"no held-out conversation that ends on an answer has one within {block.max_tokens} "
            "tokens"
        )
    progress(len(measured), len(measured), unit)
    return summarise(measured, cut=cut)


def _prompts(
    row: Mapping[str, Any],
    training: Training,
    seating: Seating,
    tokenizer: Any,
    templates: chat_templates.SeatTemplates,
) -> list[chat_templates.Encoded]:
    """The conversation up to each of its answers with the mark after it, which alone carries loss;
    none for a conversation that does not end on an answer, or cannot be read."""
    if isinstance(seating.view(row), str):
        return []
    turns = [m for m in row["messages"] if m["role"] != "system"]
    if turns[-1]["role"] != "assistant":
        return []
    intent = row.get(training.intent_column) if training.intent_column else None
    views = (
        seat_view(
            turns[: at + 1], training.seat, training.system,
            end_mark=training.end_mark, intent=intent,
        )
        for at, turn in enumerate(turns)
        if turn["role"] == "assistant"
    )  # fmt: skip
    return [_last_turn(templates.encode(tokenizer, view, training.seat)) for view in views]


def _last_turn(encoded: chat_templates.Encoded) -> chat_templates.Encoded:
    """`encoded` with loss on its last turn alone."""
    start = len(encoded.labels)
    while encoded.labels[start - 1] != chat_templates.IGNORE:
        start -= 1
    return chat_templates.Encoded(
        encoded.input_ids, [chat_templates.IGNORE] * start + encoded.labels[start:]
    )


def summarise(
    probabilities: Sequence[Sequence[float]], *, cut: Collection[int] = ()
) -> Termination:
    """Statistics over conversations, each a list of probabilities whose last one stands where it
    really ended; those at the positions `cut` went on.
    """
    import numpy as np

    chance = np.array([p for row in probabilities for p in row])
    ended = np.array(
        [
            number not in cut and i == len(row) - 1
            for number, row in enumerate(probabilities)
            for i in range(len(row))
        ]
    )
    whole = [row for number, row in enumerate(probabilities) if number not in cut]
    rate = float(ended.mean())
    order = np.array_split(np.argsort(chance, kind="stable"), min(_BINS, len(chance)))
    return Termination(
        conversations=len(probabilities),
        chances=len(chance),
        ends=int(ended.sum()),
        real_rate=rate,
        predicted_rate=float(chance.mean()),
        at_ends=float(chance[ended].mean()) if ended.any() else None,
        before_ends=float(chance[~ended].mean()) if (~ended).any() else None,
        brier=float(((chance - ended) ** 2).mean()),
        brier_constant=float(((rate - ended) ** 2).mean()),
        real_turns=float(np.mean([len(row) for row in whole])) if whole else None,
        predicted_turns=float(np.mean([_expected_turns(row) for row in whole])) if whole else None,
        bins=[(float(chance[part].mean()), float(ended[part].mean()), len(part)) for part in order],
    )


def _expected_turns(chances: Sequence[float]) -> float:
    """Mean turns of a dialogue that ends with these probabilities, cut at the recorded length."""
    alive, turns = 1.0, 0.0
    for chance in chances:
        turns += alive
        alive *= 1 - chance
    return turns
