"""`hubkit.training.worker` on a machine without GPUs, with accelerate told that processors are
devices to shard over.

Accelerate shards over accelerators only, and quietly copies the model to every processor instead.
What is replaced is its look at the hardware, nothing above it: configuration, FSDP2 itself,
gathering and saving are the real ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import state
from accelerate.utils import DistributedType


def prepare_backend(self: Any, *args: Any, **options: Any) -> tuple[str, DistributedType]:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return "gloo", DistributedType.MULTI_GPU


def set_device(self: Any) -> None:
    self.device = torch.device("cpu")


def say_what_is_sharded(trainer: Any, *args: Any, **options: Any) -> Any:
    kinds = {type(parameter).__name__ for parameter in trainer.model.parameters()}
    print("SHARDED", trainer.accelerator.distributed_type, sorted(kinds), flush=True)
    return _save(trainer, *args, **options)


if __name__ == "__main__":
    state.PartialState._prepare_backend = prepare_backend  # type: ignore[method-assign]
    state.PartialState.set_device = set_device
    from hubkit.training import process
    from hubkit.training.worker import main

    _save = process.save_trained
    process.save_trained = say_what_is_sharded
    sys.exit(main(Path(sys.argv[1])))
