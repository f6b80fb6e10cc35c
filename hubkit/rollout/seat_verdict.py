"""Tells a dialogue that a seat cannot answer from a seat whose answers cannot be used.

Servers fail with status 200 too: for a while every answer is empty, or cut by a filter. A dialogue
that spends its attempts on such answers waits for a verdict on its seat. The next answer that can
be used, to whichever dialogue, gives it: a long row of unusable answers to several dialogues before
it was the server's doing, and those attempts do not count against the dialogues. Else they do, and
the dialogues that waited end."""

from __future__ import annotations

from collections import Counter

from hubkit.rollout.dialogue import Dialogue

UNUSABLE_ENDS = frozenset({"error", "empty_turn", "failed_turn", "refusal", "context_full"})
_ROW = 8  # unusable answers in a row, to two dialogues or more, that are the server's doing
_MOST_EXCUSES = 5  # for one turn
_FROM_START = 8  # dialogues in a row that ended so, until the run stops
_LATER = 20


class SeatVerdict:
    """What the answers of one seat say about it.

    Args:
        works: Whether an answer of it has been used before.
    """

    def __init__(self, *, works: bool) -> None:
        self.works = works
        self.waiting: list[tuple[Dialogue, str]] = []
        self._in_row: Counter[int] = Counter()  # unusable answers since the last usable one
        self._dialogues: dict[int, Dialogue] = {}

    @property
    def is_hopeless(self) -> bool:
        """Whether so many dialogues wait that the run is to stop."""
        return len(self.waiting) >= (_LATER if self.works else _FROM_START)

    @property
    def is_at_fault(self) -> bool:
        """Whether the latest answers were unusable by the server's doing."""
        return len(self._in_row) > 1 and self._in_row.total() >= _ROW

    def unusable(self, dialogue: Dialogue) -> None:
        """An answer to `dialogue` could not be used."""
        self._in_row[dialogue.plan.index] += 1
        self._dialogues[dialogue.plan.index] = dialogue

    def usable(self, retries: int) -> tuple[list[Dialogue], list[tuple[Dialogue, str]]]:
        """An answer was used: the seat works.

        Args:
            retries: How often a turn is asked for again.

        Returns:
            The dialogues that waited and are to be asked again, and those that end, with the
            reasons.
        """
        self.works = True
        if not self._in_row and not self.waiting:
            return [], []
        again: list[Dialogue] = []
        ending = []
        if self.is_at_fault:
            self._excuse()
        for dialogue, reason in self._taken():
            is_excused = dialogue.error is None or dialogue.error.get("status") == 200
            if is_excused and dialogue.counted_attempts <= retries:
                again.append(dialogue)
            else:
                ending.append((dialogue, reason))
        self._forget()
        return again, ending

    def one_more_attempt(self, retries: int) -> list[Dialogue]:
        """The last dialogues of a run that wait, each with one more attempt, where the row is long:
        none is left to compare them with.
        """
        if self._in_row.total() < _ROW or not self.works:
            return []
        dialogues = [dialogue for dialogue, _ in self._taken()]
        for dialogue in dialogues:
            dialogue.excused_attempts = max(0, len(dialogue.failed_attempts) - retries)
        return dialogues

    def _excuse(self) -> None:
        for index, dialogue in self._dialogues.items():
            if dialogue.failed_attempts and dialogue.excuses < _MOST_EXCUSES:
                dialogue.excuses += 1
                dialogue.excused_attempts = min(
                    len(dialogue.failed_attempts), dialogue.excused_attempts + self._in_row[index]
                )

    def _taken(self) -> list[tuple[Dialogue, str]]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def _forget(self) -> None:
        self._in_row.clear()
        self._dialogues.clear()
