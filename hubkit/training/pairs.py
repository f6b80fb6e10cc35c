"""Preference pairs that fit: over-long histories are cut at turn boundaries, and all that is left
out is counted.

Takes parquet files with ``prompt``, ``chosen`` and ``rejected`` (TRL's conversational format);
gives token ids for TRL."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from hubkit.chat_templates import SeatTemplates
from hubkit.conversation import Message, Seat
from hubkit.errors import SourceError, TemplateError, TrainingError
from hubkit.untrusted import JsonObject

COLUMNS = ("prompt", "chosen", "rejected")


class PairRow(TypedDict):
    """A row of preference data in TRL's conversational format."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


EncodedPair = dict[str, list[int]]
"""Token ids of a prompt and of both answers."""


@dataclass
class PairStats:
    """What became of the pairs. `trimmed` kept their question but lost old exchanges,
    `exchanges_trimmed` in all.
    """

    pairs_read: int = 0
    pairs_used: int = 0
    trimmed: int = 0
    exchanges_trimmed: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        """Plain data for the report."""
        return dict(vars(self))


def fit(
    data: Sequence[Path],
    encoder: PairEncoder,
    max_length: int | None,
    max_drop_share: float,
    *,
    system: str | None = None,
) -> tuple[list[EncodedPair], PairStats]:
    """Pairs that fit into `max_length` tokens, histories trimmed at turn boundaries, oldest
    exchange first.

    Prompts without a system message get `system`, where there is one.

    Raises `SourceError` for files that are no preference data, `TrainingError` when too few pairs
    are left."""
    rows, stats = fitted(_pairs(data), encoder, max_length, system=system)
    lost = sum(stats.dropped.values())
    if not rows or lost / stats.pairs_read > max_drop_share:
        raise TrainingError(
            f"{lost} of {stats.pairs_read} pairs cannot be used ({stats.dropped}), more than "
            f"max_drop_share of {max_drop_share:.0%}; raise dpo.max_length or look at the data set"
        )
    return rows, stats


def sampled(
    data: Sequence[Path],
    count: int,
    encoder: PairEncoder,
    max_length: int | None,
    *,
    system: str | None,
    seed: int,
) -> tuple[int, PairStats]:
    """How many pairs `data` holds, and what would become of up to `count` of them, drawn from
    `seed`.
    """
    pairs = _pairs(data)
    sample = random.Random(seed).sample(pairs, min(count, len(pairs)))
    return len(pairs), fitted(sample, encoder, max_length, system=system)[1]


def fitted(
    pairs: Iterable[PairRow],
    encoder: PairEncoder,
    max_length: int | None,
    *,
    system: str | None = None,
) -> tuple[list[EncodedPair], PairStats]:
    """`fit` of `pairs` that are read, however few are left."""
    stats, dropped, rows = PairStats(), Counter[str](), []
    for row in pairs:
        stats.pairs_read += 1
        if reason := _fault(row):
            dropped[reason] += 1
            continue
        if system and row["prompt"][0]["role"] != "system":
            row = {**row, "prompt": [{"role": "system", "content": system}, *row["prompt"]]}
        try:
            pair, cut = _trim(row, encoder, max_length)
        except TemplateError:
            dropped["template_refuses"] += 1
            continue
        if pair is None:
            dropped["too_long"] += 1
            continue
        stats.trimmed += cut > 0
        stats.exchanges_trimmed += cut
        stats.pairs_used += 1
        answers = len(pair["chosen_ids"]) + len(pair["rejected_ids"])
        stats.tokens += 2 * len(pair["prompt_ids"]) + answers
        stats.answer_tokens += answers
        rows.append(pair)
    stats.dropped = dict(dropped)
    return rows, stats


def _pairs(data: Sequence[Path]) -> list[PairRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[PairRow] = []
    for path in data:
        try:
            rows += pq.read_table(path, columns=list(COLUMNS)).to_pylist()
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise SourceError(
                f"{path} does not read as {', '.join(COLUMNS)} ({type(error).__name__})"
            ) from None
    return rows


def _fault(row: PairRow) -> str | None:
    for column in COLUMNS:
        messages = row.get(column)
        if not isinstance(messages, list) or any(
            not isinstance((m or {}).get("content"), str) for m in messages
        ):
            return f"bad_{column}"
        if not messages or any(not m["content"].strip() for m in messages):
            return f"empty_{column}"
    if row["prompt"][-1]["role"] != "user":
        return "prompt_ends_on_answer"
    return "no_difference" if row["chosen"] == row["rejected"] else None


def _trim(
    row: PairRow, encoder: PairEncoder, max_length: int | None
) -> tuple[dict[str, list[int]] | None, int]:
    """`row` encoded with as many of its oldest exchanges left out as needed, and how many; None
    when none helps.
    """
    prompt: list[Message] = row["prompt"]
    head = [m for m in prompt[:1] if m["role"] == "system"]
    turns = prompt[len(head) :]
    for cut in range((len(turns) + 1) // 2):
        pair = encoder([*head, *turns[2 * cut :]], row["chosen"], row["rejected"])
        longest = max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
        if max_length is None or len(pair["prompt_ids"]) + longest <= max_length:
            return pair, cut
    return None, 0


class PairEncoder:
    """Turns a pair into token ids, its contents read as text."""

    def __init__(self, templates: SeatTemplates, tokenizer: Any, seat: Seat = "assistant") -> None:
        self.templates, self.tokenizer, self.seat = templates, tokenizer, seat

    def __call__(
        self, prompt: list[Message], chosen: list[Message], rejected: list[Message]
    ) -> dict[str, list[int]]:
        """Ids of the prompt and of both answers, their ends included.

        Where a tokenizer joins the prompt's last characters with an answer's first, the prompt ends
        before them."""
        prompt_ids = self.templates.encode_prompt(self.tokenizer, prompt, self.seat)
        texts = [
            self.templates.encode(self.tokenizer, [*prompt, *answer], self.seat).input_ids
            for answer in (chosen, rejected)
        ]
        size = min(_common(prompt_ids, text) for text in texts)
        return {
            "prompt_ids": prompt_ids[:size],
            "chosen_ids": texts[0][size:],
            "rejected_ids": texts[1][size:],
        }


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
