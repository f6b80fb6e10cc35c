"""Preference pairs that fit: over-long histories are cut at turn boundaries, and all that is left
out is counted.

Takes parquet files with ``prompt``, ``chosen`` and ``rejected`` (TRL's conversational format);
gives rows for TRL."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubkit.conversation import Message
from hubkit.errors import SourceError, TrainingError

COLUMNS = ("prompt", "chosen", "rejected")


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

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the report."""
        return dict(vars(self))


def fit(
    data: Sequence[Path],
    tokenizer: Any,
    max_length: int | None,
    max_drop_share: float,
    *,
    system: str | None = None,
) -> tuple[list[dict[str, Any]], PairStats]:
    """Pairs that fit into `max_length` tokens, histories trimmed at turn boundaries, oldest
    exchange first.

    Prompts without a system message get `system`, where there is one.

    Raises `SourceError` for files that are no preference data, `TrainingError` when too few pairs
    are left."""
    rows, stats = fitted(_pairs(data), tokenizer, max_length, system=system)
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
    tokenizer: Any,
    max_length: int | None,
    *,
    system: str | None,
    seed: int,
) -> tuple[int, PairStats]:
    """How many pairs `data` holds, and what would become of up to `count` of them, drawn from
    `seed`.
    """
    pairs = _pairs(data)
    drawn = random.Random(seed).sample(pairs, min(count, len(pairs)))
    return len(pairs), fitted(drawn, tokenizer, max_length, system=system)[1]


def fitted(
    pairs: Iterable[dict[str, Any]],
    tokenizer: Any,
    max_length: int | None,
    *,
    system: str | None = None,
) -> tuple[list[dict[str, Any]], PairStats]:
    """`fit` of `pairs` that are read, however few are left."""
    stats, dropped, rows = PairStats(), Counter[str](), []
    for row in pairs:
        stats.pairs_read += 1
        if reason := _fault(row):
            dropped[reason] += 1
            continue
        if system and row["prompt"][0]["role"] != "system":
            row = {**row, "prompt": [{"role": "system", "content": system}, *row["prompt"]]}
        made, cut = _trim(row, tokenizer, max_length)
        if made is None:
            dropped["too_long"] += 1
            continue
        stats.trimmed += cut > 0
        stats.exchanges_trimmed += cut
        stats.pairs_used += 1
        prompt, chosen, rejected = _sizes(made, tokenizer)
        stats.tokens += 2 * prompt + chosen + rejected
        stats.answer_tokens += chosen + rejected
        rows.append(made)
    stats.dropped = dict(dropped)
    return rows, stats


def _pairs(data: Sequence[Path]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for path in data:
        try:
            rows += pq.read_table(path, columns=list(COLUMNS)).to_pylist()
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise SourceError(
                f"{path} does not read as {', '.join(COLUMNS)} ({type(error).__name__})"
            ) from None
    return rows


def _fault(row: dict[str, Any]) -> str | None:
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
    row: dict[str, Any], tokenizer: Any, max_length: int | None
) -> tuple[dict[str, Any] | None, int]:
    """`row` with as many of its oldest exchanges left out as needed, and how many; None when none
    helps.
    """
    prompt: list[Message] = row["prompt"]
    head = [m for m in prompt[:1] if m["role"] == "system"]
    turns = prompt[len(head) :]
    for cut in range((len(turns) + 1) // 2):
        fitted = {**row, "prompt": [*head, *turns[2 * cut :]]}
        sizes = _sizes(fitted, tokenizer)
        if max_length is None or sizes[0] + max(sizes[1:]) <= max_length:
            return fitted, cut
    return None, 0


def _sizes(row: dict[str, Any], tokenizer: Any) -> tuple[int, int, int]:
    """Tokens of the prompt, of the chosen and of the rejected answer, ends included."""

    def count(messages: list[Message], opened: bool) -> int:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    prompt = count(row["prompt"], True)
    chosen, rejected = (
        count([*row["prompt"], *row[name]], False) - prompt for name in ("chosen", "rejected")
    )
    return prompt, chosen, rejected
