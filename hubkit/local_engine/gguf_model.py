"""A Llama-family model repo as a GGUF file for llama.cpp, without torch.

`convert_model` handles what it can do exactly and refuses the rest with `EngineError`; the caller
may then take the transformers engine. Tensor names, the rotary permutation of q and k, and the
metadata keys follow llama.cpp's own conversion for the `llama` architecture."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quant_shape_to_byte_shape, quantize

from hubkit.errors import EngineError
from hubkit.local_engine.engine import UnsupportedModelError
from hubkit.local_engine.gguf_vocab import write_vocab
from hubkit.local_engine.tensors import StoredTensor, stored_tensors
from hubkit.untrusted import parse_json

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


def read_config(folder: Path) -> dict[str, Any]:
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


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings, from transformers 5's `rope_parameters` or the older `rope_theta` and
    `rope_scaling`.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    theta = scaling.get("rope_theta") or config.get("rope_theta") or 10000.0
    return {**scaling, "rope_type": kind, "rope_theta": theta}


def check_supported(config: dict[str, Any]) -> None:
    """Raise `EngineError` when llama.cpp's `llama` architecture would not compute what `config`
    describes.
    """
    architecture = (config.get("architectures") or [config.get("model_type")])[0]
    if architecture not in ("LlamaForCausalLM", "MistralForCausalLM"):
        raise UnsupportedModelError(
            f"no conversion to llama.cpp for {architecture}; use --engine transformers"
        )
    rope = rope_parameters(config)["rope_type"]
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


def eos_token_ids(folder: Path, config: dict[str, Any]) -> list[int]:
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


def rotary_heads(name: str, config: dict[str, Any]) -> int | None:
    """Number of heads whose rows `permuted` must reorder in llama.cpp tensor `name`; None for the
    other tensors.
    """
    heads = int(config["num_attention_heads"])
    if ".attn_q." in name:
        return heads
    return int(config.get("num_key_value_heads") or heads) if ".attn_k." in name else None


def _write_metadata(writer: GGUFWriter, config: dict[str, Any]) -> None:
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    rope = rope_parameters(config)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    if rope["rope_type"] == "linear":
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Llama 3.1's per-frequency divisors, shape (head_dim / 2,): as in transformers'
    `_compute_llama3_parameters`.
    """
    old_context = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        if wavelength < old_context / high:
            factors.append(1.0)
        elif wavelength > old_context / low:
            factors.append(float(factor))
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
    writer: GGUFWriter, config: dict[str, Any], tensors: dict[str, StoredTensor], dtype: Dtype
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


def _extra_tensors(config: dict[str, Any]) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Tensors that llama.cpp expects and the checkpoint does not store."""
    rope = rope_parameters(config)
    if rope["rope_type"] != "llama3":
        return {}
    head_dim = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    return {"rope_freqs.weight": _llama3_factors(rope, head_dim)}
