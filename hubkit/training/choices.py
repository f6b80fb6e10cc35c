"""The words that a trainer's keys of text take, where they take only some: TRL, PEFT and
transformers compare most of them only when a trainer is made, at the first step, or never, and then
go on as if nothing had been said."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

from hubkit.errors import RecipeError

_ONE_OR_MORE_WORDS = {"debug"}
_NUMBER = r"\[[^\]]*\]"
_QUOTED = re.compile(r"['`]([A-Za-z][\w-]*)['`]")


def _reporters() -> tuple[str, ...]:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return ("none", "all", *INTEGRATION_TO_CALLBACK)


def _caches() -> tuple[str, ...]:
    from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS

    return tuple(ALL_CACHE_IMPLEMENTATIONS)


# What the classes' types and metadata do not say, by key and where keys differ by class too.
_WORDS: Mapping[str, tuple[str, ...] | Callable[[], tuple[str, ...]]] = {
    "DPOConfig.loss_type": (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
        "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    ),
    "GRPOConfig.loss_type": (
        "grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo",
    ),
    "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none"),
    "vllm_importance_sampling_mode": (
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask",
    ),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers"),
    "cache_implementation": _caches,
    "report_to": _reporters,
    "include_for_metrics": ("inputs", "loss"),
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "pad_to_multiple_of": ("auto", "none", "null"),
    "torch_compile_mode": (
        "default", "lite", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs",
    ),
    "torch_compile_backend": (
        "inductor", "eager", "aot_eager", "aot_ts_nvfuser", "nvprims_nvfuser", "cudagraphs", "ofi",
        "fx2trt", "onnxrt", "tensorrt", "aot_torchxla_trace_once", "torchxla_trace_once", "tvm",
        "ipex",
    ),
    "task_type": ("CAUSAL_LM",),  # the others are no models that converse
    "peft_type": ("LORA",),
}  # fmt: skip
_F_DIVERGENCE_LOSSES = {
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft",
}  # fmt: skip


def words_of(config_class: type, key: str) -> tuple[str, ...]:
    """The words that text under `key` of `config_class` (a dataclass) may be; empty where any text
    may stand there. A part in brackets stands for a number."""
    words = _WORDS.get(f"{config_class.__name__}.{key}") or _WORDS.get(key) or ()
    if words:
        return words() if callable(words) else words
    field = _fields(config_class)[key]
    hint = typing.get_type_hints(config_class)[key]
    return tuple(dict.fromkeys([*_members(hint), *(field.metadata.get("choices") or ())]))


def check_words(where: str, settings: Mapping[str, Any], config_class: type) -> None:
    """Refuse text that is none of the words that its key takes.

    Raises:
        RecipeError: Such a value; the sentence names what the key takes."""
    for key, value in settings.items():
        words = words_of(config_class, key)
        for item in _texts(key, value) if words else ():
            if not any(_stands_for(word, item) for word in words) and not _told_of(
                config_class, key, item
            ):
                raise RecipeError(_sentence(f"{where}.{key}", item, words))


def _fields(config_class: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(config_class)}


def _members(hint: Any) -> Iterator[str]:
    """The texts of the enumerations and literals in `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        yield from (argument for argument in arguments if isinstance(argument, str))
    elif origin in (typing.Union, types.UnionType, list, tuple):
        for argument in arguments:
            yield from _members(argument)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        yield from (str(member.value) for member in hint)


def _texts(key: str, value: Any) -> list[str]:
    items = value if isinstance(value, list | tuple) else [value]
    texts = [item for item in items if isinstance(item, str)]
    return [word for text in texts for word in text.split()] if key in _ONE_OR_MORE_WORDS else texts


def _stands_for(word: str, text: str) -> bool:
    return re.fullmatch(r"\d+".join(map(re.escape, re.split(_NUMBER, word))), text) is not None


def _told_of(config_class: type, key: str, text: str) -> bool:
    """Whether the class's own help to `key` names `text`, which no version known here has: a later
    version takes more."""
    help_to_key = str(_fields(config_class)[key].metadata.get("help", ""))
    known = {word for words in _WORDS.values() if not callable(words) for word in words}
    return text in set(_QUOTED.findall(help_to_key)) - known


def _sentence(where: str, text: str, words: tuple[str, ...]) -> str:
    *others, last = words
    listed = f"{', '.join(others)} or {last}" if others else last
    by_lower = {word.lower(): word for word in words}
    longer = [word for word in by_lower if len(text) > 1 and word.startswith(text.lower())]
    near = longer or difflib.get_close_matches(text.lower(), by_lower, n=1)
    hint = f"; did you mean {by_lower[near[0]]!r}?" if near else ""
    return f"{where} is {text!r}, and takes {listed}{hint}"


def check_together(where: str, settings: Mapping[str, Any], config_class: type) -> None:
    """Refuse values, each of them taken alone, that the trainer does not take together.

    Raises:
        RecipeError: Such values."""
    apart = {"DPOConfig": _apart_in_dpo, "GRPOConfig": _apart_in_grpo}
    for problem in apart.get(config_class.__name__, lambda _: iter(()))(settings):
        raise RecipeError(f"{where}.{problem}")


def _apart_in_dpo(settings: Mapping[str, Any]) -> Iterator[str]:
    losses = _texts("loss_type", settings.get("loss_type", "sigmoid"))
    divergence = settings.get("f_divergence_type", "reverse_kl")
    if divergence != "reverse_kl" and (other_losses := sorted(set(losses) - _F_DIVERGENCE_LOSSES)):
        yield (
            f"f_divergence_type is {divergence!r}, which loss_type {', '.join(other_losses)} does "
            "not have; write reverse_kl, or a loss_type of "
            f"{', '.join(sorted(_F_DIVERGENCE_LOSSES))}"
        )
    if settings.get("use_weighting") and {"aot", "aot_unpaired"} & set(losses):
        yield "use_weighting is true, which the loss_types aot and aot_unpaired do not take"
    if "exo_pair" in losses and not settings.get("label_smoothing"):
        yield "label_smoothing must be above 0 with the loss_type exo_pair; write 0.001"


def _apart_in_grpo(settings: Mapping[str, Any]) -> Iterator[str]:
    mode = settings.get("vllm_importance_sampling_mode", "sequence_mask")
    if (
        settings.get("loss_type") == "vespo"
        and settings.get("use_vllm")
        and settings.get("vllm_importance_sampling_correction", True)
        and mode not in ("token_truncate", "token_mask")
    ):
        yield (
            f"vllm_importance_sampling_mode is {mode!r}, and takes token_truncate or token_mask "
            "with the loss_type vespo"
        )
    if settings.get("sync_ref_model") and not settings.get("beta"):
        yield "sync_ref_model is true, and there is no reference model where beta is 0"
