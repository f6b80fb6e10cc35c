"""Parquet files → the dialogues that measures are taken of: a seeded sample, human turns told apart
from given ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappush, heappushpop
from pathlib import Path

from hubkit.conversation import ConversationRow, Message
from hubkit.data.parquet import read_batches
from hubkit.errors import SourceError
from hubkit.untrusted import list_in


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One dialogue; `given` is the number of its first messages that the rollout was handed, not
    made.

    In a rollout's rows those have no finish reason.
    """

    id: str
    messages: Sequence[Message]
    given: int = 0

    @property
    def human(self) -> list[str]:
        """What the human side says, opening included."""
        return [m["content"] for m in self.messages if m["role"] == "user"]

    @property
    def followups(self) -> list[str]:
        """What the human side says after the opening: the turns an asker makes, and the fair ones
        to compare.

        A first turn is left out of real conversations too, so that openings, which are people's own
        in a rollout, count in neither."""
        first = next((i for i, m in enumerate(self.messages) if m["role"] == "user"), -1)
        return [
            m["content"]
            for i, m in enumerate(self.messages)
            if m["role"] == "user" and i >= self.given and i != first
        ]


@dataclass(frozen=True, slots=True)
class Sample:
    """Dialogues drawn from `total` rows, in order of their id's hash: the same ones whatever the
    order of files.
    """

    name: str
    dialogues: list[Dialogue]
    total: int


def sample(name: str, files: Sequence[Path], *, size: int, seed: int) -> Sample:
    """Draw `size` dialogues out of `files` (all, where there are fewer). Holds no more than `size`
    in memory.

    Raises `SourceError` where a file is missing, is no parquet file or has no ``messages``, or
    where no row is left."""
    heap: list[tuple[int, int, Dialogue]] = []
    total = 0
    for row in rows_of(files):
        dialogue = _dialogue(row)
        if not dialogue.human:
            continue
        total += 1
        rank = -int.from_bytes(
            blake2b(f"{seed}\x1f{dialogue.id}".encode(), digest_size=8).digest(), "big"
        )
        entry = (rank, total, dialogue)
        if len(heap) < size:
            heappush(heap, entry)
        else:
            heappushpop(heap, entry)
    if not heap:
        raise SourceError(
            f"{name} holds no dialogue with a human turn; there is nothing to measure"
        )
    return Sample(name, [dialogue for _, _, dialogue in sorted(heap, key=lambda e: -e[0])], total)


def rows_of(files: Sequence[Path]) -> Iterator[ConversationRow]:
    """Rows as dicts of ``id``, ``messages`` and, where there, ``finish_reasons``. Raises
    `SourceError`.
    """
    for path in files:
        for batch in read_batches(path):
            if "messages" not in batch.schema.names:
                raise SourceError(
                    f"{path} has no column messages; it holds {', '.join(batch.schema.names)}"
                )
            columns = [
                name for name in ("id", "messages", "finish_reasons") if name in batch.schema.names
            ]
            yield from batch.select(columns).to_pylist()


def _dialogue(row: ConversationRow) -> Dialogue:
    messages: list[Message] = [
        {"role": m["role"], "content": m["content"]}
        for m in row["messages"] or []
        if m and m["content"] and m["role"] in ("user", "assistant", "system")
    ]
    reasons = list_in(row, "finish_reasons")
    given_messages = next(
        (at for at, reason in enumerate(reasons) if reason not in (None, "given")), len(reasons)
    )
    return Dialogue(str(row.get("id", "")), messages, given_messages)
