"""Real weights without a Hub: a GGUF file in, an ordinary model repo folder out.

`dequantised_smollm2` turns the GGUF of SmolLM2-135M-Instruct that a package index carries into what its Hub repo looks
like: `config.json`, `generation_config.json`, `model.safetensors` (bfloat16), `tokenizer.json`,
`tokenizer_config.json`. Anything that reads a Hub repo (transformers, TRL, PEFT, an endpoint) reads that folder.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hubkit.errors import SourceError

# llama.cpp's name of each tensor → transformers' name, inside layer N.
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL_TOKEN = 3


def dequantised_smollm2(gguf: Path, out: Path) -> None:
    """Write the model repo folder `out` from the quantised weights in `gguf`.

    Weights become bfloat16 (quantised values are exact multiples of their scales; the rounding is below the step that
    the quantisation already lost). Takes about 4 s and 1 GB of memory for 135M parameters.
    Raises `SourceError` when `gguf` is not a Llama-family GGUF file with a byte-level BPE tokenizer.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(gguf))
        facts = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise SourceError(f"{gguf} is not a readable GGUF file ({error}); fetch it again") from error
    architecture, tokenizer = facts.get("general.architecture"), facts.get("tokenizer.ggml.model")
    if architecture != "llama" or tokenizer != "gpt2":
        raise SourceError(
            f"{gguf} holds a {architecture!r} model with a {tokenizer!r} tokenizer; "
            "only Llama-family models with a byte-level BPE tokenizer can be unpacked here"
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_weights(reader, facts, out / "model.safetensors")
    _write_json(out / "config.json", _config(facts))
    _write_json(out / "generation_config.json", _generation_config(facts))
    _write_tokenizer(facts, out)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "head_dim": facts["llama.embedding_length"] // facts["llama.attention.head_count"],
        "hidden_act": "silu",
        "hidden_size": facts["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": facts["llama.feed_forward_length"],
        "max_position_embeddings": facts["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": facts["llama.rope.freq_base"],
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": facts["llama.vocab_size"],
    }


def _generation_config(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
    }


def _write_weights(reader: Any, facts: dict[str, Any], path: Path) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    heads, kv_heads = facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"]
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        name = _transformers_name(tensor.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _unpermuted(values, heads if "q_proj" in name else kv_heads)
        weights[name] = values.to(torch.bfloat16).contiguous()
    save_file(weights, str(path), metadata={"format": "pt"})


def _transformers_name(name: str) -> str:
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if layer and layer[2] in _LAYER_TENSORS:
        return f"model.layers.{layer[1]}.{_LAYER_TENSORS[layer[2]]}.weight"
    stem = name.removesuffix(".weight")
    if stem not in _OTHER_TENSORS:
        raise SourceError(f"tensor {name!r} has no counterpart in a Llama model; unpack this file with another tool")
    return f"{_OTHER_TENSORS[stem]}.weight"


def _unpermuted(weight: Any, heads: int) -> Any:
    """Rotary pairs side by side (llama.cpp) → first halves, then second halves (transformers). Shape stays."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _write_tokenizer(facts: dict[str, Any], out: Path) -> None:
    """SmolLM2's tokenizer: digits one by one, then byte-level BPE; nothing added at either end."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    kinds: list[int] = facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(out / "tokenizer.json"))

    bos, eos, unknown, pad = (
        tokens[facts[f"tokenizer.ggml.{kind}_token_id"]] for kind in ("bos", "eos", "unknown", "padding")
    )
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "additional_special_tokens": [bos, eos],
            "bos_token": bos,
            "eos_token": eos,
            "unk_token": unknown,
            "pad_token": pad,
            "clean_up_tokenization_spaces": False,
            "model_max_length": facts["llama.context_length"],
            "chat_template": facts["tokenizer.chat_template"],
        },
    )
