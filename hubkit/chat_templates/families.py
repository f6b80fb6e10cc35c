"""How each family of base models prints a conversation: its speaker labels, ends of turn and place
for a system text.

Takes a model folder; gives the `Family` its tokenizer belongs to. A family is data: one more is one
more entry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hubkit.errors import SourceError


@dataclass(frozen=True, slots=True)
class Family:
    """The printed form of a conversation.

    `user` and `assistant` are what stands before a turn of that speaker, `user_end` and
    `assistant_end` close it (the end belongs to the turn: the model learns to write it), `gap`
    stands between turns. ``{system}`` in `system` is where the system text goes: a turn of its own,
    or, with `fold_system`, in front of the first user turn's text (for bases whose own template
    knows no system role). `bos` opens the text. `added` are the tokens that tell a tokenizer of
    this family from others."""

    name: str
    user: str
    assistant: str
    user_end: str
    assistant_end: str
    system: str
    gap: str = ""
    bos: str = ""
    fold_system: bool = False
    added: tuple[str, ...] = ()

    def header(self, speaker: Literal["user", "assistant"]) -> str:
        """What is printed before a turn of `speaker`."""
        return self.user if speaker == "user" else self.assistant

    def end(self, speaker: Literal["user", "assistant"]) -> str:
        """What closes a turn of `speaker`."""
        return self.user_end if speaker == "user" else self.assistant_end


CHATML = Family(
    name="chatml",
    user="<|im_start|>user\n",
    assistant="<|im_start|>assistant\n",
    user_end="<|im_end|>",
    assistant_end="<|im_end|>",
    system="<|im_start|>system\n{system}<|im_end|>\n",
    gap="\n",
    added=("<|im_start|>", "<|im_end|>"),
)
LLAMA3 = Family(
    name="llama-3",
    user="<|start_header_id|>user<|end_header_id|>\n\n",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
    user_end="<|eot_id|>",
    assistant_end="<|eot_id|>",
    system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
    bos="<|begin_of_text|>",
    added=("<|start_header_id|>", "<|eot_id|>"),
)
GEMMA = Family(
    name="gemma",
    user="<start_of_turn>user\n",
    assistant="<start_of_turn>model\n",
    user_end="<end_of_turn>",
    assistant_end="<end_of_turn>",
    system="{system}\n\n",
    gap="\n",
    bos="<bos>",
    fold_system=True,
    added=("<start_of_turn>", "<end_of_turn>"),
)
# [INST] and [/INST] are control tokens here, so a user's turn has an end that any server can stop
# on.
MISTRAL = Family(
    name="mistral",
    user="[INST]",
    assistant="",
    user_end="[/INST]",
    assistant_end="</s>",
    system="{system}\n\n",
    bos="<s>",
    fold_system=True,
    added=("[INST]", "[/INST]"),
)
# Bases without a chat template: plain speaker labels, each turn between the tokenizer's own <s> and
# </s>, after the released code of arXiv 2308.11534 (source/utils.py). The space after a label is
# not printed: it would be glued to the special token differently by different tokenizers.
RAW = Family(
    name="raw",
    user="Human: <s>",
    assistant="Assistant: <s>",
    user_end="</s>",
    assistant_end="</s>",
    system="{system}\n\n",
    added=("<s>", "</s>"),
)
FAMILIES: dict[str, Family] = {f.name: f for f in (CHATML, LLAMA3, GEMMA, MISTRAL, RAW)}


def family_of(base_dir: Path) -> Family:
    """The family of the tokenizer in `base_dir`, told by its special tokens (never by the model's
    name).

    Raises `SourceError` when the folder holds no tokenizer, or one of no known family.
    """
    vocabulary = _special_tokens(base_dir)
    for family in FAMILIES.values():
        if all(token in vocabulary for token in family.added):
            return family
    raise SourceError(
        f"the tokenizer in {base_dir} has the special tokens {', '.join(sorted(vocabulary)[:8]) or 'none'}: that is "
        f"none of the families {', '.join(FAMILIES)}; add one to hubkit/chat_templates/families.py"
    )


def _special_tokens(base_dir: Path) -> set[str]:
    """Every special token that `tokenizer.json`, `tokenizer_config.json` or
    `special_tokens_map.json` declares.
    """
    found: set[str] = set()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        data = _read_json(base_dir / name)
        entries = list(data.get("added_tokens") or []) + list(
            (data.get("added_tokens_decoder") or {}).values()
        )
        found.update(
            entry["content"]
            for entry in entries
            if isinstance(entry, dict) and entry.get("content")
        )
        for key, value in data.items():
            if key.endswith("_token"):
                found.add(value["content"] if isinstance(value, dict) else str(value))
    if not found:
        raise SourceError(
            f"{base_dir} holds no tokenizer (tokenizer.json); is it a snapshot of a model repo?"
        )
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read as JSON ({type(error).__name__}); fetch the model again"
        ) from None
    return data if isinstance(data, dict) else {}
