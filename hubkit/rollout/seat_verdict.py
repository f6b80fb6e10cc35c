"""Tells a dialogue that a seat cannot answer from a seat whose answers cannot be used.

Servers fail with status 200 too: for a while every answer is empty, or cut by a filter. A dialogue
that spends its attempts on such answers waits for a verdict on its seat. The next answer that can
be used, to whichever dialogue, gives it: a long row of unusable answers to several dialogues before
it was the server's doing, and those attempts do not count against the dialogues. Else they do, and
the dialogues that waited end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from hubkit.rollout.dialogue import Dialogue

UNUSABLE_ENDS = frozenset({"error", "empty_turn", "failed_turn", "refusal", "context_full"})
_LONG = 8  # unusable answers in a row
_MOST_EXCUSES = 5  # for one turn
_FROM_START = 8  # dialogues in a row that ended so, until the run stops
_LATER = 20


class UnusableRow:
    """The unusable answers of a server since the last one that was used, by dialogue."""

    def __init__(self) -> None:
        self._answers: Counter[int] = Counter()
        self._dialogues: dict[int, Dialogue] = {}

    @property
    def is_long(self) -> bool:
        """Whether it is longer than chance makes it."""
        return self._answers.total() >= _LONG

    def add(self, dialogue: Dialogue) -> None:
        """An answer to `dialogue` could not be used."""
        self._answers[dialogue.plan.index] += 1
        self._dialogues[dialogue.plan.index] = dialogue

    def end(self) -> None:
        """An answer was used; a long row to several dialogues was the server's doing."""
        if self.is_long and len(self._dialogues) > 1:
            for index, dialogue in self._dialogues.items():
                _excuse(dialogue, self._answers[index])
        self._answers.clear()
        self._dialogues.clear()


def _excuse(dialogue: Dialogue, answers: int) -> None:
    if dialogue.failed_attempts and dialogue.excuses < _MOST_EXCUSES:
        dialogue.excuses += 1
        dialogue.excused_attempts = min(
            len(dialogue.failed_attempts), dialogue.excused_attempts + answers
        )


class SeatVerdict:
    """What the answers of one seat say about it.

    Args:
        works: Whether an answer of it has been used before.
        row: That of its server; seats at the same addresses share it.
        retries: How often a turn is asked for again.
    """

    def __init__(self, *, works: bool, row: UnusableRow, retries: int) -> None:
        self.works = works
        self.waiting: list[tuple[Dialogue, str]] = []
        self._row = row
        self._retries = retries

    @classmethod
    def of_seats(
        cls, works: Collection[str], addresses: Mapping[str, Sequence[str]], retries: int
    ) -> dict[str, SeatVerdict]:
        """One for each seat; `works` are those of which an answer has been used before."""
        rows = {frozenset(urls): UnusableRow() for urls in addresses.values()}
        return {
            seat: cls(works=seat in works, row=rows[frozenset(urls)], retries=retries)
            for seat, urls in addresses.items()
        }

    @property
    def is_hopeless(self) -> bool:
        """Whether so many dialogues wait that the run is to stop."""
        return len(self.waiting) >= (_LATER if self.works else _FROM_START)

    def unusable(self, dialogue: Dialogue) -> None:
        """An answer to `dialogue` could not be used."""
        self._row.add(dialogue)

    def usable(self) -> tuple[list[Dialogue], list[tuple[Dialogue, str]]]:
        """An answer was used: the seat works.

        Returns:
            The dialogues that waited and are to be asked again, and those that end, with the
            reasons.
        """
        self.works = True
        self._row.end()
        if not self.waiting:
            return [], []
        waiting = self._taken()
        to_ask = [dialogue for dialogue, reason in waiting if self._may_ask(dialogue, reason)]
        return to_ask, [entry for entry in waiting if not self._may_ask(*entry)]

    def one_more_attempt(self) -> list[Dialogue]:
        """The last dialogues of a run that wait, each with one more attempt, where the row is long:
        none is left to compare them with.
        """
        if not self._row.is_long or not self.works:
            return []
        dialogues = [dialogue for dialogue, _ in self._taken()]
        for dialogue in dialogues:
            dialogue.excused_attempts = max(0, len(dialogue.failed_attempts) - self._retries)
        return dialogues

    def _may_ask(self, dialogue: Dialogue, reason: str) -> bool:
        has_attempts = reason not in ("error", "context_full")
        return has_attempts and dialogue.counted_attempts <= self._retries

    def _taken(self) -> list[tuple[Dialogue, str]]:
        waiting, self.waiting = self.waiting, []
        return waiting
