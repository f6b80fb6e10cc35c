"""Values that a trainer cannot take are refused before anything is built, whichever section of a
recipe they stand in.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest

from hubkit.errors import RecipeError
from hubkit.recipe import Preference, Reinforce, Training, load
from hubkit.training import require_settings
from hubkit.training.config import RESERVED
from hubkit.training.values import check_values

SEAT = {"repo": "acme/chat", "endpoints": ["http://127.0.0.1:1"]}


def _class(section: str) -> type:
    import peft
    import trl

    names = {"sft": "SFTConfig", "dpo": "DPOConfig", "grpo": "GRPOConfig"}
    return getattr(trl, names[section]) if section in names else peft.LoraConfig


def _block(section: str, settings: dict[str, Any]) -> Training | Preference | Reinforce:
    if section == "dpo":
        return Preference(strategies=["neglect"], pairs=4, chat=SEAT, dpo=settings)
    if section == "grpo":
        profiles = ["laptop", "reinforce-laptop"]
        block = load("parrot", profiles=profiles).reinforce
        assert block is not None
        return block.model_copy(update={"grpo": {**block.grpo, **settings}})
    return Training(base="acme/tiny", seat="user", **{section: settings})


@pytest.mark.parametrize(
    ("section", "key", "value", "sentence"),
    [
        ("sft", "learning_rate", "fast", "takes a number"),
        ("sft", "learning_rate", "1e-4", "YAML reads 1e-4 as text here: write 0.0001"),
        ("dpo", "learning_rate", "5e-6", "write 5.0e-06"),
        ("sft", "learning_rate", None, "takes a number"),
        ("sft", "learning_rate", -1e-4, "at least 0"),
        ("sft", "learning_rate", float("nan"), "a finite number"),
        ("sft", "num_train_epochs", 0, "above 0"),
        ("sft", "per_device_train_batch_size", 1.5, "takes a whole number"),
        ("sft", "per_device_train_batch_size", True, "takes a whole number"),
        ("sft", "gradient_accumulation_steps", 0, "at least 1"),
        ("sft", "max_length", "long", "takes a whole number or null"),
        ("sft", "packing", "yes please", "takes true or false"),
        ("sft", "lr_scheduler_kwargs", 5, "takes a mapping or text or null"),
        ("sft", "lr_scheduler_type", "bent", "cosine"),
        ("sft", "optim", "adam", "adamw_torch"),
        ("dpo", "beta", "some", "takes a number"),
        ("dpo", "beta", -0.1, "at least 0"),
        ("dpo", "loss_type", [1], "takes a list of texts"),
        ("dpo", "loss_weights", ["much"], "a list of numbers or null"),
        ("grpo", "temperature", "warm", "takes a number"),
        ("grpo", "temperature", 0, "above 0"),
        ("grpo", "num_generations", 1, "at least 2"),
        ("grpo", "max_completion_length", 0, "at least 1"),
        ("lora", "r", 0, "at least 1"),
        ("lora", "r", "big", "takes a whole number"),
        ("lora", "lora_dropout", 1.0, "below 1"),
        ("lora", "target_modules", [1, 2], "text or a list of texts or null"),
        ("lora", "bias", "some", "takes none or all or lora_only"),
        ("lora", "layer_replication", [[0]], "a list of lists or null"),
    ],
)
def test_a_value_that_the_trainer_cannot_take_is_refused(
    section: str, key: str, value: Any, sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence) as refused:
        require_settings(_block(section, {key: value}), "block")
    assert str(refused.value).startswith(f"block.{section}")


@pytest.mark.parametrize("section", ["sft", "dpo", "grpo", "lora"])
def test_no_key_takes_everything_and_every_default_is_taken(section: str) -> None:
    config_class = _class(section)
    for field in dataclasses.fields(config_class):
        if not field.init or field.name in RESERVED:
            continue
        if field.default is not dataclasses.MISSING:
            check_values(section, {field.name: field.default}, config_class)
        with pytest.raises(RecipeError, match=rf"{section}\.{field.name} is datetime"):
            check_values(section, {field.name: datetime.date(2026, 1, 1)}, config_class)


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        (
            "sft",
            {"learning_rate": 1, "max_length": None, "logging_steps": 0.5, "report_to": "none"},
        ),
        ("sft", {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0}}),
        ("dpo", {"loss_type": "sigmoid"}),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]}),
        ("lora", {"init_lora_weights": "pissa_niter_16", "target_modules": "all-linear"}),
        (
            "lora",
            {"layers_to_transform": 3, "target_modules": ["q_proj"], "rank_pattern": {"q": 4}},
        ),
    ],
)
def test_what_the_trainer_takes_is_taken(section: str, settings: dict[str, Any]) -> None:
    require_settings(_block(section, settings), "block")
