"""A Llama-family model repo as a GGUF file for llama.cpp, without torch.

`convert_model` handles what it can do exactly and refuses the rest with `EngineError`; the caller
may then take the transformers engine. Tensor names, the rotary permutation of q and k, and the
metadata keys follow llama.cpp's own conversion for the `llama` architecture."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quant_shape_to_byte_shape, quantize

from hubkit.errors import EngineError
from hubkit.local_engine.engine import UnsupportedModelError
from hubkit.local_engine.gguf_vocab import write_vocab
from hubkit.local_engine.tensors import StoredTensor, stored_tensors
from hubkit.untrusted import (
    JsonObject,
    count_in,
    list_in,
    number_in,
    object_in,
    parse_json,
    text_in,
)

Dtype = Literal["q8_0", "f16", "f32"]
QUANTISATIONS: dict[Dtype, GGMLQuantizationType] = {
    "q8_0": GGMLQuantizationType.Q8_0,
    "f16": GGMLQuantizationType.F16,
    "f32": GGMLQuantizationType.F32,
}
_Q8_0_BLOCK = 32
# transformers' name → llama.cpp's, inside layer N; both `.weight` and `.bias` exist.
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OTHER_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def convert_model(folder: Path, out: Path, dtype: Dtype) -> None:
    """Write `out`, the GGUF of the model repo in `folder`; matrices as `dtype`, vectors float32.

    One tensor is in memory at a time. Raises `EngineError` for an architecture, a rotary scaling, a
    tokenizer or a tensor that llama.cpp's `llama` would compute differently."""
    config = read_config(folder)
    check_supported(config)
    tensors = {llama_name(name): tensor for name, tensor in stored_tensors(folder).items()}
    if config.get("tie_word_embeddings"):
        tensors.pop("output.weight", None)
    if "token_embd.weight" not in tensors:
        raise EngineError(
            f"{folder} has no model.embed_tokens.weight; is this an adapter rather than a model?"
        )
    writer = GGUFWriter(str(out), "llama")
    try:
        _write_metadata(writer, config)
        rows = tensors["token_embd.weight"].shape[0]
        write_vocab(writer, folder, rows=rows, eos_token_ids=eos_token_ids(folder, config))
        _write_tensors(writer, config, tensors, dtype)
    finally:
        writer.close()


def read_config(folder: Path) -> JsonObject:
    """`folder`/config.json. Raises `EngineError` when missing or malformed."""
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{folder} has no readable config.json ({error}); is this a model repo?"
        ) from error
    if not isinstance(config, dict):
        raise EngineError(f"{folder}/config.json is not a mapping; is this a model repo?")
    return config


def architecture(config: JsonObject) -> str:
    """The name of the class that computes the text of `config`."""
    text = config.get("text_config")
    for source in (text if isinstance(text, dict) else {}, config):
        names = source.get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
    return str(config.get("model_type") or "a model without `architectures` in its config.json")


def number(values: JsonObject, key: str) -> float:
    """A number that `values`, of a config.json, must hold. Raises `EngineError` without it."""
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise EngineError(f"config.json has no number {key!r}; download the model again")
    return float(value)


def whole(config: JsonObject, key: str) -> int:
    """A whole number that `config` must hold. Raises `EngineError` without it."""
    return int(number(config, key))


def head_sizes(config: JsonObject) -> tuple[int, int, int]:
    """Heads, heads of keys and values, and the dimension of each."""
    heads = whole(config, "num_attention_heads")
    dimension = count_in(config, "head_dim") or whole(config, "hidden_size") // heads
    return heads, count_in(config, "num_key_value_heads") or heads, dimension


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary settings: the kind of scaling, the base, and what the kind needs."""

    kind: str
    theta: float
    scaling: JsonObject

    @classmethod
    def of(cls, config: JsonObject) -> Rope:
        """From transformers 5's `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
        scaling = object_in(config, "rope_parameters") or object_in(config, "rope_scaling")
        kind = text_in(scaling, "rope_type") or text_in(scaling, "type") or "default"
        theta = number_in(scaling, "rope_theta") or number_in(config, "rope_theta") or 10000.0
        return cls(kind, theta, scaling)


def check_supported(config: JsonObject) -> None:
    """Raise `EngineError` when llama.cpp's `llama` architecture would not compute what `config`
    describes.
    """
    names = list_in(config, "architectures") or [config.get("model_type")]
    architecture = names[0]
    if architecture not in ("LlamaForCausalLM", "MistralForCausalLM"):
        raise UnsupportedModelError(
            f"no conversion to llama.cpp for {architecture}; use --engine transformers"
        )
    rope = Rope.of(config).kind
    if rope not in ("default", "linear", "llama3"):
        raise UnsupportedModelError(
            f"no conversion for {rope!r} rotary scaling; use --engine transformers"
        )
    if config.get("sliding_window"):
        raise UnsupportedModelError(
            "no conversion for sliding-window attention; use --engine transformers"
        )
    if config.get("hidden_act", "silu") != "silu" or config.get("quantization_config"):
        raise UnsupportedModelError(
            "no conversion for this activation or quantised checkpoint; use --engine transformers"
        )


def eos_token_ids(folder: Path, config: JsonObject) -> list[int]:
    """The ids that end a generation: generation_config.json's, else config.json's. Raises
    `EngineError` if none.
    """
    path = folder / "generation_config.json"
    generation = parse_json(path.read_text(encoding="utf-8")) if path.exists() else {}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = [i for i in (eos if isinstance(eos, list) else [eos]) if isinstance(i, int)]
    if not ids:
        raise EngineError(
            f"{folder} names no eos_token_id in generation_config.json or config.json; add one"
        )
    return ids


def llama_name(name: str) -> str:
    """transformers' tensor name → llama.cpp's. Raises `EngineError` for one a Llama model does not
    have.
    """
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer and layer[2] in LAYER_TENSORS:
        return f"blk.{layer[1]}.{LAYER_TENSORS[layer[2]]}.{layer[3]}"
    stem, _, kind = name.rpartition(".")
    if stem in _OTHER_TENSORS:
        return f"{_OTHER_TENSORS[stem]}.{kind}"
    raise UnsupportedModelError(f"no conversion for tensor {name!r}; use --engine transformers")


def permuted(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """First halves then second halves (transformers' rotary layout) → pairs side by side
    (llama.cpp's).

    `values`: (heads * head_dim, …); shape stays.
    """
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )


def rotary_heads(name: str, config: JsonObject) -> int | None:
    """Number of heads whose rows `permuted` must reorder in llama.cpp tensor `name`; None for the
    other tensors.
    """
    heads, key_heads, _ = head_sizes(config)
    if ".attn_q." in name:
        return heads
    return key_heads if ".attn_k." in name else None


def _write_metadata(writer: GGUFWriter, config: JsonObject) -> None:
    heads, key_heads, head_dim = head_sizes(config)
    rope = Rope.of(config)
    writer.add_context_length(whole(config, "max_position_embeddings"))
    writer.add_embedding_length(whole(config, "hidden_size"))
    writer.add_block_count(whole(config, "num_hidden_layers"))
    writer.add_feed_forward_length(whole(config, "intermediate_size"))
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.theta)
    writer.add_layer_norm_rms_eps(number(config, "rms_norm_eps"))
    writer.add_vocab_size(whole(config, "vocab_size"))
    if rope.kind == "linear":
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(number(rope.scaling, "factor"))


def _llama3_factors(rope: Rope, head_dim: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Llama 3.1's per-frequency divisors, shape (head_dim / 2,): as in transformers'
    `_compute_llama3_parameters`.
    """
    old_context = number(rope.scaling, "original_max_position_embeddings")
    low, high, factor = (
        number(rope.scaling, key) for key in ("low_freq_factor", "high_freq_factor", "factor")
    )
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope.theta ** (i / head_dim)
        if wavelength < old_context / high:
            factors.append(1.0)
        elif wavelength > old_context / low:
            factors.append(factor)
        else:
            smooth = (old_context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def _storage(tensor: StoredTensor, dtype: Dtype) -> GGMLQuantizationType:
    if len(tensor.shape) == 1:
        return GGMLQuantizationType.F32
    if dtype == "q8_0" and tensor.shape[-1] % _Q8_0_BLOCK:
        return GGMLQuantizationType.F16
    return QUANTISATIONS[dtype]


def _write_tensors(
    writer: GGUFWriter, config: JsonObject, tensors: dict[str, StoredTensor], dtype: Dtype
) -> None:
    extra = _extra_tensors(config)
    kinds = {name: _storage(tensor, dtype) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        _declare(writer, name, tensor.shape, kinds[name])
    for name, values in extra.items():
        _declare(writer, name, values.shape, GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        heads = rotary_heads(name, config)
        values = permuted(tensor.load(), heads) if heads else tensor.load()
        writer.write_tensor_data(quantize(values, kinds[name]))
    for values in extra.values():
        writer.write_tensor_data(values)


def _declare(
    writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType
) -> None:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    size = math.prod(shape) // block * block_bytes
    if kind == GGMLQuantizationType.Q8_0:
        writer.add_tensor_info(
            name, quant_shape_to_byte_shape(shape, kind), np.dtype(np.uint8), size, kind
        )
    else:
        dtype = np.dtype(np.float16 if kind == GGMLQuantizationType.F16 else np.float32)
        writer.add_tensor_info(name, shape, dtype, size)


def _extra_tensors(config: JsonObject) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Tensors that llama.cpp expects and the checkpoint does not store."""
    rope = Rope.of(config)
    if rope.kind != "llama3":
        return {}
    _, _, head_dim = head_sizes(config)
    return {"rope_freqs.weight": _llama3_factors(rope, head_dim)}
