"""What each paper at full scale would take and cost on hosted hardware: ``make plans`` writes
``results/plans.json``.

From ``hubkit run RECIPE --profile cloud --on jobs --dry-run``; nothing is started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from figures import RESULTS, ROOT

from hubkit.recipe import available

COMMAND = "hubkit run RECIPE --profile cloud --on jobs --dry-run --json"
MORE_PROFILES = {"userlm": ["reinforce-cloud"]}  # what its paper does besides


def main() -> dict[str, Any]:
    """Plan every recipe that ships; gives what was written."""
    with tempfile.TemporaryDirectory() as home:
        plans = {recipe: _plan(recipe, home) for recipe in available()["recipes"]}
        subprocess.run([sys.executable, "-m", "hubkit", "hub", "stop"], env=_env(home), check=False)
    about = (
        "The papers' own scale on hosted hardware, planned and not run; "
        f"prices of {plans['parrot'].pop('prices')}. userlm is planned with --profile "
        "reinforce-cloud."
    )
    made = {"about": about, "command": COMMAND, "recipes": {}}
    for recipe, plan in plans.items():
        stages = {
            stage["stage"]: {"hours": stage["hours"], "usd": stage["usd"]}
            for stage in plan["stages"]
        }
        stages["all"] = {"hours": plan["hours"], "usd": plan["usd"]}
        rounded = {
            name: {key: round(value, 2) for key, value in row.items()}
            for name, row in stages.items()
        }
        made["recipes"][recipe] = rounded
    return made


def _plan(recipe: str, home: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "hubkit", *COMMAND.replace("RECIPE", recipe).split()[1:]]
    command += [word for name in MORE_PROFILES.get(recipe, []) for word in ("--profile", name)]
    done = subprocess.run(command, env=_env(home), stdout=subprocess.PIPE, text=True, check=True)
    plan = json.loads(done.stdout)
    assert plan["complete"], plan
    return dict(plan)


def _env(home: str) -> dict[str, str]:
    return {**os.environ, "HUBKIT_HOME": home, "PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    (RESULTS / "plans.json").write_text(json.dumps(main(), indent=1) + "\n", "utf-8")
