"""A trainer over no weights and one row: what TRL, PEFT and transformers would refuse only when a
run has loaded its model, told before that in their own words, with the recipe's key.

Takes a block, its configuration object and the base on torch's meta device; gives `Findings`."""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubkit.chat_templates import SeatTemplates
from hubkit.errors import HubkitError, RecipeError
from hubkit.recipe import Preference, Reinforce, Training
from hubkit.training.checks import Findings, check_all, meta_model
from hubkit.training.config import lora_config, make_scheduler, sft_config
from hubkit.training.trainer import trainer_class

_REFUSALS = (
    ImportError, ValueError, TypeError, RuntimeError, AttributeError, KeyError, AssertionError,
)  # fmt: skip
_KEYS = {"SFTConfig": "sft", "DPOConfig": "dpo", "GRPOConfig": "grpo"}
_ROW = {"input_ids": [[0, 1, 2]], "labels": [[0, 1, 2]]}


def check_training(
    block: Training | Preference | Reinforce,
    base: Path,
    config: Any,
    *,
    options: Mapping[str, Any],
    templates: SeatTemplates | None = None,
    tokenizer: Any = None,
    model: Any = None,
    here: bool = True,
) -> Findings:
    """Every check that needs no data, in one.

    Args:
        block: The recipe's.
        base: The folder of the model to train.
        config: TRL's.
        options: Its ``model_init_kwargs``.
        templates: How the base prints conversations; None: not looked at.
        tokenizer: The base's, with a padding token, for a trainer to be made of a `Training` block;
            None: none is made.
        model: The base on the meta device, where there is one already.
        here: Whether this machine trains: elsewhere its packages and its GPU do not matter."""
    model = meta_model(base) if model is None else model
    findings = check_all(block, base, options=options, templates=templates, model=model, here=here)
    if here and not findings.refusals:
        findings.add(check_settings(config, model))
    if here and not findings.refusals and tokenizer is not None and isinstance(block, Training):
        findings.add(check_trainer(block, config, model, tokenizer))
    return findings


def check_settings(config: Any, model: Any) -> Findings:
    """Whether the packages and the device are there that keys of TRL's `config` need; `model` is
    the base on the meta device."""
    findings = Findings()
    checks: dict[str, Callable[[], Any]] = {
        "use_liger_kernel": lambda: _require_liger(config, model),
        "optim": lambda: _require_optimizer(config, model),
        "lr_scheduler_type": lambda: make_scheduler(config),
        "report_to": lambda: _require_reporters(config),
    }
    key = _KEYS[type(config).__name__]
    for name, check in checks.items():
        try:
            check()
        except _REFUSALS as error:
            value = getattr(config, name)
            findings.refusals.append(
                _sentence(f"{key}.{name}", getattr(value, "value", value), error)
            )
    return findings


def check_trainer(block: Training, config: Any, model: Any, tokenizer: Any) -> Findings:
    """Whether TRL makes a trainer of the block: built over `model` and one row, and let go.

    Where it does not, keys of ``sft`` and ``lora`` are left out one by one to find which is to
    blame.

    Args:
        block: The recipe's.
        config: What `sft_config` makes of it.
        model: The base on the meta device.
        tokenizer: The base's, with a padding token."""
    findings = Findings()
    with _random_states_kept():
        error = _refused(block, config, model, tokenizer)
        if error is None:
            return findings
        for part in ("sft", "lora"):
            values = getattr(block, part) or {}
            for name, value in values.items():
                other_values = {key: v for key, v in values.items() if key != name}
                without = block.model_copy(update={part: other_values})
                if _refused(without, _config_of(without, config), model, tokenizer) is None:
                    findings.refusals.append(_sentence(f"{part}.{name}", value, error))
                    return findings
    findings.refusals.append(f"TRL makes no trainer of sft and lora: {_one_line(error)}")
    return findings


def _config_of(block: Training, config: Any) -> Any:
    """`block.sft` as `config` was made of another block's, or None where it makes no configuration
    object."""
    try:
        return sft_config(block, Path(config.output_dir), seed=config.seed)[0]
    except HubkitError:
        return None


def _refused(block: Training, config: Any, model: Any, tokenizer: Any) -> Exception | None:
    """What stops the trainer of `block` from being made; None where nothing does."""
    from datasets import Dataset

    if config is None:
        return RecipeError("sft makes no configuration object")
    if config.fsdp or config.deepspeed:
        return None  # made by the launcher's processes alone
    config = copy.copy(config)
    # the meta device's tensors cannot be moved to another
    config.__class__ = type("_Trial", (type(config),), {"place_model_on_device": False})
    if config.dataset_kwargs is None and not config.packing:
        config.dataset_kwargs = {"skip_prepare_dataset": True}
    rows = Dataset.from_dict(_ROW)
    model_copy = copy.deepcopy(model)
    try:
        trainer_class()(
            model=model_copy,
            args=config,
            train_dataset=rows,
            eval_dataset=rows if block.holdout else None,
            processing_class=tokenizer,
            peft_config=lora_config(block, model_copy),
        )
    except _REFUSALS as error:
        return error
    return None


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Leave the sources of random numbers as they were: trainers seed them."""
    import numpy as np
    import torch

    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)


def _require_liger(config: Any, model: Any) -> None:
    import torch

    if not config.use_liger_kernel:
        return
    from transformers.utils import is_liger_kernel_available

    if not torch.cuda.is_available():
        raise RuntimeError("Liger's kernels need a CUDA GPU, and this machine has none")
    if not is_liger_kernel_available():
        raise ImportError("the package liger-kernel is missing: pip install liger-kernel")
    patches = importlib.import_module("liger_kernel.transformers.monkey_patch")
    kind = model.config.get_text_config().model_type
    if kind not in patches.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"Liger has no kernels for the architecture {kind}")


def _require_optimizer(config: Any, model: Any) -> None:
    from transformers import Trainer

    Trainer.get_optimizer_cls_and_kwargs(config, model)


def _require_reporters(config: Any) -> None:
    from transformers.integrations import get_reporting_integration_callbacks

    for callback in get_reporting_integration_callbacks(config.report_to):
        callback()


def _sentence(key: str, value: Any, error: Exception) -> str:
    return (
        f"{key}: {value} cannot be used here: {_one_line(error)}; remove it, or write another value"
    )


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split()).rstrip(". ")
    return (
        words[:300]
        if isinstance(error, ValueError | ImportError | RuntimeError)
        else (f"{type(error).__name__}: {words[:300]}")
    )
