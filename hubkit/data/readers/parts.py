"""Parts of one conversation, as pre-split ShareGPT exports hold them.

Such an export cuts long conversations into rows ``ID_0``, ``ID_7``, … where the number is the
index, in the original, of the row's first message; the answer at a cut is often in both rows.
Other files number strangers' conversations in the same way, so a name proves nothing. Rows are
parts only where their contents say so: the first is ``_0``, each next one begins where the rows
before it end or repeats their end, and at least a third of the cuts are proven by a repeated answer
or by a part that begins with one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from hubkit.conversation import Conversation

_NUMBERED = re.compile(r"(.+)_(\d{1,9})\Z")
_MAX_UNPROVEN = 32  # parts that are held until their cuts prove something
_PROVEN_SHARE = 3  # at least one cut in three


def find_parts(
    conversations: Iterable[Conversation], *, join: bool
) -> Iterator[tuple[Conversation, int]]:
    """Mark the rows that are parts of one conversation as one group, or join them.

    Returns:
        Each conversation and the number of rows that it was made of. Parts that are not joined
        share ``group`` in their meta, and only the first ``is_start``."""
    run = _Run()
    for conversation in conversations:
        if run.takes(conversation):
            continue
        yield from run.end(join=join)
        run = _Run(conversation, run)
    yield from run.end(join=join)


class _Run:
    """Neighbouring rows whose numbers fit together, so far."""

    def __init__(self, first: Conversation | None = None, before: _Run | None = None) -> None:
        self._rows = [first] if first else []
        self._proven = 0
        match = _NUMBERED.match(first.id) if first else None
        self._prefix = match[1] if match else None
        self._starts = match is not None and int(match[2]) == 0
        self._whole = list(first.messages) if first and self._starts else []
        # A later row of a name whose rows were parts: no join, but the same split.
        same_name = before is not None and before.is_one and before._prefix == self._prefix
        self._follows = same_name and self._prefix is not None and not self._starts

    @property
    def is_one(self) -> bool:
        """Whether the rows are parts of one conversation."""
        cuts = len(self._rows) - 1
        return self._follows or (cuts > 0 and self._proven * _PROVEN_SHARE >= cuts)

    def takes(self, row: Conversation) -> bool:
        """Take `row` in, where it continues the rows so far."""
        match = _NUMBERED.match(row.id) if self._starts else None
        if match is None or match[1] != self._prefix or not row.messages:
            return False
        offset = int(match[2])
        overlap = self._whole[offset:]
        if not 0 < offset <= len(self._whole) or overlap != row.messages[: len(overlap)]:
            return False
        proven = bool(overlap) or row.messages[0]["role"] == "assistant"
        if len(self._rows) >= _MAX_UNPROVEN and not self.is_one:
            return False
        self._proven += proven
        self._rows.append(row)
        self._whole.extend(row.messages[len(overlap) :])
        return True

    def end(self, *, join: bool) -> Iterator[tuple[Conversation, int]]:
        """Give the rows: as one, as parts of one, or each by itself."""
        if not self.is_one:
            yield from ((row, 1) for row in self._rows)
        elif join and not self._follows:
            first = self._rows[0]
            meta = {**first.meta, "group": self._prefix}
            yield replace(first, messages=self._whole, meta=meta), len(self._rows)
        else:
            for index, row in enumerate(self._rows):
                start = row.meta["is_start"] and index == 0 and not self._follows
                yield (
                    replace(row, meta={**row.meta, "group": self._prefix, "is_start": start}),
                    1,
                )
