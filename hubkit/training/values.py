"""Whether the values of a recipe's trainer keys are ones that the trainer can take, by the types
that TRL's and PEFT's own configuration classes declare.

Those classes check few of their values: text where a number belongs is found when the optimizer
divides by it, after the model was loaded."""

from __future__ import annotations

import functools
import math
import operator
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

from hubkit.errors import RecipeError
from hubkit.training.choices import check_together, check_words

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping",
    type(None): "null",
}
# Least values, which the classes do not declare. None as a value is never compared.
_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 1,
    "max_completion_length": 1,
    "num_generations": 2,
    "num_iterations": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "warmup_steps": 0,
    "max_grad_norm": 0,
    "beta": 0,
    "dataloader_num_workers": 0,
    "save_total_limit": 1,
    "r": 1,
    "lora_alpha": 0,
    "lora_dropout": 0,
}
_ALSO_BOOL = {"scale_rewards"}  # which its class's annotation leaves out
_ABOVE_ZERO = {"num_train_epochs", "temperature", "adam_epsilon", "logging_steps", "save_steps"}
_BELOW_ONE = {"lora_dropout", "adam_beta1", "adam_beta2"}


def check_values(where: str, settings: Mapping[str, Any], config_class: type) -> None:
    """Refuse values of another type than `config_class` (a dataclass) declares, numbers that no run
    can use, words that nothing stands for, and values that do not go together.

    Raises:
        RecipeError: A value is of the wrong type, out of range, unknown, or apart from another."""
    hints = _hints(config_class)
    check_words(where, settings, config_class)
    for key, value in settings.items():
        hint = hints.get(key, Any)
        if not _takes(hint, value) and not (key in _ALSO_BOOL and isinstance(value, bool)):
            words = " or ".join(sorted(dict.fromkeys(_described(hint)), key=_order))
            raise RecipeError(f"{where}.{key} is {value!r}, and takes {words}{_advice(value)}")
        if problem := _out_of_range(key, value):
            raise RecipeError(f"{where}.{key} is {value!r}; {problem}")
    check_together(where, settings, config_class)


@functools.cache
def _hints(config_class: type) -> dict[str, Any]:
    hints = typing.get_type_hints(config_class)
    return {key: _without_text_for_mappings(hint) for key, hint in hints.items()}


def _without_text_for_mappings(hint: Any) -> Any:
    """`hint` without the text that TRL's command line takes for a mapping."""
    members = typing.get_args(hint)
    if not any(dict in (member, typing.get_origin(member)) for member in members):
        return hint
    return functools.reduce(operator.or_, (member for member in members if member is not str))


def _takes(hint: Any, value: Any) -> bool:
    """Whether a value that YAML may hold is one of `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_takes(argument, value) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments or isinstance(value, str)  # its words are checked apart
    if origin in (list, tuple) or hint in (list, tuple):
        return _is_list_of(arguments, value)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if not isinstance(hint, type):
        return True
    if issubclass(hint, Enum):
        return isinstance(value, str)  # its words are checked apart
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _is_list_of(items: tuple[Any, ...], value: Any) -> bool:
    """One item may stand for a list of it, which the classes take."""
    if not items:
        return isinstance(value, list | tuple)
    if not isinstance(value, list | tuple):
        return items[0] is str and isinstance(value, str)
    if len(items) > 1 and Ellipsis not in items:
        return len(value) == len(items) and all(map(_takes, items, value))
    return all(_takes(items[0], item) for item in value)


def _order(words: str) -> int:
    """Single values, lists, null: `typing` gives the members of a union in whatever order it has
    seen them first.
    """
    return 2 if words == "null" else int(words.startswith("a list"))


def _described(hint: Any) -> typing.Iterator[str]:
    """What a value of `hint` is, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _described(argument)
    elif origin is typing.Literal:
        yield from (
            str(argument).lower() if argument is False else argument for argument in arguments
        )
    elif origin in (list, tuple):
        yield f"a list of {_plural(arguments[0])}" if arguments else "a list"
    elif isinstance(hint, type) and issubclass(hint, Enum):
        yield from (str(member.value) for member in hint)
    else:
        yield _WORDS.get(origin or hint, getattr(hint, "__name__", str(hint)))


def _plural(hint: Any) -> str:
    names = {str: "texts", int: "whole numbers", float: "numbers"}
    return names.get(hint, "lists" if typing.get_origin(hint) in (list, tuple) else "values")


def _advice(value: Any) -> str:
    """What to write instead of a number that YAML reads as text."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        if math.isfinite(number):
            text = f"{number:.10g}"
            text = text if "." in text else text.replace("e", ".0e")
            return f"; YAML reads {value} as text here: write {text}"
    return ""


def _out_of_range(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if not math.isfinite(value):
        return "write a finite number"
    if key in _AT_LEAST and value < _AT_LEAST[key]:
        return f"it must be at least {_AT_LEAST[key]}"
    if key in _ABOVE_ZERO and value <= 0:
        return "it must be above 0"
    if key in _BELOW_ONE and value >= 1:
        return "it must be below 1"
    return ""
