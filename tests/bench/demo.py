"""How long the whole loop takes here: fresh homes, real runs, medians. Writes
``results/demo.json``.

    python tests/bench/demo.py [--runs 3] [--recipes parrot realm] [--wheels FOLDER] [--keep FOLDER]

Each run starts with an empty ``HUBKIT_HOME``; wheels already downloaded are copied in (installation
is not counted). Seconds are those of the clock; CPU seconds, which a busy host changes less, are
those of every process of the first run: the command, its Hub and its engines."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import picture
from figures import RESULTS as FOLDER
from figures import spread, write

ROOT = Path(__file__).resolve().parents[2]
RESULTS = FOLDER / "demo.json"
_PR_SET_CHILD_SUBREAPER = 36  # Linux: orphans become this process's children


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--recipes", nargs="+", default=["parrot", "realm"])
    options.add_argument("--wheels", type=Path)
    options.add_argument("--keep", type=Path, help="where the homes stay, one a run")
    options.add_argument("--more", action="store_true", help="add to the runs that the file holds")
    chosen = options.parse_args()
    results: dict[str, Any] = (
        json.loads(RESULTS.read_text("utf-8"))["recipes"] if chosen.more else {}
    )
    for recipe in chosen.recipes:
        before = results.get(recipe, {}).get("runs", [])
        results[recipe] = summary(before + measure(recipe, chosen))
    about = (
        "The whole loop with the laptop profile, from an empty home; "
        "then once more, when all of it is done."
    )
    write("demo", about, "make bench-demo", {"recipes": results}, add=False)
    print(json.dumps({name: result["seconds"] for name, result in results.items()}))


def measure(recipe: str, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Run `recipe` as often as was chosen, each time from nothing and once more on top; seconds,
    stages and what came out.
    """
    made = []
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in range(chosen.runs):
        with new_home(chosen.keep, f"{recipe}-{number}") as home:
            if chosen.wheels:
                shutil.copytree(chosen.wheels, Path(home) / "cache" / "wheels")
            before = cpu_seconds()
            seconds = watched(recipe, home)
            between = cpu_seconds()
            outcome = told(recipe, home)
            second_run = cpu_seconds() - between
            stop_hub(home)
            cpu_s = round(cpu_seconds() - before - second_run, 1)
            made.append({"seconds": seconds, "cpu_s": cpu_s, **outcome})
    return made


def new_home(keep: Path | None, name: str) -> AbstractContextManager[str]:
    """An empty folder, `name` in `keep` where one is given; else it is deleted in the end."""
    if keep is None:
        return tempfile.TemporaryDirectory(prefix="hubkit-demo-")
    (keep / name).mkdir(parents=True)
    return nullcontext(str(keep / name))


def stop_hub(home: str) -> None:
    """End the Hub of `home`, and wait for every process that was left."""
    subprocess.run([sys.executable, "-m", "hubkit", "hub", "stop"], env=env(home), check=False)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def cpu_seconds() -> float:
    """CPU seconds of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The spread of `runs`, what the last one made, and the runs."""
    each = {
        key: spread((run[key] for run in runs), 1)
        for key in ("seconds", "cpu_s", "again_s", "dialogues_kept")
        if all(key in run for run in runs)
    }
    return {**each, "held_out": runs[-1]["held_out"], "runs": runs}


def watched(recipe: str, home: str) -> float:
    """The run as a person sees it, its last screen kept as ``results/demo.svg``; seconds."""
    os.environ.update(env(home))
    started = time.monotonic()
    screen, status = picture.record(
        [sys.executable, "-m", "hubkit", "run", recipe, "--profile", "laptop"]
    )
    seconds = round(time.monotonic() - started, 1)
    if status:
        sys.exit("\n".join(line.plain for line in picture.drawn(screen)))
    RESULTS.with_suffix(".svg").write_text(
        picture.svg(f"make demo RECIPE={recipe}", screen), "utf-8"
    )
    return seconds


def told(recipe: str, home: str) -> dict[str, Any]:
    """The second run, which finds everything done and tells it as JSON: its seconds, and what the
    first one made.
    """
    started = time.monotonic()
    command = [sys.executable, "-m", "hubkit", "run", recipe, "--profile", "laptop", "--json"]
    done = subprocess.run(command, env=env(home), capture_output=True, text=True, check=False)
    seconds = round(time.monotonic() - started, 1)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}
    return {
        "again_s": seconds,
        "stage_seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "dialogues_kept": stages["curate"]["report"]["kept"],
        "human_turns": stages["curate"]["report"]["human_turns"],
        "held_out": {seat: against(stages["eval"]["report"][seat]) for seat in ("asker", "chat")},
    }


def against(seat: dict[str, Any]) -> dict[str, Any]:
    losses = {arm: values["loss"] for arm, values in seat["arms"].items()}
    return {"loss_per_token": losses, "trained_less_base": seat["against"]["base"]}


def env(home: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUBKIT_"))}
    return {**clean, "HUBKIT_HOME": home, "HF_HOME": f"{home}/hf", "PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    main()
