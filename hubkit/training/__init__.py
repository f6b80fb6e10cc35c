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
from typing import Any

from hubkit.chat_templates import Thinking
from hubkit.conversation import Seat
from hubkit.progress import Progress, silent
from hubkit.recipe import Preference, Training
from hubkit.training.config import quiet_environment
from hubkit.training.dpo import DPOTask
from hubkit.training.identity import revision_of
from hubkit.training.launch import Launch
from hubkit.training.launch import launch as launched
from hubkit.training.plan import TrainPlan, plan, write_shape
from hubkit.training.process import run_in_process
from hubkit.training.report import TrainReport
from hubkit.training.sft import SFTTask

__all__ = ["Launch", "TrainPlan", "TrainReport", "plan", "train", "train_dpo", "write_shape"]


def train(
    block: Training,
    data: Sequence[Path],
    base: Path,
    out: Path,
    *,
    base_repo_id: str,
    seed: int,
    work: Path,
    base_revision: str | None = None,
    launch: Launch | None = None,
    progress: Progress = silent,
) -> TrainReport:
    """Train `block` on `data` from the model in `base`; write a pushable model folder to `out`.

    `work` keeps checkpoints and survives a kill: the same call resumes where the last one stopped.
    `base_repo_id` (and `base_revision`; by default read off a snapshot folder's name) is what the
    adapter will name as its base. With `launch` the run is spread over processes through
    ``accelerate launch``; `block` holds for each of them.

    Raises `RecipeError` for keys or values that TRL or PEFT refuse, `SourceError` for unreadable
    data or base, `TrainingError` when there is nothing to learn from, too much would be dropped, or
    the loss is not a number."""
    quiet_environment()
    facts: Any = {
        "base_repo_id": base_repo_id,
        "seed": seed,
        "base_revision": base_revision or revision_of(base),
    }
    if launch is not None:
        return launched(
            launch, "train", block, data, [base, out], facts, work=work, progress=progress
        )
    return run_in_process(SFTTask(block, base), data, out, work, progress, **facts)


def train_dpo(
    block: Preference,
    data: Sequence[Path],
    base: Path,
    chat: Path,
    out: Path,
    *,
    base_repo_id: str,
    seed: int,
    work: Path,
    base_revision: str | None = None,
    system: str | None = None,
    template: str | None = None,
    thinking: Thinking = "off",
    seat: Seat = "assistant",
    launch: Launch | None = None,
    progress: Progress = silent,
) -> TrainReport:
    """Optimise the chat model in `chat` (an adapter of `base`, or a whole model) on `data`.

    Histories that do not fit into ``dpo.max_length`` lose their oldest exchanges; pairs whose last
    question and answers alone do not fit are dropped; both are counted. The rest is as in `train`.

    Args:
        block: What to do.
        data: Parquet files with ``prompt``, ``chosen`` and ``rejected``.
        base: The folder of the model below an adapter.
        chat: The folder of the chat model.
        out: Where the model folder is written.
        base_repo_id: What the adapter will name as its base.
        seed: Of the order of pairs and of all that is drawn.
        work: Keeps checkpoints and survives a kill.
        base_revision: The base's commit; by default read off a snapshot folder's name.
        system: The message under which the chat model was trained: prompts without one of their
            own get it.
        template: As in the chat model's own block.
        thinking: As in the chat model's own block.
        seat: Whose turns the pairs are; ``user`` for an asker, whose view they hold.
        launch: How the run is spread over processes.
        progress: Called with how far the run is."""
    quiet_environment()
    task = DPOTask(block, base, chat, system, template, thinking, seat)
    facts: Any = {
        "base_repo_id": base_repo_id,
        "seed": seed,
        "base_revision": base_revision or revision_of(task.start),
    }
    if launch is not None:
        call = {**facts, "system": system, "template": template, "thinking": thinking}
        call |= {"seat": seat}
        return launched(
            launch, "train_dpo", block, data, [base, chat, out], call, work=work, progress=progress
        )
    return run_in_process(task, data, out, work, progress, **facts)
