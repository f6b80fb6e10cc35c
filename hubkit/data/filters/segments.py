"""Filters that cut conversations to a length in tokens, always between turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hubkit.conversation import Conversation, Message
from hubkit.data.filters.chain import Context, Drop, Edit, FilterFn, Verdict, register
from hubkit.errors import RecipeError, SourceError
from hubkit.tokenization import load_fast_tokenizer

Sizes = Callable[[list[Message]], list[int]]


@register(needs={"tokenizer"})
def segments(max_tokens: int = 2048, per_turn_tokens: int = 2, *, context: Context) -> FilterFn:
    """Cut conversations into segments of at most `max_tokens`, each going on from the latest
    answer.

    Source: the splitting released with arXiv 2308.11534: whole turns are gathered up to the limit.
    A human turn that overflows closes the segment before it; an answer that overflows stays
    (training truncates it). The next segment starts at that latest answer, repeated, so that an
    asker learns to go on from an answer without what came before. A human turn at the very end is
    left out. `per_turn_tokens` stands for the marks a template puts around a turn. Segments are
    named ``ID#2``, ``ID#3``, …. Needs a tokenizer."""
    sizes = _sizes("segments", context, per_turn_tokens)

    def decide(conversation: Conversation) -> Verdict:
        messages = conversation.messages
        while messages and messages[-1]["role"] != "assistant":
            messages = messages[:-1]
        if not messages:
            return Drop("no_answer")
        pieces = list(_pieces(messages, sizes(messages), max_tokens))
        if len(pieces) == 1 and len(messages) == len(conversation.messages):
            return None
        rows = [
            replace(conversation, messages=piece)
            if index == 1
            else _continuation(conversation, piece, index)
            for index, piece in enumerate(pieces, start=1)
        ]
        notes = ("cut_into_segments",) * (len(pieces) > 1)
        unanswered = ("unanswered_turn_cut",) * (len(messages) < len(conversation.messages))
        return Edit(rows, notes + unanswered)

    return decide


def _continuation(conversation: Conversation, piece: list[Message], index: int) -> Conversation:
    meta = {**conversation.meta, "is_start": False}
    return replace(conversation, id=f"{conversation.id}#{index}", messages=piece, meta=meta)


def _pieces(messages: list[Message], sizes: list[int], limit: int) -> Iterator[list[Message]]:
    start, total = 0, 0
    for at, (message, size) in enumerate(zip(messages, sizes, strict=True)):
        total += size
        if total <= limit or at == start:
            continue
        answer = message["role"] == "assistant"
        # An overflowing answer closes a segment with itself in it; a human turn closes it before
        # itself, after the answer that the next segment starts with.
        end = at + 1 if answer else at
        if end - start > 1:
            yield messages[start:end]
        if answer and at == len(messages) - 1:
            return
        start = end - 1
        total = sum(sizes[start : at + 1])
    if len(messages) - start > 1 or start == 0:
        yield messages[start:]


@register(needs={"tokenizer"})
def max_tokens(tokens: int, per_turn_tokens: int = 2, *, context: Context) -> FilterFn:
    """Cut conversations off after the last whole turn within `tokens`; drop those whose first turn
    is longer.
    """
    sizes = _sizes("max_tokens", context, per_turn_tokens)

    def decide(conversation: Conversation) -> Verdict:
        total = 0
        for at, size in enumerate(sizes(conversation.messages)):
            total += size
            if total > tokens:
                messages = conversation.messages[:at]
                return (
                    Edit([replace(conversation, messages=messages)], "cut_to_max_tokens")
                    if messages
                    else Drop("too_long")
                )
        return None

    return decide


def _sizes(name: str, context: Context, per_turn: int) -> Sizes:
    if context.tokenizer is None:
        raise RecipeError(
            f"filter {name!r} counts tokens and needs a tokenizer; give one with --tokenizer"
        )
    tokenizer = _tokenizer(context.tokenizer)

    def sizes(messages: list[Message]) -> list[int]:
        encoded = tokenizer.encode_batch_fast(
            [m["content"] for m in messages], add_special_tokens=False
        )
        return [len(e) + per_turn for e in encoded]

    return sizes


@lru_cache(maxsize=2)
def _tokenizer(path: Path) -> Any:
    try:
        return load_fast_tokenizer(path)
    except SourceError as error:
        raise RecipeError(str(error)) from None
