"""Whatever can be killed, killed at any moment, and whatever can be damaged, damaged: ``make
chaos`` runs those tests and writes ``results/chaos.json``.

A test that kills more than once says how often by ``record_property("kills", n)``; one that damages
files, of which kind and how often that was named or harmless. ``python tests/bench/chaos.py
local_hub`` runs the tests of one place and keeps what the others found before."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from figures import RESULTS, write
from suites import Case, run

NAMES = "kill or chaos or data_safety or copied_home"


def main(place: str = "", *more: str) -> int:
    """Run the tests of `place` (a part of a test's path; all without one; `more` are further
    arguments for pytest); pytest's exit status.
    """
    chosen = f"({NAMES}) and {place}" if place else NAMES
    options = ["-m", "slow or not slow", "-k", chosen, "--timeout", "3600", *more]
    status, cases = run(options)
    known = {} if not place else _known_elsewhere(place)
    tests = {**known, **{_name(case): _row(case, cases) for case in cases}}
    figures = {
        "tests": sum(row["tried"] for row in tests.values()),
        "passed": sum(row["held"] for row in tests.values()),
        "kills": sum(row["kills"] for row in tests.values()),
        "by test": tests,
    }
    if damaged := _damage(cases) or _before().get("damaged files of the embedded Hub"):
        figures["damaged files of the embedded Hub"] = damaged
    if not more and cases:
        about = (
            "Drivers, Hubs, pushes and trainers killed at any moment, disks full, bits flipped, "
            "databases lost, homes copied: is all there that was acknowledged, or named as lost?"
        )
        write("chaos", about, "make chaos", figures, add=False)
    return status


def _name(case: Case) -> str:
    return f"{case.module.removeprefix('tests.').partition('.')[0]}: {case.name}"


def _row(case: Case, cases: Sequence[Case]) -> dict[str, int]:
    alike = [other for other in cases if (other.module, other.name) == (case.module, case.name)]
    return {
        "tried": len(alike),
        "held": sum(other.held for other in alike),
        "kills": sum(other.count("kills") for other in alike),
    }


def _before() -> dict[str, Any]:
    path = RESULTS / "chaos.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def _known_elsewhere(place: str) -> dict[str, dict[str, int]]:
    tests: dict[str, dict[str, int]] = _before().get("by test", {})
    return {name: row for name, row in tests.items() if not name.startswith(f"{place}: ")}


def _damage(cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """Kind of file → how often its damage was named, and how often it did nothing."""
    return {
        value: {"named": case.count("damage named"), "harmless": case.count("damage harmless")}
        for case in cases
        for key, value in case.properties
        if key == "damaged"
    }


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
