"""The recipe's blocks → TRL's and PEFT's own configuration objects, key for key.

Takes a `Training` block; gives an ``SFTConfig`` and a ``LoraConfig``. Keys go through as they are;
an unknown one is an error that names the nearest. hubkit sets only what a run needs to be safe
(where checkpoints go, no silent uploads, no telemetry) and what the machine cannot do (bf16 without
an accelerator), and says so in the report."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import util
from pathlib import Path
from typing import Any

from hubkit.errors import MissingDependencyError, RecipeError
from hubkit.hub.places import home
from hubkit.openmp import spin_briefly
from hubkit.recipe import PeoplePairs, Preference, Reinforce, Training
from hubkit.recipe.block import Block
from hubkit.settings import BF16, value
from hubkit.training.values import check_values
from hubkit.untrusted import JsonObject, object_in

# What hubkit decides itself, with the reason a recipe's author reads when they set it all the same.
RESERVED = {
    "output_dir": "hubkit keeps checkpoints in the stage's work folder",
    "overwrite_output_dir": "hubkit resumes or starts a new work folder by itself",
    "resume_from_checkpoint": "hubkit resumes by itself",
    "push_to_hub": "publishing is a stage of its own",
    "hub_model_id": "publishing is a stage of its own",
    "hub_token": "recipes never hold tokens",
    "assistant_only_loss": "only the seat's own turns ever carry loss",
    "completion_only_loss": "only the seat's own turns ever carry loss",
    "dataset_text_field": "rows are conversations",
    "chat_template_path": "the template follows from the base and the seat",
    "trust_remote_code": "hubkit never runs code out of a model repo",
    "seed": "the recipe's own seed is used",
    "truncation_mode": "texts are cut at the end",
    "fsdp": "--launch says how a training is spread over devices",
    "fsdp_config": "--launch says how a training is spread over devices",
    "deepspeed": "--launch says how a training is spread over devices",
    "ddp_backend": "it follows from the devices",
    "inference_mode": "an adapter is there to be trained",
}


Trained = Training | Preference | PeoplePairs | Reinforce
"""A block whose settings go to one of TRL's trainers."""

_BF16_FLAGS = re.compile(r"\b(amx_bf16|avx512_bf16)\b")
_ENCODERS = (
    r".*(vision|visual|image|audio|speech|multi_modal_projector|mm_projector|embed_vision"
    r"|embed_audio).*"
)
"""Modules of a multimodal model that conversations of text never pass through."""


def quiet_environment() -> None:
    """No telemetry, no fork warnings, no threads that spin for long. Call before anything imports
    torch.
    """
    spin_briefly()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for package in (
        "transformers",
        "trl",
        "peft",
    ):  # their renamings are ours to follow, not the user's
        warnings.filterwarnings("ignore", category=FutureWarning, module=package)


def sft_config(block: Training, work: Path, *, seed: int) -> tuple[Any, list[str]]:
    """`block.sft` as an ``SFTConfig`` that checkpoints into `work`, and a sentence per value the
    machine changed.

    Raises `RecipeError` for a key that SFTConfig does not have, one that hubkit decides, or a value
    it refuses."""
    quiet_environment()
    from trl import SFTConfig

    check_keys("sft", block.sft, SFTConfig)
    values, notes = fit_to_machine(_without_model_options(block.sft))
    if block.quantize and block.lora is None:
        raise RecipeError("quantize is for adapters: 4-bit weights cannot be trained; set lora")
    os.environ.setdefault("TRACKIO_DIR", str(home() / "trackio"))
    values = {
        **_defaults(),
        **_evaluation(block),
        **values,
        "output_dir": str(work),
        "seed": seed,
        "truncation_mode": "keep_start",
    }
    return _build("sft", SFTConfig, values), notes


def dpo_config(block: Preference | PeoplePairs, work: Path, *, seed: int) -> tuple[Any, list[str]]:
    """`block.dpo` as a ``DPOConfig``, on the same terms as `sft_config`."""
    quiet_environment()
    from trl import DPOConfig

    check_keys("dpo", block.dpo, DPOConfig)
    values, notes = fit_to_machine(_without_model_options(block.dpo))
    values = {
        **_defaults(),
        **values,
        "output_dir": str(work),
        "seed": seed,
        "truncation_mode": "keep_start",
    }
    return _build("dpo", DPOConfig, values), notes


def grpo_config(block: Reinforce, work: Path, *, seed: int) -> tuple[Any, list[str]]:
    """`block.grpo` as a ``GRPOConfig``, on the same terms as `sft_config`."""
    quiet_environment()
    from trl import GRPOConfig

    check_keys("grpo", block.grpo, GRPOConfig)
    values, notes = fit_to_machine(_without_model_options(block.grpo))
    defaults = {key: value for key, value in _defaults().items() if key != "max_length"}
    values = {
        **defaults,
        "logging_steps": 1,
        **values,
        "output_dir": str(work),
        "seed": seed,
        "shuffle_dataset": False,  # rows keep the order in which they are used
        "remove_unused_columns": False,
    }
    return _build("grpo", GRPOConfig, values), notes


def blocks_of(part: Any, path: str = "") -> Iterator[tuple[str, Trained]]:
    """Every block in `part` of a recipe that goes to a trainer, with its path; `path` is that of
    `part`."""
    if isinstance(part, Training | Preference | PeoplePairs | Reinforce):
        yield path, part
    if isinstance(part, Block):
        inner = [(name, getattr(part, name)) for name in type(part).model_fields]
    else:
        inner = list(part.items()) if isinstance(part, dict) else []
    for name, below in inner:
        yield from blocks_of(below, f"{path}.{name}" if path else str(name))


def require_settings(recipe: Block, roots: Iterable[str]) -> None:
    """Check what every block of the recipe says to TRL's trainers and to PEFT, where they are
    installed; what only another machine has is that machine's matter.

    Args:
        recipe: The recipe.
        roots: The paths of parts of it; blocks elsewhere are not looked at.

    Raises:
        RecipeError: An unknown or reserved key, or a value that is refused.
    """
    if any(util.find_spec(name) is None for name in ("trl", "peft")):
        return
    for path, block in blocks_of(recipe):
        if any(f"{path}.".startswith(f"{root}.") for root in roots):
            _require_settings(block, path)


def _require_settings(block: Trained, path: str) -> None:
    try:
        with suppress(MissingDependencyError):
            _require_scheduler(settings_of(block), *_config_of(block))
            if not isinstance(block, PeoplePairs):
                lora_config(block)
    except RecipeError as error:
        raise RecipeError(f"{path}.{error}") from None


def _config_of(block: Trained) -> tuple[str, Any]:
    """The name of the block's settings, and TRL's object of them."""
    unused = Path("unused")
    if isinstance(block, Training):
        return "sft", sft_config(block, unused, seed=0)[0]
    if isinstance(block, Reinforce):
        return "grpo", grpo_config(block, unused, seed=0)[0]
    return "dpo", dpo_config(block, unused, seed=0)[0]


def _require_scheduler(settings: JsonObject, where: str, config: Any) -> None:
    """Raise `RecipeError` for a schedule of the learning rate that cannot be made."""
    if not {"lr_scheduler_type", "lr_scheduler_kwargs"} & settings.keys():
        return
    try:
        make_scheduler(config)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        kind, arguments = config.lr_scheduler_type.value, config.lr_scheduler_kwargs or {}
        raise RecipeError(
            f"{where}.lr_scheduler_type is {kind}, which cannot be made with the "
            f"lr_scheduler_kwargs {arguments}: {error}"
        ) from None


def make_scheduler(config: Any, warmup_steps: int = 0, steps: int = 10) -> Any:
    """The schedule of the learning rate by TRL's `config`, over an optimizer of one number."""
    import torch
    from transformers import get_scheduler

    return get_scheduler(
        config.lr_scheduler_type,
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate),
        num_warmup_steps=warmup_steps,
        num_training_steps=steps,
        scheduler_specific_kwargs=config.lr_scheduler_kwargs or None,
    )


def settings_of(block: Trained) -> JsonObject:
    """What of the block goes to TRL."""
    if isinstance(block, Training):
        return block.sft
    return block.grpo if isinstance(block, Reinforce) else block.dpo


def model_options(block: Training | Preference | Reinforce) -> JsonObject:
    """What the recipe says of how the model is loaded: ``model_init_kwargs``."""
    settings = settings_of(block)
    return object_in(settings, "model_init_kwargs")


def _without_model_options(settings: Mapping[str, Any]) -> JsonObject:
    """TRL takes them only for models that it loads itself."""
    return {key: value for key, value in settings.items() if key != "model_init_kwargs"}


def check_keys(where: str, settings: Mapping[str, Any], config_class: type) -> None:
    """Refuse keys that `config_class` (a dataclass) does not have, naming the nearest, those in
    `RESERVED`, and values that it cannot take.
    """
    field_names = {f.name for f in dataclasses.fields(config_class) if f.init}
    for key in settings:
        if key in RESERVED:
            raise RecipeError(f"{where}.{key} is not for recipes: {RESERVED[key]}; remove it")
        if key not in field_names:
            near = difflib.get_close_matches(key, sorted(field_names - RESERVED.keys()), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RecipeError(f"{where}.{key} is not a key of {config_class.__name__}{hint}")
    check_values(where, settings, config_class)


def fit_to_machine(settings: Mapping[str, Any]) -> tuple[JsonObject, list[str]]:
    """`settings` as this machine can run it, and a sentence per change.

    Without an accelerator fp16 and tf32 are off, and bf16 is on only where the processor multiplies
    in it faster than in float32: others run it some hundred times slower, and TRL turns it on by
    default. A recipe that says ``bf16: false`` always has its way."""
    import torch

    values = dict(settings)
    if torch.cuda.is_available():
        values.setdefault("bf16", torch.cuda.is_bf16_supported())
        return values, []
    if torch.backends.mps.is_available():
        notes = ["fp16 is off: not on Apple's GPUs"] if values.get("fp16") else []
        return {**values, "bf16": bool(values.get("bf16")), "fp16": False}, notes
    return _fit_to_cpu(values)


def _fit_to_cpu(values: dict[str, Any]) -> tuple[JsonObject, list[str]]:
    notes: list[str] = []
    for key in ("fp16", "tf32"):
        if values.get(key):
            notes.append(f"{key} is off: this machine has no GPU")
            values[key] = False
    if str(values.get("optim", "")).endswith("fused"):
        notes.append(f"optim {values.pop('optim')} is left at the default: this machine has no GPU")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        values.setdefault("ddp_backend", "gloo")
    asked_bf16 = values.get("bf16")
    values["bf16"] = asked_bf16 is not False and bf16_is_faster()
    if values["bf16"]:
        notes.append("bf16 is on: this processor multiplies matrices faster in it than in float32")
    elif asked_bf16:
        notes.append(
            "bf16 is off: this processor multiplies matrices no faster in it than in float32"
        )
    return {"use_cpu": True, **values}, notes


@functools.cache
def bf16_is_faster(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has instructions for bfloat16 (AMX or AVX-512) and a product is faster
    in it; measured once, so that all trainings of a process are planned the same, and by the one
    that launched them for all processes of a training."""
    import time

    if measured := value(BF16):
        return measured == "1"

    import torch

    try:
        if not _BF16_FLAGS.search(cpuinfo.read_text("utf-8")):
            return False
    except OSError:
        return False
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(1024, 1024, dtype=dtype)
        torch.mm(square, square)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            torch.mm(square, square)
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def lora_config(block: Training | Preference | Reinforce, model: Any = None) -> Any | None:
    """`block.lora` as a ``LoraConfig``, or None for full fine-tuning.

    With the `model` that it is for, its vision and audio parts are left out.

    Raises:
        RecipeError: A key that PEFT does not know."""
    if block.lora is None:
        return None
    quiet_environment()
    from peft import LoraConfig

    check_keys("lora", block.lora, LoraConfig)
    extra = encoder_exclusion(block.lora, model) if model is not None else {}
    return _build("lora", LoraConfig, {"task_type": "CAUSAL_LM", **extra, **block.lora})


def encoder_exclusion(lora: Mapping[str, Any], model: Any) -> JsonObject:
    """``exclude_modules`` that keeps LoRA off the vision and audio parts of a multimodal model."""
    names = (name for name, _ in model.named_modules())
    if "exclude_modules" in lora or not any(re.fullmatch(_ENCODERS, name) for name in names):
        return {}
    return {"exclude_modules": _ENCODERS}


def _defaults() -> JsonObject:
    """Where hubkit's defaults differ from TRL's. A recipe's own value always wins."""
    return {
        "report_to": "none",
        "project": "hubkit",
        # a Space only where a recipe names one: curves stay on this machine
        "trackio_static_space_id": False,
        "logging_steps": 0.02,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "save_total_limit": 2,
        "disable_tqdm": True,
        "max_length": 1024,
    }


def _evaluation(block: Training) -> JsonObject:
    """When held-out rows are looked at: once an epoch, and the best epoch is kept when the run may
    stop early.

    Raises `RecipeError` for early stopping without rows to judge by.
    """
    if block.early_stopping and not block.holdout:
        raise RecipeError(
            "early_stopping needs held-out rows to judge by; set holdout, for example to 0.05"
        )
    if not block.holdout:
        return {}
    best: JsonObject = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "save_strategy": "epoch",
    }
    return {"eval_strategy": "epoch", **(best if block.early_stopping else {})}


def _build(where: str, config_class: type, values: JsonObject) -> Any:
    try:
        return config_class(**values)
    except ImportError as error:
        raise MissingDependencyError(
            f"{where} asks for a package that is not installed: {error}"
        ) from None
    except (TypeError, ValueError, OSError) as error:
        raise RecipeError(f"{where} does not make a {config_class.__name__}: {error}") from None
