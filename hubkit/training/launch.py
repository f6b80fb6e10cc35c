"""One training run over several processes, through ``accelerate launch`` and the configurations
that ship.

Takes the arguments of `train` or `train_dpo` and a `Launch`; gives the same folder and report. The
processes are children: they tell how far they are through a file, what stopped them comes back as
the error that it was, and they end when this process does, even on ``kill -9``. On several nodes of
a Slurm allocation they are started through ``srun``; the work folder must then be on a file system
that all nodes share."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

import hubkit
from hubkit import errors, settings
from hubkit.errors import MissingDependencyError, RecipeError, TrainingError
from hubkit.progress import Notice, Progress
from hubkit.recipe import Preference, Training
from hubkit.training.config import bf16_is_faster
from hubkit.training.dpo import Policy
from hubkit.training.identity import Base
from hubkit.training.report import TrainReport
from hubkit.training.trainer import STOP

Strategy = Literal["ddp", "fsdp2", "deepspeed"]
CONFIGS = resources.files("hubkit") / "recipes" / "accelerate"
_POLL_S = 0.3
_STOP_GRACE_S = 600.0  # for the running step and a checkpoint of everything


@dataclass(frozen=True, slots=True)
class Launch:
    """How a run is spread: `processes` on each of `nodes` (None: one per GPU)."""

    strategy: Strategy
    processes: int | None = None
    nodes: int = 1

    def per_node(self) -> int:
        """Processes on each node: as asked for, or this machine's GPUs."""
        if self.processes is not None:
            return self.processes
        import torch

        return torch.cuda.device_count()

    @property
    def shards(self) -> bool:
        """Whether weights, gradients and optimizer states are spread over the processes."""
        return self.strategy != "ddp"


@dataclass(frozen=True)
class LaunchedCall:
    """A call of `train` or, with a policy, of `train_dpo`, as the processes read it from a file."""

    block: Training | Preference
    data: list[Path]
    start: Base | Policy
    out: Path
    work: Path
    seed: int


def launch(
    how: Launch,
    block: Training | Preference,
    data: Sequence[Path],
    start: Base | Policy,
    out: Path,
    *,
    seed: int,
    work: Path,
    progress: Progress,
) -> TrainReport:
    """Call `train` (or, with a policy, `train_dpo`) as `how` says.

    Raises `RecipeError` where the strategy cannot run here, `TrainingError` (with the end of the
    log) when a process dies without a word, `RunInterruptedError` when they were stopped from
    outside, after a checkpoint."""
    import torch

    gpus = torch.cuda.device_count()
    refuse(how, block, gpus)
    work.mkdir(parents=True, exist_ok=True)
    call = LaunchedCall(
        block, [path.resolve() for path in data], _resolved(start), out.resolve(), work.resolve(),
        seed,
    )  # fmt: skip
    job = work / "launch.json"
    job.write_bytes(TypeAdapter(LaunchedCall).dump_json(call))
    for name in ("launch.progress", "launch.error", STOP):
        (work / name).unlink(missing_ok=True)
    with (work / "launch.log").open("wb") as log:
        child = subprocess.Popen(
            command(how, job, gpus),
            env=_environment(),
            stdin=subprocess.PIPE,  # open for as long as this process lives; at its end they exit
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        _watch(child, work, progress)
    if child.returncode:
        raise _failure(work)
    return TrainReport(**json.loads((out / "training_report.json").read_text("utf-8")))


def _resolved(start: Base | Policy) -> Base | Policy:
    if isinstance(start, Base):
        return replace(start, folder=start.folder.resolve())
    base = replace(start.base, folder=start.base.folder.resolve())
    return replace(start, base=base, folder=start.folder.resolve())


def refuse(how: Launch, block: Training | Preference, gpus: int) -> None:
    """Raise `RecipeError` or `MissingDependencyError` for what is known not to run on a machine
    with `gpus`.
    """
    strategy, processes = how.strategy, how.per_node()
    if strategy not in Strategy.__args__:  # type: ignore[attr-defined]
        raise RecipeError(f"--launch {strategy} is none of ddp, fsdp2, deepspeed")
    if processes < 1:
        raise RecipeError(
            "--launch needs a number of processes on a machine without GPUs, for example "
            "--processes 2"
        )
    if (
        not gpus and strategy != "ddp"
    ):  # accelerate would not say so, and copy the model to every process
        raise RecipeError(
            f"--launch {strategy} shards over GPUs, and this machine has none; use ddp"
        )
    if gpus and processes > gpus:
        raise RecipeError(f"--processes {processes} is more than the {gpus} GPUs of this machine")
    if strategy != "ddp" and block.merge_adapter:
        raise RecipeError(
            f"merge_adapter cannot merge sharded weights; train under {strategy} without it"
        )
    if how.nodes > int(os.environ.get("SLURM_JOB_NUM_NODES", "1")):
        raise RecipeError(
            f"--nodes {how.nodes} runs in a Slurm allocation of as many nodes; write a job for one "
            "with --slurm FILE, and submit that with sbatch"
        )
    if strategy == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise MissingDependencyError(
            "--launch deepspeed needs the package deepspeed: pip install deepspeed"
        )


def command(how: Launch, job: Path, gpus: int) -> list[str]:
    """The ``accelerate launch`` command line of a job. Without GPUs the processes meet over
    gloo.
    """
    with resources.as_file(CONFIGS / f"{how.strategy}.yaml") as config:
        path = config
    if not gpus:
        text = path.read_text("utf-8").replace("use_cpu: false", "use_cpu: true")
        path = job.with_name("accelerate.yaml")
        path.write_text(text, "utf-8")
    options = ["--config_file", str(path), "--num_processes", str(how.per_node() * how.nodes)]
    worker = ["-m", "hubkit.training.worker", str(job)]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    if how.nodes == 1:
        return [*accelerate, *options, "--main_process_port", "0", *worker]
    options += [
        "--num_machines",
        str(how.nodes),
        "--main_process_ip",
        socket.gethostname(),
        "--same_network",
    ]
    options += ["--main_process_port", str(_free_port())]
    # Each node's rank is known only there, so a shell on each node puts it in.
    ranked = (
        'python=$1; shift; exec "$python" -m accelerate.commands.launch '
        '--machine_rank "$SLURM_NODEID" "$@"'
    )
    srun = [
        "srun",
        f"--nodes={how.nodes}",
        f"--ntasks={how.nodes}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
    ]
    return [*srun, "sh", "-c", ranked, "sh", sys.executable, *options, *worker]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _environment() -> dict[str, str]:
    """Ours, with this very hubkit importable in the children, and its threads shared out among
    them.
    """
    root = str(Path(hubkit.__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    measured = {settings.BF16: str(int(bf16_is_faster()))}
    joined = os.pathsep.join(paths)
    return {"OMP_NUM_THREADS": "1", **os.environ, **measured, "PYTHONPATH": joined}


def _watch(child: subprocess.Popen[bytes], work: Path, progress: Progress) -> None:
    """Hand on what the first process says until all are gone; Ctrl-C lets them write a checkpoint
    first.
    """
    position = 0
    try:
        while child.poll() is None:
            time.sleep(_POLL_S)
            position = _hand_on(work / "launch.progress", position, progress)
    except BaseException:
        # Told by a file, not by a signal: the launcher would pass a signal on a second time, which
        # means "at once".
        (work / STOP).touch()
        stopping = "saving after this step; press again to stop now"
        progress(0, None, Notice(stopping))
        try:
            child.wait(_STOP_GRACE_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        raise
    _hand_on(work / "launch.progress", position, progress)


def _hand_on(path: Path, position: int, progress: Progress) -> int:
    if not path.exists():
        return position
    text = path.read_bytes()[position:]
    whole = text.rpartition(b"\n")[0]
    for line in whole.splitlines():
        steps, total, note = json.loads(line)
        progress(steps, total, note)
    return position + len(whole) + (1 if whole else 0)


def _failure(work: Path) -> Exception:
    """The error that a process wrote down, as its own class; else the end of the log."""
    error_file = work / "launch.error"
    if error_file.exists():
        kind, message = json.loads(error_file.read_text("utf-8"))
        error_class = getattr(errors, kind, TrainingError)
        return (
            error_class(message)
            if issubclass(error_class, errors.HubkitError)
            else TrainingError(message)
        )
    tail = (work / "launch.log").read_text("utf-8", "replace").strip().splitlines()[-8:]
    return TrainingError(
        f"a training process died; the end of {work / 'launch.log'}: " + " | ".join(tail)
    )
