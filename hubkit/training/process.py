"""One process's part of a run, whatever is learned: known if it is done, resumed if it was killed,
reported, saved.

Takes a `Task` (what is learned, and from what); gives a model folder and its report. Under a
launcher each process does this, and the first one writes."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hubkit.chat_templates import SeatTemplates
from hubkit.conversation import Seat
from hubkit.progress import Progress
from hubkit.recipe import Preference, Reinforce, Training
from hubkit.training.config import quiet_environment
from hubkit.training.identity import Base, fingerprint_of, finished, revision_of
from hubkit.training.report import TrainReport, outcome, versions
from hubkit.training.save import save_trained
from hubkit.training.trainer import Run, watcher
from hubkit.untrusted import JsonObject


@dataclass(frozen=True)
class Rows:
    """Prepared rows as the task's trainer takes them, what became of them, and tokens per epoch (in
    all, with loss).
    """

    ready: Any
    stats: JsonObject
    tokens: int
    loss_tokens: int


class Task(Protocol):
    """What is learned, and how its rows and its trainer are made."""

    @property
    def block(self) -> Training | Preference | Reinforce:
        """What the recipe says."""
        ...

    @property
    def start(self) -> Path:
        """The folder of the model below."""
        ...

    @property
    def seat(self) -> Seat:
        """Whose turns carry loss."""
        ...

    @property
    def system(self) -> str | None:
        """The seat's system message."""
        ...

    @property
    def settings(self) -> JsonObject:
        """What goes to TRL."""
        ...

    @property
    def identity(self) -> str:
        """What tells this task from others with the same block, data and base."""
        ...

    def configure(self, work: Path, *, seed: int) -> tuple[Any, list[str]]:
        """TRL's configuration object, and a sentence per value the machine changed."""
        ...

    def rows(self, data: Sequence[Path], config: Any, work: Path, progress: Progress) -> Rows:
        """Rows that are ready to train on."""
        ...

    def trainer(self, config: Any, rows: Rows, watch: Any) -> Any:
        """TRL's trainer over `rows`, its tokenizer under ``processing_class``."""
        ...

    @property
    def template(self) -> str:
        """The chat template that rows were rendered with."""
        ...

    @property
    def templates(self) -> SeatTemplates:
        """How the base prints conversations."""
        ...


def run_in_process(
    task: Task,
    data: Sequence[Path],
    base: Base,
    out: Path,
    *,
    seed: int,
    work: Path,
    progress: Progress,
) -> TrainReport:
    """Carry out `task` on `data` in this process; under a launcher, this process's part of it."""
    quiet_environment()
    progress(0, None, "starting the training libraries")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    # the template is part of the base: another version of how it is derived is another training
    printed = hashlib.sha256(task.template.encode()).hexdigest()
    task_identity = f"{task.identity}{processes} processes {printed}"
    fingerprint = fingerprint_of(
        task.block, data, task.start, base.repo_id, seed, task=task_identity
    )
    if (report := finished(out, fingerprint)) is not None:
        return report
    work = work / fingerprint[:16]
    run = Run(work)
    config, notes = task.configure(work, seed=seed)
    rows = task.rows(data, config, work, progress)
    progress(0, None, "loading the model")
    watch = watcher(progress, task.block.checkpoint_minutes, run)
    trainer = task.trainer(config, rows, watch)
    run.train(trainer, watch)
    progress(0, None, "saving the model")
    report = TrainReport(
        base=base.repo_id,
        base_revision=base.revision or revision_of(task.start),
        seat=task.seat,
        rows=rows.stats,
        tokens=rows.tokens,
        loss_tokens=rows.loss_tokens,
        seconds=run.seconds,
        resumed_from_step=run.resumed_from_step,
        processes=processes,
        seed=seed,
        template_sha256=printed,
        system=task.system,
        notes=[*notes, *watch.notes],
        sft=task.settings,
        lora=task.block.lora,
        fingerprint=fingerprint,
        versions=versions(),
        **outcome(trainer),
    )
    save_trained(
        trainer,
        trainer.processing_class,
        task.templates,
        task.start,
        out,
        report,
        merge=task.block.merge_adapter,
    )
    if config.process_index == 0:
        shutil.rmtree(work, ignore_errors=True)
    return report
