"""What training takes, from sizes alone: operations, hours at a device's peak, memory per device by
part.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

GIB = 2**30
# Dense bf16 tensor-core peaks in TFLOP/s, from the vendors' data sheets; by a part of the device's
# name.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40": 181.0,
    "A10": 125.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
}
_EXPECTED_UTILISATION = 0.35
_EXPECTED_UTILISATION_CPU = 0.7  # of what a large float32 product reaches there

Reference = Literal["adapter", "base", "model"]


@dataclass(frozen=True)
class Size:
    """A model to be trained: `total` parameters, `trained` ones, its text `config`; whether it
    stands below an `adapter`, in how many `bits` (None: as it is trained). A `reference` is what
    preferences are held against: a frozen copy of the adapter, the base with the adapter off, or a
    whole second model."""

    total: int
    trained: int
    config: Any
    adapter: bool
    four_bits: bool = False
    reference: Reference | None = None

    def flops_per_token(self, *, recompute: bool) -> float:
        """Operations per trained token; with a reference, its forward pass too."""
        return flops_per_token(
            self.total, self.trained, recompute=recompute
        ) + 2 * self.total * bool(self.reference)


def duration(
    config: Any, amounts: dict[str, Any], batch: int, flops: float, device: str, processes: int
) -> dict[str, Any]:
    """Steps, epochs, operations and hours, as far as they can be known."""
    peak = peak_tflops(device)
    share = _EXPECTED_UTILISATION_CPU if device == "cpu" else _EXPECTED_UTILISATION
    device_facts: dict[str, Any] = {"peak_tflops": peak, "utilisation": share}
    if amounts["rows"] is None:
        return {**device_facts, "steps": None, "epochs": None, "flops": None, "hours": None}
    packed = getattr(config, "packing", False) and amounts["tokens"] is not None
    units = math.ceil(amounts["tokens"] / config.max_length) if packed else amounts["rows"]
    steps = (
        config.max_steps
        if config.max_steps > 0
        else math.ceil(units / batch) * math.ceil(config.num_train_epochs)
    )
    epochs = steps * batch / max(units, 1) if config.max_steps > 0 else config.num_train_epochs
    total = None if amounts["tokens"] is None else flops * amounts["tokens"] * epochs
    hours = total / (peak * 1e12 * processes * share) / 3600 if peak and total else None
    return {
        **device_facts,
        "steps": steps,
        "epochs": round(epochs, 3),
        "flops": total,
        "hours": hours,
    }


@functools.cache
def peak_tflops(device: str) -> float | None:
    """A device's peak: a GPU's from its data sheet, this processor's from a product that takes a
    moment, once.
    """
    if device != "cpu":
        return next((value for part, value in PEAK_TFLOPS.items() if part in device), None)
    import torch

    square = torch.ones(1024, 1024)
    torch.mm(square, square)
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(square, square)
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best / 1e12


def flops_per_token(parameters: int, trainable: int, *, recompute: bool) -> float:
    """Floating-point operations per trained token, attention's own products left out (below 10 % up
    to 4,096 tokens).

    Two per weight forward, two backward for the gradient to the input, two for the gradient to a
    trained weight (Kaplan et al., arXiv 2001.08361, section 2.1); `recompute` adds a second
    forward."""
    return (4 + 2 * recompute) * parameters + 2 * trainable


def memory_gib(
    size: Size, config: Any, sequences: int, sharded: int, *, gpu: bool
) -> dict[str, float]:
    """GiB per device by part, and their sum, with everything of a weight over `sharded` devices.

    Weights: 4 bytes (float32), 2 below an adapter on a GPU, 0.5 in 4 bits. Gradients 4 and Adam's
    two moments 8 bytes per trained weight. A reference: 4 bytes per weight of the adapter's copy,
    or of a second model. Activations of `sequences` rows at a time, per layer and token: 34 bytes
    times the hidden size at 16 bit, without attention's scores, which no current kernel stores
    (Korthikanti et al., arXiv 2205.05198, section 4); with recomputation 2 bytes per layer plus one
    layer in full."""
    text, trained = size.config, size.trained
    bytes_each = 0.5 if size.four_bits else 2 if size.adapter and gpu else 4
    tokens = sequences * (config.max_length or text.max_position_embeddings)
    half = 1 if gpu else 2
    layer = 34 * text.hidden_size * tokens * half
    layers = text.num_hidden_layers
    activation_bytes = (
        2 * text.hidden_size * tokens * half * layers + layer
        if config.gradient_checkpointing
        else layer * layers
    )
    head = (
        4 * 2 * min(tokens, 4096) * text.vocab_size
    )  # logits and their gradient, a slice of positions at a time
    parts = {
        "weights": bytes_each * (size.total - trained) / sharded + 4 * trained / sharded,
        "gradients": 4 * trained / sharded,
        "optimizer": 8 * trained / sharded,
        "reference": 4
        * {"adapter": trained, "model": size.total}.get(size.reference or "", 0)
        / sharded,
        "activations": float(activation_bytes),
        "head": float(head),
    }
    amounts = {name: round(value / GIB, 3) for name, value in parts.items()}
    return {**amounts, "total": round(sum(parts.values()) / GIB, 3)}
