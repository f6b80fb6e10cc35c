"""A base model's folder → tokenizer and model, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hubkit.errors import RecipeError, SourceError, refusing_remote_code


def load_tokenizer(base: Path) -> Any:
    """The tokenizer in `base`. Raises `SourceError` when there is none that can be read."""
    from transformers import AutoTokenizer

    try:
        with refusing_remote_code(str(base)):
            return AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{base} holds no tokenizer that transformers reads ({error}); fetch the model again"
        ) from None


def load_base(base: Path, *, adapter: bool, quantize: str | None = None) -> Any:
    """The causal language model in `base`: float32 on a CPU and for full fine-tuning, bfloat16
    below a GPU's adapter.

    Raises `SourceError` when the folder holds no weights that transformers reads.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    options: dict[str, Any] = {
        "dtype": torch.bfloat16 if adapter and torch.cuda.is_available() else torch.float32
    }
    if quantize:
        options["quantization_config"] = four_bits()
    try:
        with refusing_remote_code(str(base)):
            return AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{base} holds no model that transformers reads ({error}); fetch the model again"
        ) from None


def four_bits() -> Any:
    """QLoRA's own settings: NF4 with double quantisation, computing in bfloat16 (arXiv 2305.14314,
    section 3).
    """
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def require_context(key: str, base: Path, max_length: int | None, name: str) -> None:
    """Raise `RecipeError` where rows, whose most tokens the recipe's `key` says, outgrow what
    `base`, the model `name`, knows."""
    try:
        config = json.loads((base / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return  # loading it says what is wrong with it
    known = config.get("max_position_embeddings")
    if isinstance(known, int) and max_length and max_length > known:
        raise RecipeError(over_context(key, max_length, known, name))


def over_context(key: str, max_length: int, known: int, name: str) -> str:
    """The sentence for rows that outgrow a model."""
    return f"{key} {max_length} is more than the {known} positions that {name} knows"
