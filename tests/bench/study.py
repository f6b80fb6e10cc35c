"""What asking is worth to a chat model: the shipped study, timed, its result and plot kept.
Writes ``results/study_PROFILE.json`` and ``.png``.

    python tests/bench/study.py [laptop | desk] [--recipe parrot] [--ran TEXT]

It resumes where it was stopped, also days later: `HUBKIT_HOME` keeps what is done. Seconds are
those that each part took when it was made; where that is not the time of one run in one go, say how
it ran with `--ran`. The asker's learning curve, where the study has one, is drawn too
(``study_PROFILE_curve.png``)."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from figures import RESULTS, write

from hubkit.evaluation.utility import FOLLOW_UPS, table, verdicts
from hubkit.metrics import plots


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("profile", nargs="?", default="laptop", choices=["laptop", "desk"])
    options.add_argument("--recipe", default="parrot")
    options.add_argument("--ran", default="", help="how it ran, where not in one go")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="hubkit-study-") as folder:
        command = ["study", "utility", chosen.recipe, "--profile", chosen.profile, "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "hubkit", *command, "--out", folder],
            stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.returncode)
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = f"study_{chosen.profile}"
        shutil.copy(Path(folder) / "utility.png", RESULTS / f"{name}.png")
    about = (
        "What asking is worth: students trained on one teacher's answers, in arms that differ only "
        "in who asks, by their loss on its answers to real people."
    )
    figures = summary(json.loads(done.stdout), chosen.ran)
    if figures["learning_curve"]:
        plots.learning_curve(RESULTS / f"{name}_curve.png", figures["learning_curve"])
    write(name, about, f"make bench-study PROFILE={chosen.profile}", figures, add=False)
    print("\n".join(figures["verdicts"]))


def summary(output: dict[str, Any], ran: str = "") -> dict[str, Any]:
    """What of the command's output is kept: times (and how it `ran`), sizes, losses on follow-ups,
    the table, and what the differences allow one to say."""
    report, parts = output["results"], output["parts"]
    title, heads, rows = table(report)
    kinds: dict[str, float] = {}
    for part in parts:
        kind = part["part"].split(" of ")[0].partition(",")[0]  # of all rounds
        kinds[kind] = round(kinds.get(kind, 0.0) + (part["seconds"] or 0.0), 1)
    return {
        "recipe": output["recipe"],
        "profile": report["profile"],
        "teacher": report["teacher"],
        "student": report["student"],
        "seconds": round(sum(kinds.values()), 1),
        "seconds_of": kinds,
        "ran": ran,
        "sizes": {
            "dialogues_an_arm": report["balance"]["openings"],
            "loss_tokens_a_student": report["balance"]["loss_tokens"],
            "students": len(report["steps"]),
        },
        "base_nats_per_token_on_follow_ups": report["base"][FOLLOW_UPS],
        "on_follow_ups": {
            report["titles"].get(arm, arm): at[FOLLOW_UPS] for arm, at in report["arms"].items()
        },
        "differences": [e for e in report["differences"] if e["depth"] == FOLLOW_UPS],
        "learning_curve": report.get("learning_curve", []),
        "table": {"title": title, "heads": heads, "rows": rows},
        "verdicts": verdicts(report),
    }


if __name__ == "__main__":
    main()
