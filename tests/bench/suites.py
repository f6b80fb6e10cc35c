"""Tests as a bench: run by pytest, read back from its report, case by case."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from figures import ROOT


@dataclass(frozen=True)
class Case:
    """One test as it ran: its module, its function in words, and what it recorded."""

    module: str
    name: str
    outcome: str
    properties: tuple[tuple[str, str], ...]

    @property
    def held(self) -> bool:
        """Whether it passed."""
        return self.outcome == "passed"

    def count(self, name: str) -> int:
        """The sum of a property that tests give by ``record_property(name, number)``."""
        return sum(int(value) for key, value in self.properties if key == name)


def run(options: Sequence[str]) -> tuple[int, list[Case]]:
    """Run pytest: its exit status, and every case that was not skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "--junitxml", str(report), *options]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if not report.exists():
            return status, []
        found = [_case(case) for case in ElementTree.parse(report).iter("testcase")]
    return status, [case for case in found if case.outcome != "skipped"]


def _case(case: ElementTree.Element) -> Case:
    outcomes = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
    function = str(case.get("name")).partition("[")[0].removeprefix("test_")
    properties = [(str(p.get("name")), str(p.get("value", "0"))) for p in case.iter("property")]
    module = str(case.get("classname"))
    outcome = outcomes[0] if outcomes else "passed"
    return Case(module, function.replace("_", " "), outcome, tuple(properties))
