"""A PEFT LoRA adapter of a Llama as a GGUF adapter for llama.cpp, without torch.

For any architecture, `check_adapter` refuses what llama.cpp's LoRA would compute differently.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from hubkit.errors import EngineError
from hubkit.local_engine.engine import UnsupportedModelError
from hubkit.local_engine.gguf_model import (
    LAYER_TENSORS,
    architecture,
    number,
    permuted,
    rotary_heads,
    whole,
)
from hubkit.local_engine.tensors import stored_tensors
from hubkit.untrusted import JsonObject, parse_json

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHT = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(.+)\.lora_([AB])\.weight")
_TRANSPOSED = "fan_in_fan_out"
# PEFT options that must be off (falsy, or the value given) for the sum `base + scale * B @ A` to be
# the whole story.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "modules_to_save": (None, []),
    "bias": ("none",),
    "lora_bias": (False,),
    _TRANSPOSED: (False,),
    "alpha_pattern": ({},),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "use_qalora": (False,),
    "alora_invocation_tokens": (None,),
}
# Bases whose layers store ``in x out`` weights (transformers' Conv1D), and those layers.
_CONV1D_BASES = {"GPT2LMHeadModel", "JAISLMHeadModel"}
_CONV1D_FACTOR = re.compile(r"(.+\.(?:c_attn|c_proj|c_fc|c_fc2)\.lora_)([AB])(\.weight)")


def read_adapter_config(folder: Path) -> JsonObject:
    """`folder`/adapter_config.json. Raises `EngineError` when it is missing or not a LoRA."""
    try:
        config = parse_json((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{folder} has no readable {ADAPTER_CONFIG} ({error}); is this an adapter repo?"
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UnsupportedModelError(
            f"{folder} is not a LoRA adapter; merge it into its base and serve that"
        )
    return config


def has_conv1d(base_config: JsonObject) -> bool:
    """Whether the layers of a base with `base_config` store their weights ``in x out``.

    PEFT goes by the layer, whatever an adapter's ``fan_in_fan_out`` says."""
    return architecture(base_config) in _CONV1D_BASES


def write_transposed(folder: Path, out: Path) -> None:
    """Write `out`, the weights of the adapter in `folder` as factors of ``in x out`` matrices.

    PEFT stores A (``rank x in``) and B (``out x rank``) for any layer. llama.cpp's converter takes
    ``B @ A`` for the stored weight and transposes it, so where that is ``in x out`` the factors are
    to be A transposed and B transposed, in each other's place."""
    from safetensors.numpy import save_file

    factors = {}
    for name, tensor in stored_tensors(folder, "adapter_model*.safetensors").items():
        values = tensor.load()
        if match := _CONV1D_FACTOR.fullmatch(name):
            other = "B" if match[2] == "A" else "A"
            name, values = f"{match[1]}{other}{match[3]}", np.ascontiguousarray(values.T)
        factors[name] = values
    save_file(factors, out)


def check_adapter(folder: Path, base_config: JsonObject) -> float:
    """Return the alpha that llama.cpp needs for the adapter in `folder` of a base with
    `base_config`.

    llama.cpp scales by alpha / rank; PEFT's rank-stabilised variant by alpha / sqrt(rank), so its
    alpha is multiplied by sqrt(rank).

    Raises:
        UnsupportedModelError: It is more than the sum ``base + scale * B @ A``.
        EngineError: It has no readable configuration.
    """
    config = read_adapter_config(folder)
    for option, allowed in _MUST_BE.items():
        if option == _TRANSPOSED and has_conv1d(base_config):
            continue
        value = config.get(option, allowed[0])
        if value not in allowed and value is not None:
            raise UnsupportedModelError(
                f"{folder}: no conversion for a LoRA with {option}={value!r}; "
                "merge it and serve that"
            )
    try:
        alpha, rank = number(config, "lora_alpha"), number(config, "r")
    except EngineError:
        raise EngineError(
            f"{folder}/{ADAPTER_CONFIG} has no numbers lora_alpha and r; push it again"
        ) from None
    if config.get("use_rslora"):
        if config.get("rank_pattern"):
            raise UnsupportedModelError(
                f"{folder}: no conversion for use_rslora with a rank_pattern; "
                "merge it and serve that"
            )
        alpha *= math.sqrt(rank)
    return alpha


def convert_lora(folder: Path, base_config: JsonObject, out: Path) -> None:
    """Write `out`, the GGUF of the LoRA adapter in `folder`, for a base with `base_config`.

    Weights stay float32. Raises `EngineError` or `UnsupportedModelError`.
    """
    alpha = check_adapter(folder, base_config)
    writer = GGUFWriter(str(out), "llama")
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        _add_tensors(writer, folder, base_config)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_tensors(writer: GGUFWriter, folder: Path, base_config: JsonObject) -> None:
    for name, tensor in stored_tensors(folder, "adapter_model*.safetensors").items():
        match = _WEIGHT.fullmatch(name)
        if not match or match[2] not in LAYER_TENSORS:
            raise UnsupportedModelError(
                f"{folder}: no conversion for adapter tensor {name!r}; merge it and serve that"
            )
        layer, module, side = match.groups()
        if int(layer) >= whole(base_config, "num_hidden_layers"):
            raise EngineError(
                f"{folder}: {name!r} is beyond the base's last layer; this adapter has another base"
            )
        target = f"blk.{layer}.{LAYER_TENSORS[module]}.weight"
        values = tensor.load()
        heads = rotary_heads(target, base_config)
        if side == "B" and heads:
            values = permuted(values, heads)
        writer.add_tensor(f"{target}.lora_{side.lower()}", values)
