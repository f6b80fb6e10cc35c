"""Whatever can be killed, killed at any moment, and whatever can be damaged, damaged: ``make
chaos`` runs those tests and writes ``results/chaos.json``.

A test that kills more than once says how often through pytest's `record_property`:
``record_property("kills", n)``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from figures import ROOT, write

PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "-m",
    "slow or not slow",
    "-k",
    "kill or chaos or data_safety or copied_home",
    "--timeout",
    "3600",
]


def main(*more: str) -> int:
    """Run the tests (`more` are further arguments for pytest); its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        status = subprocess.run(
            [*PYTEST, "--junitxml", str(report), *more], cwd=ROOT, check=False
        ).returncode
        if not report.exists():
            return status
        cases = list(ElementTree.parse(report).iter("testcase"))
    ran = [case for case in cases if case.find("skipped") is None]
    failed = [
        case for case in ran if case.find("failure") is not None or case.find("error") is not None
    ]
    kills = {str(case.get("name")): found for case in ran if (found := _kills(case))}
    figures = {
        "tests": len(ran),
        "passed": len(ran) - len(failed),
        "skipped": len(cases) - len(ran),
        "kills": sum(kills.values()),
        "kills of a test that kills more than once": {
            name.removeprefix("test_"): kills[name] for name in kills
        },
        "accidents of the embedded Hub": {
            str(case.get("name")).removeprefix("test_"): "failed" if case in failed else "held"
            for case in ran
            if "local_hub" in str(case.get("classname"))
        },
    }
    if not more:
        about = (
            "Drivers, Hubs, pushes and trainers killed at any moment, disks full, bits flipped, "
            "databases lost, homes copied: is all there that was acknowledged, or named as lost?"
        )
        write("chaos", about, "make chaos", figures, add=False)
    return status


def _kills(case: ElementTree.Element) -> int:
    values = [
        int(found.get("value", 0))
        for found in case.iter("property")
        if found.get("name") == "kills"
    ]
    return sum(values)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
