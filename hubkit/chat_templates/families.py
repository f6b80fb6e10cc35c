"""Layouts for bases that publish no chat template: families told by their special tokens, and a
last resort out of the tokenizer's own ends of text.

A family is data: one more is one more entry."""

from __future__ import annotations

import re
from pathlib import Path

from hubkit.chat_templates.base_template import read_json, special_tokens
from hubkit.chat_templates.layout import Layout
from hubkit.errors import RecipeError, SourceError

CHATML = Layout(
    name="chatml",
    prefix="",
    user="<|im_start|>user\n",
    user_end="<|im_end|>",
    user_gap="\n",
    assistant="<|im_start|>assistant\n",
    assistant_end="<|im_end|>",
    assistant_gap="\n",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
)
LLAMA3 = Layout(
    name="llama-3",
    prefix="<|begin_of_text|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n",
    user_end="<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
    assistant_end="<|eot_id|>",
    system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
)
GEMMA = Layout(
    name="gemma",
    prefix="<bos>",
    user="<start_of_turn>user\n",
    user_end="<end_of_turn>",
    user_gap="\n",
    assistant="<start_of_turn>model\n",
    assistant_end="<end_of_turn>",
    assistant_gap="\n",
    system_place="first_user",
)
# [INST] and [/INST] are control tokens here, so a user's turn has an end that any server stops on.
MISTRAL = Layout(
    name="mistral",
    prefix="<s>",
    user="[INST]",
    user_end="[/INST]",
    assistant="",
    assistant_end="</s>",
    system_place="first_user",
)
# Plain speaker labels, each turn between the tokenizer's own <s> and </s>, after the released code
# of arXiv 2308.11534 (source/utils.py). The space after a label is not printed: it would be glued
# to the special token differently by different tokenizers.
RAW = Layout(
    name="raw",
    prefix="",
    user="Human: <s>",
    user_end="</s>",
    assistant="Assistant: <s>",
    assistant_end="</s>",
)
FAMILIES: dict[str, Layout] = {
    layout.name: layout for layout in (CHATML, LLAMA3, GEMMA, MISTRAL, RAW)
}
MARKS: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama-3": ("<|start_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "mistral": ("[INST]", "[/INST]"),
    "raw": ("<s>", "</s>"),
}
"""The special tokens that tell a family's tokenizer from others, by its name."""
PLAIN = "plain"


def require_name(template: str | None, named_by: str) -> None:
    """Refuse one word that names no template; more than a word is a template's text.

    Raises:
        RecipeError: `template`, which the recipe's key `named_by` gives, is no known name."""
    known = ("base", PLAIN, *FAMILIES)
    if template is None or template in known or not re.fullmatch(r"[\w./~-]+", template):
        return
    raise RecipeError(
        f"{named_by} is {template!r}, which is no template: name one of {', '.join(known)}, or a "
        "file that ends in .jinja"
    )


def family_layout(base_dir: Path) -> Layout:
    """The layout of the family whose special tokens the tokenizer in `base_dir` has; else plain
    labels, with its own beginning and end of text around the turns.

    Raises:
        SourceError: The folder holds no tokenizer, or one without an end of text."""
    tokens = added_tokens(base_dir)
    for name, marks in MARKS.items():
        if all(token in tokens for token in marks):
            return FAMILIES[name]
    return plain_layout(base_dir, tokens)


def plain_layout(base_dir: Path, tokens: set[str] | None = None) -> Layout:
    """Plain speaker labels, each turn closed by the tokenizer's end of text.

    Raises:
        SourceError: The tokenizer names no end of text."""
    names = special_tokens(base_dir)
    end = names.get("eos_token")
    if end is None:
        listed = ", ".join(sorted(tokens or added_tokens(base_dir))[:8]) or "none"
        raise SourceError(
            f"the tokenizer in {base_dir} has no chat template, no end-of-text token, and the "
            f"special tokens {listed}, which are those of none of the families "
            f"{', '.join(FAMILIES)}; write template: FILE.jinja (or a family's name) in the recipe"
        )
    return Layout(
        name=PLAIN,
        prefix=names.get("bos_token", ""),
        user="Human: ",
        user_end=end,
        user_gap="\n",
        assistant="Assistant: ",
        assistant_end=end,
        assistant_gap="\n",
    )


def added_tokens(base_dir: Path) -> set[str]:
    """Every token that the tokenizer in `base_dir` declares in addition to its vocabulary.

    Raises:
        SourceError: The folder holds no tokenizer, or an unreadable one."""
    tokens: set[str] = set()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        data = read_json(base_dir / name)
        entries = list(data.get("added_tokens") or [])
        entries += list((data.get("added_tokens_decoder") or {}).values())
        tokens.update(e["content"] for e in entries if isinstance(e, dict) and e.get("content"))
    tokens.update(special_tokens(base_dir).values())
    if not tokens:
        raise SourceError(
            f"{base_dir} holds no tokenizer (tokenizer.json); is it a snapshot of a model repo?"
        )
    return tokens
