"""What is shown of how far a task is, by a clock that only the tests move."""

from __future__ import annotations

import pytest

from hubkit.progress import Course, Lasting, Log, Notice, counted, part, stretch


class Told:
    """A log whose clock stands still between calls; `after` moves it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines: list[str] = []
        self.log = Log("rollout", self.lines.append, clock=lambda: self.now)

    def after(self, seconds: float, completed: float, total: float | None, note: str) -> list[str]:
        """The lines that this call writes, without the task's name."""
        self.now += seconds
        before = len(self.lines)
        self.log(completed, total, note)
        return [line.removeprefix("rollout: ") for line in self.lines[before:]]


@pytest.mark.parametrize(
    ("completed", "total", "text"),
    [
        (0, 126, "0 of 126"),
        (121.9, 125.6, "121 of 126"),
        (125.59, 125.6, "125 of 126"),  # rounding alone completes nothing
        (125.6, 125.6, "126 of 126"),
        (130, 126, "126 of 126"),
        (1234, 40000, "1,234 of 40,000"),
        (0.5, 1, ""),
        (3, None, ""),
    ],
)
def test_a_count_is_whole_only_when_all_is_done(
    completed: float, total: float | None, text: str
) -> None:
    assert counted(completed, total) == text


def test_two_lines_never_differ_only_in_a_rate() -> None:
    told = Told()
    assert told.after(0, 0.78, 1, "47 of 60 dialogues · 73 tok/s")
    for rate in range(72, 42, -1):
        assert not told.after(10, 0.78, 1, f"47 of 60 dialogues · {rate} tok/s")
    assert told.after(10, 0.9, 1, "54 of 60 dialogues · 42 tok/s")


def test_a_line_stands_for_a_step_or_for_a_minute_of_slow_work() -> None:
    told = Told()
    told.after(0, 0, 1000, "turns · 1 tok/s")
    assert not told.after(10, 49, 1000, "turns · 1 tok/s"), "less than a step"
    assert told.after(1, 50, 1000, "turns · 1 tok/s")
    assert not told.after(9, 400, 1000, "turns · 1 tok/s"), "too soon after the last"
    assert told.after(1, 400, 1000, "turns · 1 tok/s")
    assert not told.after(59, 401, 1000, "turns · 1 tok/s")
    assert told.after(1, 401, 1000, "turns · 1 tok/s")


def test_what_is_new_in_words_is_a_line_though_nothing_advances() -> None:
    told = Told()
    told.after(0, 3, 60, "turns · 5 tok/s")
    assert told.after(10, 3, 60, "turns · 5 tok/s · overloaded ×1")
    assert not told.after(10, 3, 60, "turns · 4 tok/s · overloaded ×2")
    assert told.after(50, 3, 60, "turns · 4 tok/s · overloaded ×9"), "a minute of it"


def test_the_end_is_told_at_once_and_once() -> None:
    told = Told()
    told.after(0, 17, 20, "turns")
    assert told.after(0.1, 20, 20, "turns") == ["20 of 20 turns"]
    assert not told.after(60, 20, 20, "turns")
    assert told.after(0.1, 1, 1, "done in 77 s") == ["done in 77 s"]


def test_a_count_never_falls_and_a_new_one_begins_where_it_is() -> None:
    told = Told()
    told.after(0, 12, 20, "conversations · end marks")
    assert told.after(60, 9, 20, "conversations · end marks, again") == [
        "12 of 20 conversations · end marks, again"
    ]
    assert told.after(60, 1, 20, "turns for the scorecard") == ["1 of 20 turns for the scorecard"]


def test_the_next_of_a_kind_begins_at_its_own_beginning() -> None:
    told = Told()
    told.after(0, 0, 1, "fetching one")
    told.after(60, 1, 1, "one is ready")
    assert told.log._course.shown(0.5, 1, "fetching another").share == 0.5


def test_the_time_that_is_left_follows_the_work_of_this_session() -> None:
    now = 0.0
    course = Course(lambda: now)
    assert course.shown(100, 200, "turns").left_s is None, "a resumed run has done nothing yet"
    now = 10.0
    assert course.shown(110, 200, "turns").text == "110 of 200 turns · 2 min left"
    now = 20.0
    assert course.shown(200, 200, "turns").text == "200 of 200 turns"


def test_a_notice_is_told_at_once_without_a_count_and_takes_nothing_back() -> None:
    told = Told()
    told.after(0, 5, 20, "turns")
    assert told.after(0, 0, None, Notice("finishing 2 answers")) == ["finishing 2 answers"]
    assert not told.after(0, 0, None, Notice("finishing 2 answers"))
    assert told.after(10, 6, 20, "turns") == ["6 of 20 turns · 2 min left"]


def test_what_is_to_be_read_later_has_its_own_way_out() -> None:
    later: list[str] = []
    log = Log("rollout", lambda _: None, lasting=later.append)
    log(0, None, "starting the engine")
    log(0, None, Lasting("chat: a model, by the embedded engine"))
    assert later == ["rollout: chat: a model, by the embedded engine"]


def test_parts_and_stretches_of_a_longer_task_add_up() -> None:
    seen: list[tuple[float, float | None, str]] = []

    def note(completed: float, total: float | None = None, note: str = "") -> None:
        seen.append((completed, total, note))

    part(note, 1, 4, "chat", "models")(5, 10, "conversations")
    stretch(note, 0.8, 1.0, "baseline")(3, 6, "dialogues")
    stretch(note, 0.8, 1.0, "baseline")(0, None, "starting the engine")
    assert seen == [
        (1.5, 4, "models · chat"),
        (pytest.approx(0.9), 1, "baseline · 3 of 6 dialogues"),
        (0.8, 1, "baseline · starting the engine"),
    ]
