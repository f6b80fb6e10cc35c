"""Whether runs of the whole loop that differ in their seed alone agree. Writes
``results/seeds.json``.

    python tests/bench/seeds.py [--recipe parrot] [--seeds 42 1]

It resumes where it was stopped: `HUBKIT_HOME` keeps what is done, and 42 is parrot's own seed, so
a home in which it was run has one of the two. The seed decides everything that is drawn: which
conversations are held out, the order of training rows, every sampled turn. Two results agree where
their difference is within both intervals together (root of the sum of squares), as it is 95 times
out of 100 between runs that differ by chance."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from demo import against
from figures import write

SEATS = ("asker", "chat")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--recipe", default="parrot")
    options.add_argument("--seeds", nargs="+", type=int, default=[42, 1])
    chosen = options.parse_args()
    runs = {f"seed {seed}": run(chosen.recipe, seed) for seed in chosen.seeds}
    figures = {"recipe": chosen.recipe, "runs": runs, "agreement": agreement(runs)}
    about = "The whole loop with the laptop profile, runs that differ in their seed alone."
    seeds = " ".join(str(seed) for seed in chosen.seeds)
    command = f"python tests/bench/seeds.py --recipe {chosen.recipe} --seeds {seeds}"
    write("seeds", about, command, figures, add=False)
    print(json.dumps(figures["agreement"], indent=1))


def run(recipe: str, seed: int) -> dict[str, Any]:
    """One loop: what each seat's training changed on its own held-out conversations."""
    command = ["run", recipe, "--profile", "laptop", "--set", f"seed={seed}", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "hubkit", *command], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}
    return {
        "dialogues_kept": stages["curate"]["report"]["kept"],
        **{seat: against(stages["eval"]["report"][seat]) for seat in SEATS},
    }


def agreement(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pair of runs and seat: the difference of their results, and what chance allows."""
    compared = []
    for (one, first), (two, second) in itertools.combinations(runs.items(), 2):
        for seat in SEATS:
            a, b = (made[seat]["trained_less_base"] for made in (first, second))
            allowed = math.hypot(*((e["high"] - e["low"]) / 2 for e in (a, b)))
            apart = a["difference"] - b["difference"]
            compared.append(
                {"runs": [one, two], "seat": seat, "apart": apart, "allowed": allowed,
                 "agree": abs(apart) <= allowed}
            )  # fmt: skip
    return compared


if __name__ == "__main__":
    main()
