"""TRL's trainer, with the few things that a run needs to be trusted: complete checkpoints,
progress, finite losses.

Takes prepared rows and configuration objects; gives a ``Trainer`` that is ready to train or to
resume."""

from __future__ import annotations

import inspect
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.errors import TrainingError
from hubkit.files import write_whole
from hubkit.progress import Notice, Progress
from hubkit.training.checks import check_steps
from hubkit.untrusted import JsonObject, number_in, parse_json

if TYPE_CHECKING:
    from trl import SFTTrainer

COMPLETE = "hubkit-complete"
STOP = (
    "launch.stop"  # next to the work folder: all processes of a launched run end after a checkpoint
)


class NoTelemetry:
    """Before one of TRL's trainers: no telemetry, no cards, and a count of the tokens that went
    through the model.
    """

    tokens_trained = 0

    def _send_telemetry(self) -> None:
        """Nothing is sent anywhere."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Cards are written when a model is published."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """One micro-batch; counts its tokens, padding not included."""
        if isinstance(inputs, dict):  # else prompts, of which the trainer makes its own batch
            mask = inputs.get("attention_mask")
            self.tokens_trained += inputs["input_ids"].numel() if mask is None else int(mask.sum())
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]


def trainer_class() -> type[SFTTrainer]:
    """TRL's ``SFTTrainer``, `NoTelemetry`, with a head that skips loss-free positions on CPU."""
    import torch
    from torch.nn.functional import cross_entropy
    from trl import SFTTrainer

    class SeatTrainer(NoTelemetry, SFTTrainer):  # type: ignore[misc]
        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            """The same loss as TRL's, with logits only where a label is.

            TRL's own head skips the other positions on GPUs but scores all of them on a CPU, where
            most of an asker's positions carry none and the head is a third of a small model."""
            if return_outputs or not self.sparse_head:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            labels = inputs["labels"][:, 1:]
            positions = (labels != -100).any(dim=0).nonzero()[:, 0]
            model_inputs = {k: v for k, v in inputs.items() if k != "labels"}
            logits = model(**model_inputs, logits_to_keep=positions, use_cache=False).logits
            targets = labels[:, positions]
            total = cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum"
            )
            count = (targets != -100).sum() if num_items_in_batch is None else num_items_in_batch
            loss = total / torch.as_tensor(count).clamp(min=1)
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = loss * self.accelerator.num_processes
            return loss

        @property
        def sparse_head(self) -> bool:
            """Whether the CPU's own loss applies: plain likelihood, no other head asked for."""
            base = self.accelerator.unwrap_model(self.model)
            base = base.get_base_model() if hasattr(base, "get_base_model") else base
            return (
                self.args.device.type == "cpu"
                and self.args.loss_type == "nll"
                and not self.args.label_smoothing_factor
                and not self.aux_loss_enabled
                and "logits_to_keep" in inspect.signature(type(base).forward).parameters
            )

    return SeatTrainer


def watcher(progress: Progress, checkpoint_minutes: float, run: Run) -> Any:
    """Progress per step, checkpoints by the clock, a mark on each complete one, and a stop at a
    loss that is no number.

    The mark keeps how many seconds `run` has taken so far, so that a resumed run adds up.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        """One callback, so that the order of its duties is plain to see."""

        def __init__(self) -> None:
            self.saved_at = time.monotonic()
            self.note = "training"
            self.step, self.steps = 0, None
            self.stopping = False
            self.notes: list[str] = []

        def say(self, completed: float, total: float, note: str) -> None:
            """Show what a step is at."""
            progress(completed, total, f"steps · {note}")

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            findings = check_steps(args, state.max_steps)
            findings.require()
            self.notes = findings.notes
            self.step, self.steps = state.global_step, state.max_steps
            self.tell()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.step, self.steps = state.global_step, state.max_steps
            self.tell()
            due = (
                args.save_strategy == "no"
                and time.monotonic() - self.saved_at > checkpoint_minutes * 60
            )
            stop_requested = self.stopping or (Path(args.output_dir).parent / STOP).exists()
            due, self.stopping = _agreed((due, stop_requested))
            if state.global_step < state.max_steps and (due or self.stopping):
                control.should_save = True

        def tell(self) -> None:
            """How far it is."""
            note = self.note if isinstance(self.note, Notice) else f"steps · {self.note}"
            progress(self.step, self.steps, note)

        def stop(self) -> None:
            """Ask for a checkpoint after the running step, and for an end."""
            self.stopping = True
            self.note = Notice("saving after this step; press again to stop now")
            self.tell()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.saved_at = time.monotonic()
            if state.is_world_process_zero:
                mark = Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE
                write_whole(mark, json.dumps({"seconds": run.seconds}), durable=True)
            if self.stopping:
                raise KeyboardInterrupt

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any
        ) -> None:
            loss = (logs or {}).get("loss")
            if loss is None or self.stopping:
                return
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {state.global_step}; lower sft.learning_rate "
                    f"(now {args.learning_rate}) or set sft.max_grad_norm"
                )
            self.note = f"loss {loss:.3f}"

    return Watch()


@contextmanager
def stopping_gently(watch: Any) -> Iterator[None]:
    """Ctrl-C ends the running step, writes a checkpoint and then interrupts; a second one
    interrupts at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGINT, previous)
        watch.stop()

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _agreed(decision: tuple[bool, bool]) -> tuple[bool, bool]:
    """What the first process decides, in every process: clocks differ, and a checkpoint is
    everybody's work.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return decision
    box = [decision]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def last_complete(work: Path) -> Path | None:
    """The newest checkpoint below `work` that was written to its end, or None."""
    marks = (mark for mark in work.glob(f"checkpoint-*/{COMPLETE}") if _read(mark) is not None)
    checkpoints = [mark.parent for mark in marks]
    return max(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _read(mark: Path) -> JsonObject | None:
    """What the mark of a checkpoint says; None for one that a full disk or a power cut left cut
    short, as the checkpoint itself may be.
    """
    with suppress(OSError, ValueError):
        facts = parse_json(mark.read_text("utf-8"))
        return facts if isinstance(facts, dict) else None
    return None


class Run:
    """A run in its work folder: the checkpoint it resumes from, and how long it has taken in all
    its processes.
    """

    def __init__(self, work: Path) -> None:
        self._started = time.monotonic()
        self.checkpoint = last_complete(work)
        mark = _read(self.checkpoint / COMPLETE) if self.checkpoint else None
        self._before = number_in(mark or {}, "seconds")

    @property
    def seconds(self) -> float:
        """Seconds so far, what a killed process had taken at its last checkpoint included."""
        return self._before + time.monotonic() - self._started

    @property
    def resumed_from_step(self) -> int:
        """The step of the checkpoint, 0 for a run from the start."""
        return int(self.checkpoint.name.rpartition("-")[2]) if self.checkpoint else 0

    def train(self, trainer: Any, watch: Any) -> None:
        """Train to the end, from the checkpoint where there is one."""
        with stopping_gently(watch):
            trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
