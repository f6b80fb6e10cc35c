"""One process of a launched training run: ``python -m hubkit.training.worker JOB`` under
``accelerate launch``.

Takes a job file that `launch` wrote; gives progress lines and, where it fails, the error, in files
next to it."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from pydantic import TypeAdapter

from hubkit.errors import HubkitError
from hubkit.files import write_whole
from hubkit.progress import Progress
from hubkit.recipe import Preference, Training
from hubkit.training import Base, Policy, train, train_dpo
from hubkit.training.launch import LaunchedCall


def main(job: Path) -> int:
    """Train what `job` says; returns the process's exit status."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    call = TypeAdapter(LaunchedCall).validate_json(job.read_bytes())
    first = os.environ.get("RANK", "0") == "0"

    def progress(completed: float, total: float | None = None, note: str = "") -> None:
        if first:
            with (job.parent / "launch.progress").open("a", encoding="utf-8") as file:
                file.write(json.dumps([completed, total, note]) + "\n")

    try:
        _train(call, progress)
    except HubkitError as error:
        write_whole(job.parent / "launch.error", json.dumps([type(error).__name__, str(error)]))
        return 1
    except KeyboardInterrupt:
        error_record = [
            "RunInterruptedError",
            "training stopped after saving a checkpoint; the same command resumes from there",
        ]
        write_whole(job.parent / "launch.error", json.dumps(error_record))
        return 130
    return 0


def _train(call: LaunchedCall, progress: Progress) -> None:
    block, start = call.block, call.start
    if isinstance(block, Training) and isinstance(start, Base):
        train(block, call.data, start, call.out, seed=call.seed, work=call.work, progress=progress)
    elif isinstance(block, Preference) and isinstance(start, Policy):
        train_dpo(
            block, call.data, start, call.out, seed=call.seed, work=call.work, progress=progress
        )


def _end_with_parent() -> None:
    """Exit when standard input ends: the process that launched us is gone, and would start us
    again.
    """
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
