"""Values that a trainer cannot take are refused before anything is built, whichever section of a
recipe they stand in.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from hubkit.errors import RecipeError
from hubkit.recipe import Preference, Recipe, Reinforce, Training, load, load_study
from hubkit.recipe.block import Block, block_of
from hubkit.training.choices import words_of
from hubkit.training.config import RESERVED, blocks_of, check_keys, require_settings
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


class Part(Block):
    """A recipe of one block."""

    part: Training | Preference | Reinforce


def require(section: str, settings: dict[str, Any]) -> None:
    require_settings(Part(part=_block(section, settings)), ["part"])


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
        ("sft", "lr_scheduler_kwargs", 5, "takes a mapping or null"),
        ("sft", "lr_scheduler_kwargs", "min_lr", "takes a mapping or null"),
        ("sft", "lr_scheduler_type", "cosine_with_min_lr", "One of min_lr or min_lr_rate"),
        ("sft", "accelerator_config", "no-such-file.json", "takes a mapping or null"),
        ("sft", "lr_scheduler_type", "bent", "cosine"),
        ("sft", "optim", "adam", "; did you mean 'adamw_torch'"),
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
        ("lora", "bias", "some", "takes none, all or lora_only"),
        ("lora", "bias", 5, "takes none or all or lora_only"),
        ("lora", "layer_replication", [[0]], "a list of lists or null"),
    ],
)
def test_a_value_that_the_trainer_cannot_take_is_refused(
    section: str, key: str, value: Any, sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence) as refused:
        require(section, {key: value})
    assert str(refused.value).startswith(f"part.{section}")


# Keys of text that take any: names, paths and addresses.
FREE = {
    "auto_mapping", "base_model_name_or_path", "eos_token", "exclude_modules", "hub_revision",
    "label_names", "layers_pattern", "length_column_name", "log_completions_hub_repo",
    "megatron_core", "metric_for_best_model", "modules_to_save", "optim_args",
    "optim_target_modules", "pad_token", "peft_version", "project", "revision", "run_name",
    "target_modules", "target_parameters", "trackio_bucket_id", "trackio_space_id",
    "trackio_static_space_id", "vllm_server_base_url", "vllm_server_host",
    "vllm_structured_outputs_regex",
}  # fmt: skip


def _text_keys(config_class: type) -> Iterator[str]:
    """The keys under which text is taken."""
    for field in dataclasses.fields(config_class):
        if field.init and field.name not in RESERVED:
            try:
                check_values("", {field.name: ""}, config_class)
            except RecipeError as error:
                if "and takes a mapping" in str(error) or not words_of(config_class, field.name):
                    continue
            yield field.name


@pytest.mark.parametrize("section", ["sft", "dpo", "grpo", "lora"])
def test_text_is_free_or_one_of_known_words(section: str) -> None:
    """Of every key of every class, so that one which a later version brings is looked at too."""
    config_class = _class(section)
    keys = [key for key in _text_keys(config_class) if key not in FREE]
    assert len(keys) > 2
    for key in keys:
        words = words_of(config_class, key)
        assert words, f"{config_class.__name__}.{key} takes which words? If any, it is in FREE"
        for word in words:
            beside = {"label_smoothing": 0.1} if word == "exo_pair" else {}
            taken = word.replace("[number of iters]", "16")
            check_values(section, {key: taken, **beside}, config_class)
        for wrong, hint in (("no such word", ""), (f"{words[-1]}q", "; did you mean '")):
            with pytest.raises(RecipeError) as refused:
                require(section, {key: wrong})
            sentence = str(refused.value)
            assert sentence.startswith(f"part.{section}.{key} is '{wrong.split()[0]}"), sentence
            assert all(word in sentence for word in words) and hint in sentence, sentence


@pytest.mark.parametrize("section", ["dpo", "grpo"])
def test_the_known_words_are_those_that_the_trainer_compares(section: str) -> None:
    config_class = _class(section)
    trainer = importlib.import_module(config_class.__module__.replace("_config", "_trainer"))
    found = _compared(ast.parse(inspect.getsource(trainer)))
    told = inspect.getsource(config_class)
    keys = [key for key in found if key in config_class.__dataclass_fields__]
    assert "loss_type" in keys
    for key in keys:
        words = set(words_of(config_class, key))
        assert found[key] <= words, key
        assert all(re.search(rf"""["'`]{word}["'`]""", told) for word in words), key


def _compared(tree: ast.AST) -> dict[str, set[str]]:
    """The texts with which each name is compared."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name | ast.Attribute):
            name = node.left.id if isinstance(node.left, ast.Name) else node.left.attr
            for right in node.comparators:
                items = right.elts if isinstance(right, ast.List | ast.Tuple | ast.Set) else [right]
                texts = {
                    item.value
                    for item in items
                    if isinstance(item, ast.Constant) and isinstance(item.value, str)
                }
                if texts:
                    found.setdefault(name, set()).update(texts)
    return found


def test_a_word_that_only_a_later_version_names_is_taken() -> None:
    @dataclasses.dataclass
    class DPOConfig:
        loss_type: list[str] = dataclasses.field(
            metadata={"help": "Possible values are `'sigmoid'` and `'later'`."}
        )

    check_keys("dpo", {"loss_type": ["sigmoid", "later"]}, DPOConfig)
    with pytest.raises(RecipeError, match="loss_type is 'latest'"):
        check_keys("dpo", {"loss_type": ["sigmoid", "latest"]}, DPOConfig)


@pytest.mark.parametrize(
    ("section", "settings", "sentence"),
    [
        ("dpo", {"loss_type": "aot", "f_divergence_type": "js_divergence"}, "loss_type aot does"),
        ("dpo", {"loss_type": ["sigmoid", "aot"], "use_weighting": True}, "use_weighting is true"),
        ("dpo", {"loss_type": "exo_pair"}, "label_smoothing must be above 0"),
        ("grpo", {"loss_type": "vespo", "use_vllm": True}, "token_truncate or token_mask"),
        ("grpo", {"sync_ref_model": True, "beta": 0.0}, "no reference model where beta is 0"),
    ],
)
def test_values_that_a_trainer_does_not_take_together_are_refused(
    section: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        require(section, settings)


def test_every_block_of_a_recipe_that_goes_to_a_trainer_is_found() -> None:
    """Those of a study's arms and students, and of preferences below an asker, too."""
    loaded = load_study(
        "utility", "parrot", profiles=["laptop", "capo-laptop", "asker-preference-laptop"]
    )
    paths = [path for path, _ in blocks_of(loaded)]
    assert {"asker", "asker.preference", "chat", "preference", "study.student"} <= set(paths)
    types = {"asker", "asker.preference", "chat", "chat.preference", "preference", "reinforce"}
    study = {f"study.student{below}" for below in ("", ".preference")}
    arms = {f"study.arms.asker{below}" for below in ("", ".preference")}
    assert set(_places(Recipe)) == types | study | arms


def _places(block: type[BaseModel], path: str = "") -> Iterator[str]:
    """Where in a recipe blocks with settings of a trainer may stand, by the types of its keys."""
    if {"sft", "dpo", "grpo"} & set(block.model_fields):
        yield path
    for name, field in block.model_fields.items():
        if inner := block_of(field.annotation):
            yield from _places(inner, f"{path}.{name}" if path else name)


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
        ("dpo", {"f_divergence_type": "js_divergence", "loss_type": ["ipo", "sft"]}),
        ("grpo", {"scale_rewards": False, "loss_type": "dr_grpo"}),
        ("sft", {"debug": "underflow_overflow tpu_metrics_debug", "report_to": ["wandb"]}),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]}),
        ("lora", {"init_lora_weights": "pissa_niter_16", "target_modules": "all-linear"}),
        (
            "lora",
            {"layers_to_transform": 3, "target_modules": ["q_proj"], "rank_pattern": {"q": 4}},
        ),
    ],
)
def test_what_the_trainer_takes_is_taken(section: str, settings: dict[str, Any]) -> None:
    require(section, settings)
