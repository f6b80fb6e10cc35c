"""Bases small enough for tests: a byte-level tokenizer with a family's real special tokens below a
two-layer Llama.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hubkit.chat_templates import FAMILIES

# What each family's real tokenizer declares: (special tokens, bos, eos, pad).
TOKENS: dict[str, tuple[list[str], str | None, str, str]] = {
    "chatml": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        None,
        "<|im_end|>",
        "<|endoftext|>",
    ),
    "llama-3": (
        [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|pad|>",
        ],
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|pad|>",
    ),
    "gemma": (
        ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        "<bos>",
        "<eos>",
        "<pad>",
    ),
    "mistral": (["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"], "<s>", "</s>", "<pad>"),
    "raw": (["<unk>", "<s>", "</s>"], "<s>", "</s>", "</s>"),
}
assert set(TOKENS) == set(FAMILIES)

TEXT = [
    "How do I bake bread at home? Mix flour, water and yeast.",
    "What about rye? Use less water and more time.",
]


def tiny_tokenizer(folder: Path, family: str = "chatml") -> Any:
    """Save a tokenizer of `family` into `folder`, and return it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special, bos, eos, pad = TOKENS[family]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_base(folder: Path, family: str = "chatml", *, seed: int = 0, tied: bool = True) -> Path:
    """Save a two-layer Llama of `family` into `folder`, as a Hub snapshot would hold it; its head
    is its embedding where `tied`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(folder, family)
    torch.set_num_threads(1)  # two threads on so little work only wait for each other
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


ARCHITECTURES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2",
    "gpt_neox", "falcon", "olmo", "olmo2", "granite", "cohere", "stablelm", "starcoder2", "smollm3",
    "mixtral", "bloom", "mpt", "glm", "glm4", "exaone4", "nemotron", "lfm2", "mamba", "helium",
    "ernie4_5", "granitemoe", "gpt_bigcode", "arcee",
)  # fmt: skip
"""Model types that transformers loads as causal language models; a tiny one of each trains."""


def tiny_model_of(folder: Path, model_type: str, *, seed: int = 0) -> Path:
    """Save a two-layer model of an architecture, with random weights, into `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tiny_tokenizer(folder)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if model_type == "falcon":
        del values["head_dim"]
    config = AutoConfig.for_model(model_type, **values)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[list[tuple[str, Any]]]) -> Path:
    """Write conversations, each a list of (role, content), as the parquet file that stages
    exchange.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [("id", pa.string()), ("messages", pa.list_(message)), ("source", pa.string())]
    )
    made = [
        {"id": f"c{i}", "messages": [{"role": r, "content": c} for r, c in row], "source": "test"}
        for i, row in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(made, schema=schema), path)
    return path


def tiny_adapter(folder: Path, base: Path, base_repo_id: str, *, seed: int = 0) -> Path:
    """Save a LoRA adapter of the model in `base` into `folder`, as training pushes one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from hubkit.chat_templates import for_base

    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    for name, values in model.named_parameters():
        if "lora_B" in name:
            values.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base_repo_id  # before saving, PEFT would ask a Hub for it
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    (folder / "chat_template.jinja").write_text(for_base(base).source("user"), "utf-8")
    return folder
