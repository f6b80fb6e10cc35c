"""What a stranger, a careless owner or a bad day may do, tried: ``make attack`` runs every test
with the mark ``attack`` and writes ``results/attack.json``.

A test with parameters is one attack, tried as often as it has parameters."""

from __future__ import annotations

import sys

from figures import write
from suites import run


def main(*more: str) -> int:
    """Run the tests (`more` are further arguments for pytest); its exit status."""
    status, cases = run(["-m", "attack", "--timeout", "600", *more])
    attacks: dict[str, dict[str, int]] = {}
    for case in cases:
        row = attacks.setdefault(case.name, {"tried": 0, "held": 0})
        row["tried"] += 1
        row["held"] += case.held
    for name, row in attacks.items():
        print(f"{row['held']:>3} of {row['tried']:>3} held: {name}")
    if not more:
        about = "Attacks by strangers, accidents of owners: tried, and what held."
        figures = {
            "attacks": len(attacks),
            "tried": sum(row["tried"] for row in attacks.values()),
            "held": sum(row["held"] for row in attacks.values()),
            "by attack": attacks,
        }
        write("attack", about, "make attack", figures, add=False)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
