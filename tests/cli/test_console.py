"""Progress that tells the truth: what is counted, how long it takes, and that it ended."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap

import pyte
import pytest

DIGEST = "0123456789abcdef0123456789abcdef01234567"


def screen(code: str, columns: int) -> list[str]:
    """What a terminal of `columns` shows after `code` has run with `bars` in it."""
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "24"}
    program = "from hubkit.cli import console\n" + textwrap.dedent(code)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=follower, stdout=follower, env=env
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait() == 0
    os.close(leader)
    terminal = pyte.Screen(columns, 24)
    pyte.ByteStream(terminal).feed(shown.replace(b"\n", b"\r\n"))
    return [line.rstrip() for line in terminal.display if line.strip()]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_stage_that_was_done_before_does_not_spin(columns: int) -> None:
    lines = screen(
        f"""
        with console.bars() as bar_for:
            corpus, asker = bar_for("corpus"), bar_for("asker")
            corpus(0, None, "looking")
            corpus(1, 1, "done before")
            asker(0, 30, "step of {DIGEST}")
            asker(30, 30, "saving {DIGEST}")
            asker(1, 1, "done in 12 s")
        """,
        columns,
    )
    assert [line for line in lines if "corpus" in line and "✓" in line and "done before" in line]
    assert [line for line in lines if "asker" in line and "✓" in line and "done in 12 s" in line]
    assert all(len(line) <= columns for line in lines)


def test_a_commit_is_shown_by_its_first_characters() -> None:
    lines = screen(
        f"""
        with console.bars() as bar_for:
            bar_for("asker")(1, 3, "reading local/base@{DIGEST}")
        """,
        80,
    )
    assert any("local/base@01234567" in line for line in lines)
    assert not any(DIGEST[:12] in line for line in lines)


def piped(code: str) -> list[str]:
    program = "from hubkit.cli import console\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_a_piped_log_repeats_no_line() -> None:
    lines = piped(
        """
        with console.bars() as bar_for:
            corpus = bar_for("corpus")
            for _ in range(5):
                corpus(10, 126, "MB cleaned")
            corpus(125.9, 126, "MB cleaned")
            corpus(126, 126, "MB cleaned")
            corpus(126, 126, "MB cleaned")
            corpus(1, 1, "done in 3 s")
        """
    )
    assert lines == [
        "corpus: 10 of 126 MB cleaned",
        "corpus: 126 of 126 MB cleaned",
        "corpus: done in 3 s",
    ]


def test_a_notice_is_told_at_once_in_a_log() -> None:
    lines = piped(
        """
        from hubkit.progress import Notice
        with console.bars() as bar_for:
            rollout = bar_for("rollout")
            rollout(1, 24, "turns · 3 in flight")
            rollout(2, 24, "turns · 2 in flight")
            rollout(2, 24, Notice("finishing 2 answers"))
            rollout(2, 24, Notice("finishing 2 answers"))
        """
    )
    assert lines == ["rollout: 1 of 24 turns · 3 in flight", "rollout: finishing 2 answers"]


def test_ctrl_c_is_answered_before_anything_else_ends() -> None:
    lines = piped(
        """
        import signal
        import threading
        heard = threading.Event()
        say = console.say
        console.say = lambda text: (say(text), heard.set())
        try:
            with console.bars() as bar_for:
                try:
                    signal.raise_signal(signal.SIGINT)
                finally:
                    heard.wait()
                    console.say("the engine ends")
        except KeyboardInterrupt:
            console.say("interrupted")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        """
    )
    assert lines == [
        "stopping; what is running ends first; press again to stop now",
        "the engine ends",
        "interrupted",
    ]


def test_a_second_ctrl_c_is_answered_with_another_sentence() -> None:
    lines = piped(
        """
        import signal
        import threading
        heard = threading.Semaphore(0)
        say = console.say
        console.say = lambda text: (say(text), heard.release())
        with console.bars() as bar_for:
            for _ in range(3):
                try:
                    signal.raise_signal(signal.SIGINT)
                except KeyboardInterrupt:
                    pass
            heard.acquire()
            heard.acquire()
        """
    )
    assert lines == [
        "stopping; what is running ends first; press again to stop now",
        "stopping now",
    ]


def test_a_line_that_is_said_while_bars_end_draws_none_twice() -> None:
    lines = screen(
        """
        import threading
        from rich.live import Live
        whole_refresh, whole_process = Live.refresh, Live.process_renderables
        main, drawing, others = threading.main_thread(), threading.Event(), []

        def process(self, renderables):
            if threading.current_thread() is not main:
                drawing.set()
            return whole_process(self, renderables)

        def refresh(self):
            if not self._started and not others:  # the last time
                others.append(threading.Thread(target=console.say, args=("stopping now",)))
                others[0].start()
                drawing.wait(1)  # or for ever, where it has to wait for us
            whole_refresh(self)

        Live.process_renderables, Live.refresh = process, refresh
        with console.bars() as bar_for:
            bar_for("corpus")(1, 1, "done before")
            bar_for("openings")(0, None, "checking")
        others[0].join()
        console.say("the last word")
        """,
        80,
    )
    assert [line.split()[1] for line in lines if "━" in line] == ["corpus", "openings"], lines
    assert lines[-2:] == ["stopping now", "the last word"]


def test_a_bar_begins_when_there_is_something_to_show() -> None:
    (line,) = screen(
        """
        with console.bars() as bar_for:
            looking, judging = bar_for("look up"), bar_for("judge")
            looking(1, 1, "done")
        """,
        80,
    )
    assert "look up" in line and "done" in line


@pytest.mark.parametrize("columns", [80, 120])
def test_only_the_note_gives_way_and_time_is_left_until_the_end(columns: int) -> None:
    lines = screen(
        """
        from hubkit.progress import Course
        now = 100.0
        console.Course = lambda: Course(lambda: now)
        with console.bars() as bar_for:
            corpus = bar_for("corpus")
            corpus(0, 126, "MB cleaned")
            now += 60
            corpus(42.9, 126, "MB cleaned · 8,123 rows of " + "a-long-name" * 9)
        """,
        columns,
    )
    line = next(line for line in lines if "corpus" in line)
    assert "42 of 126" in line and "2 min left" in line and "MB cleaned" in line
    assert line.endswith("…") and ":" in line and len(line) <= columns


def test_each_of_several_lines_is_broken_by_itself() -> None:
    tree = [
        "model local/parrot-ask @ 340575a4",
        "├─ base: " + "word " * 9 + "end",
        "└─ " + "x " * 45,
    ]
    lines = screen(f"console.line({chr(10).join(tree)!r})", 80)
    assert lines[:2] == tree[:2] and len(lines) == 4


@pytest.mark.parametrize(("waited_s", "left"), [(60, "56 s left"), (200, "")])
def test_time_that_has_gone_by_is_not_left(waited_s: int, left: str) -> None:
    (line,) = screen(
        f"""
        from types import SimpleNamespace
        from hubkit.progress import Course
        now = 100.0
        console.Course = lambda: Course(lambda: now)
        console.time = SimpleNamespace(monotonic=lambda: now)
        with console.bars() as bar_for:
            corpus = bar_for("corpus")
            corpus(0, 126, "MB cleaned")
            now += 60
            corpus(42.9, 126, "MB cleaned")
            now += {waited_s}
        """,
        80,
    )
    assert "42 of 126 MB cleaned" in line and left in line
    assert ("left" in line) is bool(left)


def test_what_has_no_count_follows_what_had_one() -> None:
    lines = screen(
        """
        with console.bars() as bar_for:
            asker = bar_for("asker")
            asker(30, 30, "loss 2")
            asker(0, None, "committing to local/asker")
        """,
        80,
    )
    assert any("committing to local/asker" in line and "30 of 30" not in line for line in lines)
    assert not any("✓" in line for line in lines), "it is not done yet"


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminals_own_echo_of_ctrl_c_draws_no_bar_twice(columns: int) -> None:
    lines = screen(
        """
        import sys
        with console.bars() as bar_for:
            corpus, asker = bar_for("corpus"), bar_for("asker")
            corpus(1, 1, "done in 12 s")
            asker(3, 30, "steps · " + "a-long-name" * 20)
            console.say("the bars are drawn below this")
            sys.__stderr__.write("^C^C")
            sys.__stderr__.flush()
            console.say("stopping; what is running ends first")
        """,
        columns,
    )
    assert [line.split()[1] for line in lines if "━" in line] == ["corpus", "asker"], lines
    assert "stopping; what is running ends first" in lines


@pytest.mark.parametrize("columns", [60, 80])
def test_a_notice_is_broken_and_not_cut(columns: int) -> None:
    told = "saving after this step, which may take a while yet; press again to stop now"
    lines = screen(
        f"""
        from hubkit.progress import Notice
        with console.bars() as bar_for:
            bar_for("asker")(3, 30, Notice("{told}"))
        """,
        columns,
    )
    text = " ".join(" ".join(lines).split())
    assert "…" not in text and all(word in text for word in told.split()), lines


@pytest.mark.parametrize("columns", [80, 160])
def test_what_is_to_be_read_later_has_a_line_of_its_own(columns: int) -> None:
    lines = screen(
        """
        from hubkit.progress import Lasting
        with console.bars() as bar_for:
            rollout = bar_for("rollout")
            rollout(0, 30, Lasting("the endpoint still runs, and costs, as long as nobody ends it "
                                   "by a command of its own"))
            rollout(30, 30, "done in 12 s")
        with console.bars(quiet=True) as bar_for:
            bar_for("corpus")(0, 30, "nobody sees this")
            bar_for("corpus")(0, 30, Lasting("ended by nobody"))
        """,
        columns,
    )
    text = " ".join(lines)
    assert "rollout: the endpoint still runs" in text and "by a command of its own" in text
    assert "done in 12 s" in text and "corpus: ended by nobody" in text
    assert "nobody sees" not in text


def test_a_command_that_ends_does_not_look_for_garbage() -> None:
    lines = piped(
        """
        import gc
        import sys
        from hubkit import cli
        gc.disable()  # but for the last time, which the interpreter does all the same

        class Circle:
            def __init__(self) -> None:
                self.itself = self

            def __del__(self) -> None:
                sys.__stderr__.write("collected\\n")

        Circle()
        sys.argv = ["hubkit", "--version"]
        cli.main()
        """
    )
    assert lines == []
