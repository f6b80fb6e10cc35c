"""Held-out conversations → the points at which a player is asked to go on: real contexts, and what
people said there.

Takes parquet files with a ``messages`` column; gives contexts that end on an answer, the human turn
that followed each (or that none did), and first turns."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from hubkit.conversation import ConversationRow, Message, fault
from hubkit.data.parquet import read_batches
from hubkit.errors import SourceError
from hubkit.recipe import Scorecard
from hubkit.untrusted import text_in


@dataclass(frozen=True, slots=True)
class Context:
    """A conversation up to an answer, as recorded; `real` is the human turn that followed, None
    where people ended.
    """

    id: str
    messages: list[Message]
    real: str | None
    intent: str | None = None

    @property
    def earlier_turns(self) -> list[str]:
        """The human turns so far."""
        return [m["content"] for m in self.messages if m["role"] == "user"]


@dataclass(frozen=True, slots=True)
class Contexts:
    """`next`: where people went on, one a conversation, and where players are asked. `reference`:
    as many of other conversations, whose people everybody is held against. `ends`: where people
    ended. `first`: people's first turns."""

    next: list[Context]
    reference: list[Context] = field(default_factory=list)
    ends: list[Context] = field(default_factory=list)
    first: list[str] = field(default_factory=list)


def contexts(
    block: Scorecard,
    data: Sequence[Path],
    *,
    seed: int,
    intent_column: str | None = None,
    without: Collection[str] = (),
) -> Contexts:
    """Draw twice ``block.contexts`` conversations in the order of their ids' hashes, whatever the
    order of files.

    Each is stopped at one of its human turns, drawn among those with at most
    ``block.context_chars`` characters before them (the first turn is none of them; system messages
    are left out, they were not addressed to the human). Of fewer conversations one half is drawn.
    Those whose id is in `without` are none of them. Raises `SourceError` when fewer than two can be
    used."""
    usable = (row for row in _rows(data) if str(row.get("id", "")) not in without)
    rows = sorted(usable, key=lambda row: _rank(seed, str(row.get("id", ""))))
    chosen: list[Context] = []
    ends: list[Context] = []
    first: list[str] = []
    for row in rows:
        if len(chosen) == 2 * block.contexts:
            break
        turns = [m for m in row["messages"] if m["role"] != "system"]
        row_id = str(row.get("id", ""))
        intent = text_in(row, intent_column) or None if intent_column else None
        if turns[0]["role"] == "user" and len(first) < block.openings:
            first.append(turns[0]["content"])
        places = _places(turns, block.context_chars)
        if not places:
            continue
        at = random.Random(f"{seed}/{row_id}").choice(places)
        chosen.append(Context(row_id, turns[:at], turns[at]["content"], intent))
        if (
            turns[-1]["role"] == "assistant"
            and _chars(turns) <= block.context_chars
            and len(ends) < block.contexts
        ):
            ends.append(Context(row_id, turns, None, intent))
    if len(chosen) < 2:
        raise SourceError(
            f"only {len(chosen)} of the held-out conversations continues within "
            f"{block.context_chars} characters; raise eval.scorecard.context_chars, "
            "or give more conversations"
        )
    number = min(block.contexts, (len(chosen) + 1) // 2)
    return Contexts(chosen[:number], chosen[number : 2 * number], ends[:number], first)


def _places(turns: Sequence[Message], most_chars: int) -> list[int]:
    """Indices of the human turns that follow an answer and have no more than `most_chars` before
    them.
    """
    positions, before = [], 0
    for at, turn in enumerate(turns):
        if before > most_chars:
            break
        if turn["role"] == "user" and at and any(m["role"] == "user" for m in turns[:at]):
            positions.append(at)
        before += len(turn["content"])
    return positions


def _chars(turns: Sequence[Message]) -> int:
    return sum(len(turn["content"]) for turn in turns)


def _rows(data: Sequence[Path]) -> Iterator[ConversationRow]:
    for path in data:
        for batch in read_batches(path):
            if "messages" not in batch.schema.names:
                raise SourceError(
                    f"{path} has no column messages; it holds {', '.join(batch.schema.names)}"
                )
            for row in batch.to_pylist():
                if isinstance(row["messages"], list) and fault(row["messages"], first=None) is None:
                    yield row


def _rank(seed: int, row_id: str) -> bytes:
    return blake2b(f"{seed}\x1f{row_id}".encode(), digest_size=8).digest()
