"""Fine-tuning of either seat, on TRL: conversations (or preference pairs) in, a model folder that
can be pushed out.

Takes a recipe's `Training` block, parquet files with ``messages`` as recorded, and a base model's
folder; gives a folder with adapter or weights, tokenizer, served chat template,
``training_report.json`` and ``loss.png``. Loss falls on the seat's own turns and their end tokens,
on nothing else. `train_dpo` takes a `Preference` block and pairs instead and continues from a chat
model. A run that was killed resumes from its last complete checkpoint when it is called again with
the same inputs. One process or many, both are carried out, planned and launched by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hubkit.progress import Progress, silent
from hubkit.recipe import Preference, Training
from hubkit.training.config import quiet_environment, require_settings
from hubkit.training.dpo import DPOTask, Policy
from hubkit.training.identity import Base
from hubkit.training.launch import Launch
from hubkit.training.launch import launch as launched
from hubkit.training.plan import TrainPlan, plan, write_shape
from hubkit.training.process import run_in_process
from hubkit.training.report import TrainReport
from hubkit.training.sft import SFTTask

__all__ = [
    "Base",
    "Launch",
    "Policy",
    "TrainPlan",
    "TrainReport",
    "plan",
    "require_settings",
    "train",
    "train_dpo",
    "write_shape",
]


def train(
    block: Training,
    data: Sequence[Path],
    base: Base,
    out: Path,
    *,
    seed: int,
    work: Path,
    launch: Launch | None = None,
    progress: Progress = silent,
) -> TrainReport:
    """Train `block` on `data` from `base`; write a pushable model folder to `out`.

    `work` keeps checkpoints and survives a kill: the same call resumes where the last one stopped.
    With `launch` the run is spread over processes through ``accelerate launch``; `block` holds for
    each of them.

    Raises `RecipeError` for keys or values that TRL or PEFT refuse, `SourceError` for unreadable
    data or base, `TrainingError` when there is nothing to learn from, too much would be dropped, or
    the loss is not a number."""
    quiet_environment()
    if launch is not None:
        return launched(launch, block, data, base, out, seed=seed, work=work, progress=progress)
    task = SFTTask(block, base.folder)
    return run_in_process(task, data, base, out, seed=seed, work=work, progress=progress)


def train_dpo(
    block: Preference,
    data: Sequence[Path],
    policy: Policy,
    out: Path,
    *,
    seed: int,
    work: Path,
    launch: Launch | None = None,
    progress: Progress = silent,
) -> TrainReport:
    """Optimise the chat model `policy` on `data`.

    Histories that do not fit into ``dpo.max_length`` lose their oldest exchanges; pairs whose last
    question and answers alone do not fit are dropped; both are counted. The rest is as in `train`.

    Args:
        block: What to do.
        data: Parquet files with ``prompt``, ``chosen`` and ``rejected``.
        policy: The chat model, and how its conversations are printed.
        out: Where the model folder is written.
        seed: Of the order of pairs and of all that is drawn.
        work: Keeps checkpoints and survives a kill.
        launch: How the run is spread over processes.
        progress: Called with how far the run is."""
    quiet_environment()
    if launch is not None:
        return launched(launch, block, data, policy, out, seed=seed, work=work, progress=progress)
    task = DPOTask(
        block,
        policy.base.folder,
        policy.folder,
        policy.system,
        policy.template,
        policy.thinking,
        policy.seat,
    )
    return run_in_process(task, data, policy.base, out, seed=seed, work=work, progress=progress)
