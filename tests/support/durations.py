"""How long each file of tests takes, so that the longest begin first: what begins last would keep
one worker busy while the others have nothing left.

``python tests/support/durations.py REPORT`` writes them from a report of ``pytest --junitxml``."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

FILE = Path(__file__).parents[1] / "durations.json"


def recorded() -> dict[str, float]:
    """Seconds of each file, by its path in the folder of tests."""
    seconds: dict[str, float] = json.loads(FILE.read_text("utf-8"))
    return seconds


def longest_first(files: Iterable[str], seconds: Mapping[str, float]) -> list[str]:
    """Order `files`: those of unknown length, then by falling length; as given where equal."""
    return sorted(files, key=lambda file: -seconds.get(file, float("inf")))


def of_report(report: Path) -> dict[str, float]:
    """Seconds of each file in a report, setup and teardown included, the longest first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.attrib["classname"].removeprefix("tests.")
        seconds[f"{module.replace('.', '/')}.py"] += float(case.attrib["time"])
    return {file: round(seconds[file], 1) for file in longest_first(sorted(seconds), seconds)}


if __name__ == "__main__":
    FILE.write_text(json.dumps(of_report(Path(sys.argv[1])), indent=1) + "\n", "utf-8")
