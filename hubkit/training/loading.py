"""A base model's folder → tokenizer and model, or one clear error."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from hubkit import chat_templates
from hubkit.adapter_config import NAME, checked_lora
from hubkit.conversation import Seat
from hubkit.errors import RecipeError, SourceError, refusing_remote_code
from hubkit.recipe import Preference, Reinforce
from hubkit.tokenization import load_tokenizer
from hubkit.training.config import lora_config, model_options
from hubkit.untrusted import parse_json


class ChatWeights:
    """The weights of a task that trains a chat model further: in `chat` an adapter of `base`, or a
    whole model."""

    base: Path
    chat: Path
    seat: Seat
    printed_as: str | None
    thinking: chat_templates.Thinking

    @property
    def is_adapter(self) -> bool:
        """Whether the chat model is one."""
        return (self.chat / "adapter_config.json").exists()

    @property
    def start(self) -> Path:
        """The weights below: the base of an adapter, or the whole chat model."""
        return self.base if self.is_adapter else self.chat

    @property
    def weights_id(self) -> str:
        """The sha256 (hex) of an adapter's weights, or the folder's name of a whole model."""
        weights = self.chat / "adapter_model.safetensors"
        if not weights.exists():
            return self.chat.name
        with weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def templates(self) -> chat_templates.SeatTemplates:
        """How the base prints conversations. A whole chat model publishes the template that it was
        trained with."""
        return chat_templates.for_base(self.start, template=self.printed_as, thinking=self.thinking)

    @cached_property
    def template(self) -> str:
        """The served template: what conversations are rendered with."""
        return self.templates.source(self.seat)

    @cached_property
    def tokenizer(self) -> Any:
        """The chat model's tokenizer, under `template`."""
        tokenizer = load_tokenizer(self.chat)
        tokenizer.chat_template = self.template
        require_pad_token(tokenizer)
        return tokenizer

    def trainable(self, block: Preference | Reinforce) -> tuple[Any, Any]:
        """The model to train as `block` says, and the LoRA that is to be laid over it, if any."""
        adapter = self.is_adapter or block.lora is not None
        model = load_base(self.start, adapter=adapter, options=model_options(block))
        if not self.is_adapter:
            return model, lora_config(block, model)
        model = with_adapter(model, self.chat, trainable=True)
        # else checkpoints ask a Hub for it
        model.peft_config["default"].base_model_name_or_path = str(self.start)
        return model, None


def require_pad_token(tokenizer: Any) -> None:
    """Give `tokenizer` a padding token where it has none: its end of text, or any added token.

    Padding carries neither attention nor loss, so any token will do."""
    if tokenizer.pad_token is not None:
        return
    tokens = [tokenizer.eos_token, tokenizer.unk_token, *tokenizer.get_added_vocab()]
    tokenizer.pad_token = next((token for token in tokens if token), None)
    if tokenizer.pad_token is None:
        raise SourceError(
            "the base's tokenizer has no special token at all, so rows cannot be padded to one "
            "length; add a pad_token to its tokenizer_config.json"
        )


def load_base(
    base: Path,
    *,
    adapter: bool,
    quantize: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The causal language model in `base`: float32 on a CPU and for full fine-tuning, bfloat16
    below a GPU's adapter.

    Args:
        base: Its folder.
        adapter: Whether only an adapter on it is trained.
        quantize: ``4bit``, or None.
        options: What else it is loaded with: ``attn_implementation``.

    Raises:
        SourceError: The folder holds no weights that transformers reads."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    half = adapter and torch.cuda.is_available()
    options = {"dtype": torch.bfloat16 if half else torch.float32, **(options or {})}
    if quantize:
        options["quantization_config"] = four_bits()
    try:
        with refusing_remote_code(str(base)):
            model = AutoModelForCausalLM.from_pretrained(
                base, use_safetensors=True, trust_remote_code=False, **options
            )
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{base} holds no model that transformers reads ({error}); fetch the model again"
        ) from None
    _name_experts(model.config.get_text_config())
    return model


def _name_experts(config: Any) -> None:
    """Let ``num_experts`` be read, as TRL's loss over routers does, where a family's configuration
    has another name for it.
    """
    for name in ("num_local_experts", "n_routed_experts"):
        if not hasattr(config, "num_experts") and hasattr(config, name):
            kind = type(config)
            kind.attribute_map = {**kind.attribute_map, "num_experts": name}


def with_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """`model` with the LoRA adapter in `folder`. Raises `SourceError` where it is not loaded."""
    from peft import PeftModel

    try:
        checked_lora(folder)
    except ValueError as error:
        raise SourceError(
            f"the adapter in {folder} is not loaded, for its {NAME}: {error}"
        ) from None
    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


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
    positions = context_of(base)
    if positions and max_length and max_length > positions:
        raise RecipeError(over_context(key, max_length, positions, name))


def context_of(base: Path) -> int | None:
    """The most tokens that the model in `base` can read; None where its config does not say."""
    try:
        config = parse_json((base / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None  # loading it says what is wrong with it
    positions = config.get("max_position_embeddings")
    return positions if isinstance(positions, int) else None


def over_context(key: str, max_length: int, context: int, name: str) -> str:
    """The sentence for rows that outgrow a model."""
    return f"{key} {max_length} is more than the {context} positions that {name} knows"
