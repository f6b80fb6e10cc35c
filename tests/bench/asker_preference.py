"""What preferring people's own next turns makes of the laptop's asker: its scorecard before and
after, at the same held-out contexts. Writes ``results/asker_preference.json``.

    HUBKIT_HOME=… python tests/bench/asker_preference.py [--recipe userlm]

In a home where the corpus stage has run, only the asker's stage runs; whatever comes out is
written down."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from figures import write

PROFILES = ("laptop", "asker-preference-laptop")
ABOUT = (
    "The laptop's asker before and after preference training on what people said next, beside "
    "people, at the same held-out contexts."
)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--recipe", default="userlm")
    recipe = options.parse_args().recipe
    profiles = [word for name in PROFILES for word in ("--profile", name)]
    for stage in (["corpus"], ["train", "asker"]):
        command = [sys.executable, "-m", "hubkit", *stage, recipe, *profiles, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    [made] = json.loads(done.stdout)["stages"]
    write(
        "asker_preference",
        ABOUT,
        f"python tests/bench/asker_preference.py --recipe {recipe}",
        figures(recipe, made["report"]["preference"]),
        "xllamacpp",
        add=False,
    )


def figures(recipe: str, preference: dict[str, Any]) -> dict[str, Any]:
    """The figures of the asker's report: pairs, optimisation, and every measure of each player."""
    pairs, dpo, card = preference["pairs"], preference["dpo"], preference["scorecard"]
    return {
        "recipe": recipe,
        "pairs": pairs,
        "steps": dpo["steps"],
        "contexts": card["settings"]["contexts"],
        "titles": {name: entry["title"] for name, entry in card["measures"].items()},
        "players": {row["name"]: row["values"] for row in card["rows"]},
    }


if __name__ == "__main__":
    main()
