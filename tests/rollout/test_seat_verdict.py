"""Whose doing unusable answers were: the order of requests and answers decides, never a clock."""

from __future__ import annotations

from hubkit.rollout.dialogue import Dialogue
from hubkit.rollout.plan import Plan
from hubkit.rollout.seat_verdict import SeatVerdict
from hubkit.rollout.turns import Turn

RETRIES = 9


def dialogue(index: int) -> Dialogue:
    return Dialogue(Plan(index, str(index), ({"role": "user", "content": "hello"},), 1))


def fail(verdict: SeatVerdict, one: Dialogue, times: int) -> None:
    """So many of its requests are answered with nothing; after its last attempt it waits."""
    for attempt in range(times):
        verdict.sent()
        verdict.unusable(one)
        counts = {"prompt_tokens": 1, "completion_tokens": 0, "cached_tokens": 0}
        turn = Turn(
            one.plan.index, 1, "assistant", "", "stop", **counts, seed=attempt,
            attempts=attempt + 1, address=None, created_at=0.0, trimmed=0,
        )  # fmt: skip
        one.failed_attempts.append(turn)
    if one.counted_attempts > RETRIES:
        verdict.waiting.append((one, "empty_turn"))


def seat() -> SeatVerdict:
    addresses = {"assistant": ["http://127.0.0.1:1"]}
    return SeatVerdict.of_seats(["assistant"], addresses, RETRIES)["assistant"]


def test_an_answer_asked_for_before_the_failures_says_nothing_about_them() -> None:
    verdict, first, second = seat(), dialogue(1), dialogue(2)
    early = verdict.sent()
    fail(verdict, first, RETRIES + 1)
    assert verdict.usable(early) == ([], []), "it may still have come from a server that was well"
    fail(verdict, second, RETRIES + 1)
    to_ask, to_end = verdict.usable(verdict.sent())
    assert to_ask == [first, second] and not to_end
    assert first.counted_attempts == second.counted_attempts == 0


def test_a_long_row_that_was_compared_with_no_other_dialogue_counts_once() -> None:
    verdict, alone = seat(), dialogue(1)
    for times in range(1, 4):
        fail(verdict, alone, RETRIES + 2 - times)
        assert verdict.usable(verdict.sent()) == ([alone], []) and alone.counted_attempts == times


def test_a_dialogue_that_fails_between_good_answers_is_at_fault_itself() -> None:
    verdict, one = seat(), dialogue(1)
    for _ in range(RETRIES):
        fail(verdict, one, 1)
        assert verdict.usable(verdict.sent()) == ([], [])
    fail(verdict, one, 1)
    assert verdict.usable(verdict.sent()) == ([], [(one, "empty_turn")])
