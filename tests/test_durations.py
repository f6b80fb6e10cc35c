"""The order in which files of tests begin."""

from __future__ import annotations

from pathlib import Path

from support.durations import longest_first, of_report, recorded
from support.paths import TESTS


def test_files_begin_longest_first_and_unknown_ones_before_all() -> None:
    seconds = {"a.py": 1.0, "b.py": 9.0, "c.py": 1.0}
    assert longest_first(["a.py", "b.py", "c.py", "new.py"], seconds) == [
        "new.py", "b.py", "a.py", "c.py",
    ]  # fmt: skip


def test_a_report_is_summed_up_by_file(tmp_path: Path) -> None:
    cases = [("tests.cli.test_x", 1.25), ("tests.test_y", 7.5), ("tests.cli.test_x", 2.5)]
    lines = [f'<testcase classname="{name}" name="t" time="{time}"/>' for name, time in cases]
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuites><testsuite>{''.join(lines)}</testsuite></testsuites>")
    assert list(of_report(report).items()) == [("test_y.py", 7.5), ("cli/test_x.py", 3.8)]


def test_what_is_recorded_are_files_that_there_are() -> None:
    assert [file for file in recorded() if not (TESTS / file).is_file()] == []


def test_this_run_is_in_that_order(request) -> None:  # type: ignore[no-untyped-def]
    files = [item.path.relative_to(TESTS).as_posix() for item in request.session.items]
    places = list(dict.fromkeys(files))
    assert places == longest_first(places, recorded())
