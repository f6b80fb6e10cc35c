"""Tells a dialogue that a seat cannot answer from a seat whose answers cannot be used.

Servers fail with status 200 too: for a while every answer is empty, or cut by a filter. A dialogue
that spends its attempts on such answers waits for a verdict on its seat. The next answer that can
be used, to whichever dialogue, gives it, if it was asked for after they began: one that was asked
for before says how the server was then. A long row of unusable answers to several dialogues was the
server's doing, and those attempts do not count against the dialogues; a long row to one dialogue
that was compared with none meanwhile counts once. Else they all count, and the dialogues that
waited end."""

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
        self._sent = 0  # requests; it stands for the time
        self._began = 0

    @property
    def is_long(self) -> bool:
        """Whether it is longer than chance makes it."""
        return self._answers.total() >= _LONG

    def sent(self) -> int:
        """A request is sent; gives the moment."""
        self._sent += 1
        return self._sent

    def add(self, dialogue: Dialogue) -> None:
        """An answer to `dialogue` could not be used."""
        if not self._answers:
            self._began = self._sent
        self._answers[dialogue.plan.index] += 1
        self._dialogues[dialogue.plan.index] = dialogue

    def end(self, sent_at: int) -> bool:
        """An answer was used whose request was sent at that moment.

        Returns:
            Whether that ends the row: not where it was asked for before the row began.
        """
        if self._answers and sent_at <= self._began:
            return False
        if self.is_long:
            own_answers = 1 if len(self._dialogues) == 1 else 0
            for index, dialogue in self._dialogues.items():
                _excuse(dialogue, self._answers[index] - own_answers)
        self._answers.clear()
        self._dialogues.clear()
        return True


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

    def sent(self) -> int:
        """A request is sent to the seat; gives the moment, for `usable`."""
        return self._row.sent()

    def unusable(self, dialogue: Dialogue) -> None:
        """An answer to `dialogue` could not be used."""
        self._row.add(dialogue)

    def usable(self, sent_at: int) -> tuple[list[Dialogue], list[tuple[Dialogue, str]]]:
        """An answer was used: the seat works.

        Args:
            sent_at: What `sent` gave when its request was sent.

        Returns:
            The dialogues that waited and are to be asked again, and those that end, with the
            reasons.
        """
        self.works = True
        if not self._row.end(sent_at) or not self.waiting:
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
