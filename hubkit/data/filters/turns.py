"""Filters on the shape of a conversation: who speaks, how often, and whether a turn is whole."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from hubkit.conversation import Conversation, Seat, blank, fault
from hubkit.data.filters.chain import Drop, Edit, FilterFn, Verdict, register
from hubkit.data.filters.shingles import letters_of, words_of

SeatChoice = Literal["user", "assistant", "both"]
_SENTENCE_END = re.compile(
    r"[^\s\d.!?][.!?…]+[\"')\]*”’]*(?=\s|\Z)|[。！？｡।۔؟]+[\"')\]*”’」』）]*"
)  # not the "2." that opens a list item


@register
def alternate_roles(first: Literal["user", "any"] = "user") -> FilterFn:
    """Drop what is not a well-formed conversation, by `hubkit.conversation.fault`'s reasons.

    With ``first: user``, answers before the first human turn (left by exports that cut long
    conversations up) are cut off first and counted; with ``first: any`` they stay, as a
    continuation needs them."""
    opener: Seat | None = "user" if first == "user" else None

    def decide(conversation: Conversation) -> Verdict:
        messages, edited = conversation.messages, False
        if opener and messages and messages[0]["role"] == "assistant":
            start = next((i for i, m in enumerate(messages) if m["role"] == "user"), len(messages))
            messages, edited = messages[start:], True
        if reason := fault(messages, first=opener):
            return Drop(reason)
        if edited:
            cut = replace(
                conversation, messages=messages, meta={**conversation.meta, "is_start": False}
            )
            return Edit([cut], "leading_answer_cut")
        return None

    return decide


@register
def min_turns(human_turns: int = 2) -> FilterFn:
    """Drop conversations with fewer than `human_turns` human turns (opening included)."""

    def decide(conversation: Conversation) -> Verdict:
        return Drop("too_few_turns") if conversation.human_turns < human_turns else None

    return decide


@register
def max_turns(human_turns: int) -> FilterFn:
    """Drop conversations with more than `human_turns` human turns."""

    def decide(conversation: Conversation) -> Verdict:
        return Drop("too_many_turns") if conversation.human_turns > human_turns else None

    return decide


@register
def empty_turn() -> FilterFn:
    """Drop conversations without turns or with a blank one."""

    def decide(conversation: Conversation) -> Verdict:
        if not conversation.messages:
            return Drop("empty_conversation")
        return (
            Drop("empty_turn")
            if any(
                blank(m["content"]) and m["role"] != "tool" and not m.get("tool_calls")
                for m in conversation.messages
            )
            else None
        )

    return decide


@register
def failed() -> FilterFn:
    """Drop dialogues that ended by an error (the rollout's column ``error`` is not null)."""

    def decide(conversation: Conversation) -> Verdict:
        return Drop("failed") if conversation.meta.get("error") else None

    return decide


@register
def cut_off_turn(seat: SeatChoice = "both") -> FilterFn:
    """Drop dialogues in which a turn of `seat` ran into its token limit (recorded finish reason
    ``length``).

    Reads ``finish_reasons`` of the row: one entry per message, in order (``given`` or None for
    turns that were not generated). A row that records none is kept and counted under
    ``no_finish_reasons``: nothing was judged."""

    def decide(conversation: Conversation) -> Verdict:
        reasons = conversation.meta.get("finish_reasons")
        if not reasons:
            return Edit([conversation], "no_finish_reasons")
        turns = zip(conversation.messages, reasons, strict=False)
        cut = [
            m["role"] for m, reason in turns if reason == "length" and seat in ("both", m["role"])
        ]
        return Drop(f"cut_off_{cut[0]}_turn") if cut else None

    return decide


@register
def whole_sentences(seat: SeatChoice = "both") -> FilterFn:
    """Cut turns of `seat` that ran into their token limit back to their last whole sentence, and
    count the dialogues.

    A turn without one is dropped with its dialogue, as `cut_off_turn` would. For short runs whose
    limits are small. Sentences end by ``.!?…`` before a space, or by the marks of Chinese,
    Japanese, Hindi, Urdu and Arabic; Thai, Lao and Khmer write none, so their cut-off turns are
    dropped."""

    def decide(conversation: Conversation) -> Verdict:
        reasons = conversation.meta.get("finish_reasons")
        if not reasons:
            return Edit([conversation], "no_finish_reasons")
        messages = list(conversation.messages)
        for index, (message, reason) in enumerate(zip(messages, reasons, strict=False)):
            if reason == "length" and seat in ("both", message["role"]):
                text = to_sentence_end(message["content"])
                if not text:
                    return Drop(f"cut_off_{message['role']}_turn")
                messages[index] = {**message, "content": text}
        if messages == conversation.messages:
            return None
        return Edit([replace(conversation, messages=messages)], "cut_to_whole_sentences")

    return decide


def to_sentence_end(text: str) -> str:
    """`text` up to the end of its last whole sentence, never inside a code block; empty where it
    has none.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    whole = text[: ends[-1]] if ends else ""
    if whole.count("```") % 2:  # never end inside a code block
        whole = whole[: whole.rindex("```")]
    return whole.rstrip()


@register
def repeated_turn(seat: SeatChoice = "both", min_words: int = 1) -> FilterFn:
    """Drop dialogues in which `seat` says the same thing twice (case, spacing and punctuation
    aside).

    Turns of fewer than `min_words` words may repeat: people do say "continue" twice.
    """

    def decide(conversation: Conversation) -> Verdict:
        first_turns: dict[tuple[str, bytes], str] = {}
        spelt: dict[tuple[str, bytes], set[bytes | None]] = {}
        for message in conversation.messages:
            role, text = message["role"], message["content"]
            if role == "system" or seat not in ("both", role):
                continue
            key = role, letters_of(text)
            if key not in first_turns:
                first_turns[key] = text
            elif (turn := _said(text, min_words)) is not None:
                earlier_turns = spelt.setdefault(key, {_said(first_turns[key], min_words)})
                if turn in earlier_turns:
                    return Drop(f"repeated_{role}_turn")
                earlier_turns.add(turn)
        return None

    return decide


def _said(text: str, min_words: int) -> bytes | None:
    """The words of a turn, or all of a turn without one; None for a turn of too few words."""
    words = words_of(text)
    if len(words) < min_words:
        return None
    return b" ".join(words) or text.strip().encode("utf-8", "replace")
