"""Models that write people's turns under their own user header, small: tokenizers and templates of
the shapes that such models were published with, and one whose weights always end a conversation.
"""

from __future__ import annotations

import json
from pathlib import Path

from support import tiny_models

END = "<|endconversation|>"
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SHAPES = {
    "llama-3": ("llama-3", LLAMA3, END),
    "chatml": ("chatml", CHATML, END),
    "vicuna": ("raw", VICUNA, None),
}
"""Name → the family of its tokenizer, its chat template, its end token if it has one."""


def people_model(folder: Path, shape: str, *, weights: bool = False) -> Path:
    """Save the tokenizer and template of `shape` into `folder`.

    With `weights`, also a Llama that gives the end token whatever it reads."""
    family, template, end_token = SHAPES[shape]
    tokenizer = tiny_models.tiny_tokenizer(folder, family)
    tokenizer.chat_template = template
    if end_token:
        tokenizer.add_special_tokens({"additional_special_tokens": [end_token]})
    tokenizer.save_pretrained(folder)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    if weights:
        _always_ending(folder, tokenizer, tokenizer.convert_tokens_to_ids(end_token))
    return folder


def _always_ending(folder: Path, tokenizer: object, end_id: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = len(tokenizer)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,  # type: ignore[attr-defined]
            eos_token_id=tokenizer.eos_token_id,  # type: ignore[attr-defined]
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[end_id] = 1.0
    model.save_pretrained(folder)
