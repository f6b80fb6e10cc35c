"""An adapter's ``adapter_config.json``, checked before PEFT acts on it: a LoRA, whose patterns of
module names end, and which brings in nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hubkit.untrusted import JsonObject, object_in, parse_json, printable

NAME = "adapter_config.json"
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "target_parameters")
_PATTERNS_BY_KEY = ("rank_pattern", "alpha_pattern")
_MAX_CHARS = 2000
_MAX_REPEATS = 4  # in one pattern: each of them multiplies the steps by a name's length
_GROUP_REPEATED = re.compile(r"\)\s*[*+{?]")
_REPEAT = re.compile(r"[*+{]")
_ABSENT = ("megatron_config", "layer_replication", "arrow_config")
"""They import a module by name, copy layers as often as they say, or need more adapters."""
_MAX_HEADER_BYTES = 100 << 20


def checked_lora(folder: Path) -> JsonObject:
    """The configuration of the LoRA adapter in `folder`.

    Raises:
        ValueError: It cannot be read, is of another kind than LoRA (some load further adapters, by
            any path), holds a pattern that may never end, brings in a module, or is of a higher
            rank than its weights, for which room would be made.
    """
    try:
        config = parse_json((folder / NAME).read_bytes())
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
    if not isinstance(config, dict):
        raise ValueError("it is no object")
    if config.get("peft_type") != "LORA":
        kind = printable(str(config.get("peft_type")))[:40]
        raise ValueError(f"its peft_type is {kind!r}, where only LORA is loaded; merge the adapter")
    for key, pattern in _patterns(config):
        if not _ends(pattern):
            raise ValueError(
                f"{key} holds the pattern {printable(pattern)[:80]!r}, which may take for ever; "
                "list the modules' names"
            )
    for key in _ABSENT:
        if config.get(key):
            raise ValueError(f"{key} is set, which is not supported; merge the adapter")
    largest_rank = _largest_rank(folder)
    for rank in (config.get("r"), *object_in(config, "rank_pattern").values()):
        if not isinstance(rank, int) or not 0 < rank <= largest_rank:
            rank_text = printable(str(rank))[:40]
            raise ValueError(
                f"it has a rank of {rank_text}, and its weights one of {largest_rank} at most"
            )
    return config


def _patterns(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Every text that PEFT uses as a regular expression, and the key that it is under."""
    patterns = [(key, config[key]) for key in _PATTERNS if isinstance(config.get(key), str)]
    for key in _PATTERNS:
        if isinstance(config.get(key), list):
            patterns += [(key, text) for text in config[key] if isinstance(text, str)]
    for key in _PATTERNS_BY_KEY:
        if isinstance(config.get(key), dict):
            patterns += [(key, text) for text in config[key]]
    return patterns


def _ends(pattern: str) -> bool:
    """Whether a regular expression is done with any module's name soon."""
    return (
        len(pattern) <= _MAX_CHARS
        and len(_REPEAT.findall(pattern)) <= _MAX_REPEATS
        and not _GROUP_REPEATED.search(pattern)
    )


def _largest_rank(folder: Path) -> int:
    """The highest rank of the weights, by their header. Raises `ValueError`."""
    ranks = [1]
    files = sorted(folder.glob("adapter_model*.safetensors"))
    if not files:
        raise ValueError(
            "adapter_model.safetensors is missing from its folder; push the adapter again"
        )
    for path in files:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(size)) if size <= _MAX_HEADER_BYTES else None
        if not isinstance(header, dict):
            raise ValueError(f"{path.name} beside it has no header; push the adapter again")
        for name, tensor in header.items():
            shape = tensor.get("shape") if isinstance(tensor, dict) else None
            if isinstance(shape, list) and ("lora_A" in name or "lora_embedding_A" in name):
                ranks += [size for size in shape[:1] if isinstance(size, int)]
    return max(ranks)
