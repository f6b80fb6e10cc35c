"""One process of a launched training run: ``python -m hubkit.training.worker JOB`` under
``accelerate launch``.

Takes a job file that `launch` wrote; gives progress lines and, where it fails, the error, in files
next to it."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hubkit.errors import HubkitError
from hubkit.recipe import Preference, Training
from hubkit.training import train, train_dpo

_RUNS: dict[str, tuple[type, Callable[..., Any]]] = {
    "train": (Training, train),
    "train_dpo": (Preference, train_dpo),
}


def main(job: Path) -> int:
    """Train what `job` says; returns the process's exit status."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    call = json.loads(job.read_text("utf-8"))
    first = os.environ.get("RANK", "0") == "0"

    def progress(steps: float, total: float | None = None, note: str = "") -> None:
        if first:
            with (job.parent / "launch.progress").open("a", encoding="utf-8") as file:
                file.write(json.dumps([steps, total, note]) + "\n")

    try:
        block, run = _RUNS[call["run"]]
        run(
            block(**call["block"]),
            [Path(path) for path in call["data"]],
            *map(Path, call["folders"]),
            work=Path(call["work"]),
            progress=progress,
            **call["more"],
        )
    except HubkitError as error:
        (job.parent / "launch.error").write_text(
            json.dumps([type(error).__name__, str(error)]), "utf-8"
        )
        return 1
    except KeyboardInterrupt:
        error_record = [
            "RunInterruptedError",
            "training stopped after saving a checkpoint; the same command resumes from there",
        ]
        (job.parent / "launch.error").write_text(json.dumps(error_record), "utf-8")
        return 130
    return 0


def _end_with_parent() -> None:
    """Exit when standard input ends: the process that launched us is gone, and would start us
    again.
    """
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
