"""One training run over several processes, through ``accelerate launch`` and the configurations that ship.

Takes the arguments of `train` and a strategy; gives the same folder and report. The processes are children: they tell
how far they are through a file, and what stopped them comes back as the error that it was.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import hubkit
from hubkit import errors
from hubkit.errors import MissingDependencyError, RecipeError, TrainingError
from hubkit.progress import Progress
from hubkit.recipe import Training
from hubkit.train.report import TrainReport

Strategy = Literal["ddp", "fsdp2", "deepspeed"]
CONFIGS = resources.files("hubkit") / "recipes" / "accelerate"
_POLL_S = 0.3


def launch(
    strategy: Strategy,
    block: Training,
    data: Sequence[Path],
    base: Path,
    out: Path,
    more: dict[str, Any],
    *,
    processes: int | None,
    work: Path,
    progress: Progress,
) -> TrainReport:
    """Run `train` in `processes` processes (by default one per GPU), with its other arguments in `more`.

    Raises `RecipeError` where the strategy cannot run here, `TrainingError` (with the end of the log) when a process
    dies without a word.
    """
    import torch

    gpus = torch.cuda.device_count()
    processes = processes or gpus
    refuse(strategy, block, processes, gpus)
    work.mkdir(parents=True, exist_ok=True)
    call = {
        "block": block.model_dump(mode="json"),
        "data": [str(path.resolve()) for path in data],
        "base": str(base.resolve()),
        "out": str(out.resolve()),
        "work": str(work.resolve()),
        **more,
    }
    job = work / "launch.json"
    job.write_text(json.dumps(call), "utf-8")
    for name in ("launch.progress", "launch.error"):
        (work / name).unlink(missing_ok=True)
    with (work / "launch.log").open("wb") as log:
        child = subprocess.Popen(
            command(strategy, processes, job, gpus), env=_environment(), stdout=log, stderr=log, start_new_session=True
        )
        _watch(child, work, progress)
    if child.returncode:
        raise _failure(work)
    return TrainReport(**json.loads((out / "training_report.json").read_text("utf-8")))


def refuse(strategy: str, block: Training, processes: int, gpus: int) -> None:
    """Raise `RecipeError` or `MissingDependencyError` for what is known not to run."""
    if strategy not in Strategy.__args__:  # type: ignore[attr-defined]
        raise RecipeError(f"--launch {strategy} is none of ddp, fsdp2, deepspeed")
    if processes < 1:
        raise RecipeError("--launch needs a number of processes on a machine without GPUs, for example --processes 2")
    if not gpus and strategy != "ddp":
        raise RecipeError(f"--launch {strategy} shards over GPUs, and this machine has none; use ddp")
    if gpus and processes > gpus:
        raise RecipeError(f"--processes {processes} is more than the {gpus} GPUs of this machine")
    if strategy != "ddp" and block.merge_adapter:
        raise RecipeError(f"merge_adapter cannot merge sharded weights; train under {strategy} without it")
    if strategy == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise MissingDependencyError("--launch deepspeed needs the package deepspeed: pip install deepspeed")


def command(strategy: str, processes: int, job: Path, gpus: int) -> list[str]:
    """The ``accelerate launch`` command line of a job. Without GPUs the processes meet over gloo."""
    with resources.as_file(CONFIGS / f"{strategy}.yaml") as config:
        path = config
    if not gpus:
        text = path.read_text("utf-8").replace("use_cpu: false", "use_cpu: true")
        path = job.with_name("accelerate.yaml")
        path.write_text(text, "utf-8")
    options = ["--config_file", str(path), "--num_processes", str(processes), "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "hubkit.train.worker", str(job)]


def _environment() -> dict[str, str]:
    """Ours, with this very hubkit importable in the children, and its threads shared out among them."""
    root = str(Path(hubkit.__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _watch(child: subprocess.Popen[bytes], work: Path, progress: Progress) -> None:
    """Hand on what the first process says until all are gone; Ctrl-C lets them write a checkpoint first."""
    said = 0
    try:
        while child.poll() is None:
            time.sleep(_POLL_S)
            said = _hand_on(work / "launch.progress", said, progress)
    except BaseException:
        os.killpg(child.pid, signal.SIGINT)
        child.wait()
        raise
    _hand_on(work / "launch.progress", said, progress)


def _hand_on(path: Path, said: int, progress: Progress) -> int:
    if not path.exists():
        return said
    text = path.read_bytes()[said:]
    whole = text.rpartition(b"\n")[0]
    for line in whole.splitlines():
        done, total, note = json.loads(line)
        progress(done, total, note)
    return said + len(whole) + (1 if whole else 0)


def _failure(work: Path) -> Exception:
    """The error that a process left behind, as its own class; else the end of the log."""
    left = work / "launch.error"
    if left.exists():
        kind, message = json.loads(left.read_text("utf-8"))
        found = getattr(errors, kind, TrainingError)
        return found(message) if issubclass(found, errors.HubkitError) else TrainingError(message)
    tail = (work / "launch.log").read_text("utf-8", "replace").strip().splitlines()[-8:]
    return TrainingError(f"a training process died; the end of {work / 'launch.log'}: " + " | ".join(tail))
