"""How likely a model finds what was really written: sums over the loss-bearing tokens of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubkit import chat_templates
from hubkit.training.loading import load_base, with_adapter


def load_model(base: Path, adapter: Path | None) -> Any:
    """The model to score, on the best device. An adapter is merged: the same function, without its
    extra products.
    """
    import torch

    whole = adapter is not None and not (adapter / "adapter_config.json").exists()
    model = load_base(adapter if adapter is not None and whole else base, adapter=True)
    if adapter is not None and not whole:
        model = with_adapter(model, adapter).merge_and_unload()
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def score(model: Any, encoded: chat_templates.Encoded) -> float:
    """Summed negative log-likelihood (nats) of the loss-bearing tokens."""
    return sum(token_losses(model, encoded))


def token_losses(model: Any, encoded: chat_templates.Encoded) -> list[float]:
    """The negative log-likelihood (nats) of each loss-bearing token; logits are made only where
    they are needed.
    """
    import torch
    from torch.nn.functional import cross_entropy

    ids = torch.tensor([encoded.input_ids], device=model.device)
    labels = torch.tensor(encoded.labels[1:], device=model.device)
    positions = (labels != chat_templates.IGNORE).nonzero()[:, 0]
    with torch.inference_mode():
        logits = model(input_ids=ids, logits_to_keep=positions, use_cache=False).logits[0]
    losses: list[float] = cross_entropy(
        logits.float(), labels[positions], reduction="none"
    ).tolist()
    return losses
