"""Tiny random models of many architectures, with SmolLM2's tokenizer: what conversion, training and
serving are tried on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from support.engine_server import smollm2

_COMMON: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.1,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# transformers' configuration class without "Config" → what it needs beyond `_COMMON`.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},
    "Gemma3Text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},
    "Phi3": {"sliding_window": None},
    "Olmo2": {},
    "Granite": {
        "attention_multiplier": 0.3,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 3.0,
    },
    "SmolLM3": {"num_hidden_layers": 4},
    "Gemma": {"head_dim": 16},
    "Qwen3Moe": {**_MOE, "head_dim": 16, "decoder_sparse_step": 1, "norm_topk_prob": True},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    "Cohere": {"logit_scale": 0.5},
    "Glm4": {"head_dim": 16, "partial_rotary_factor": 0.5},
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "GPTNeoX": {},
    "Starcoder2": {"sliding_window": None},
    "StableLm": {},
    "Phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4, "intermediate_size": 256},
    "Nemotron": {},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
}


def tiny_model(architecture: str, folder: Path, **size: Any) -> Any:
    """Save a random model of `architecture` in `folder`; return it. `size` overrides the tiny
    configuration.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    options = {**_COMMON, **ARCHITECTURES[architecture], **size}
    config = getattr(transformers, f"{architecture}Config")(**options)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    for name, values in model.named_parameters():
        if values.dim() == 1 or name.endswith("bias"):
            values.data += torch.randn_like(values) * 0.1
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (smollm2() / name).exists():
            shutil.copy(smollm2() / name, folder / name)
    return model


def with_adapter(model: Any, folder: Path, targets: str = "", spread: float = 0.1) -> Any:
    """Wrap `model` in a random LoRA, saved in `folder`; return the wrapper.

    It is on the modules that `targets` matches, else on all linear layers; in a mixture of experts,
    whose experts are single parameters, on the attention's. `spread` is the standard deviation of
    its B.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    fused = any("experts" in name for name, _ in model.named_parameters())
    usual = ["q_proj", "k_proj", "v_proj", "o_proj"] if fused else "all-linear"
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets or usual, task_type="CAUSAL_LM")
    peft = get_peft_model(model, config).eval()
    for name, values in peft.named_parameters():
        if "lora_B" in name:
            values.data.normal_(0, spread)
    peft.save_pretrained(folder)
    return peft
