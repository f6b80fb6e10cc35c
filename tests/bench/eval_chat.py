"""What evaluation takes on this machine, and what it says of a finished demo. Writes
``results/eval.json``.

    HUBKIT_HOME=… python tests/bench/eval_chat.py [--only chat|checks|asker] [--chat parrot-chat]
    [--asker parrot-ask]

The home is that of a finished ``make demo``. Chat model and base answer the whole offline set
before the embedded engine's own judge, the base also the one that code checks, and the asker is
put beside its base and people; each from nothing, in a folder that is removed, and written down as
soon as it is measured."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from figures import write

AS_THE_LAPTOP = (
    "--conversations",
    "32",
    "--max-tokens",
    "48",
)  # the command's own defaults are for larger machines
ABOUT = (
    "A finished demo's chat model and base before a judge of their own size, "
    "and its asker beside people."
)
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--chat", default="parrot-chat")
    options.add_argument("--asker", default="parrot-ask")
    options.add_argument("--base", default=BASE)
    options.add_argument("--only", choices=["chat", "checks", "asker"])
    chosen = options.parse_args()
    if chosen.only in (None, "checks"):
        with tempfile.TemporaryDirectory() as folder:
            enter(
                "checks",
                checked(
                    *ran("eval", "chat", chosen.base, "-b", "offline-checks", "--log-dir", folder)
                ),
            )
    if chosen.only in (None, "chat"):
        with tempfile.TemporaryDirectory() as folder:
            enter(
                "chat",
                judged(
                    *ran("eval", "chat", chosen.chat, "--against", chosen.base, "--log-dir", folder)
                ),
            )
    if chosen.only in (None, "asker"):
        enter(
            "asker",
            played(*ran("eval", "asker", chosen.asker, "--against", chosen.base, *AS_THE_LAPTOP)),
        )


def enter(half: str, figures: dict[str, Any]) -> None:
    """Write one part down, beside the others."""
    name, about, command = "eval", ABOUT, "python tests/bench/eval_chat.py"
    if half == "checks":  # needs no finished demo, so it may be of another day and machine
        name, command = "eval_checks", f"{command} --only checks"
        about = "A base before the benchmark whose answers code checks."
    write(name, about, command, {half: figures}, "inspect-ai")
    print(f"{half}: {figures['seconds']} s")


def ran(*args: str) -> tuple[float, dict[str, Any]]:
    """Seconds that ``hubkit …`` took, and what it said."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "hubkit", *args, "--json"], stdout=subprocess.PIPE, check=True
    )
    return round(time.monotonic() - started, 1), json.loads(done.stdout)


def judged(seconds: float, result: dict[str, Any]) -> dict[str, Any]:
    """The figures of a judged run."""
    return {
        "seconds": seconds,
        "benchmark": result["benchmark"]["name"],
        "questions": result["benchmark"]["questions"],
        "turns": result["benchmark"]["turns"],
        "judge": result["judge"]["name"],
        "models": {
            name: {
                "mean": table["mean"],
                "judgments": table["judgments"],
                "missing": table["missing"],
            }
            for name, table in result["scores"].items()
        },
        "difference": result["difference"],
        "judging": result["judging"],
    }


def checked(seconds: float, result: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run that code scored."""
    return {
        "seconds": seconds,
        "benchmark": result["benchmark"]["name"],
        "questions": result["benchmark"]["questions"],
        "turns": result["benchmark"]["turns"],
        "models": {name: {"rate": table["rate"]} for name, table in result["scores"].items()},
    }


def played(seconds: float, card: dict[str, Any]) -> dict[str, Any]:
    """The figures of a scorecard, by player."""
    return {
        "seconds": seconds,
        "contexts": card["settings"]["contexts"],
        "titles": {name: entry["title"] for name, entry in card["measures"].items()},
        "players": {row["name"]: row["values"] for row in card["rows"]},
    }


if __name__ == "__main__":
    main()
