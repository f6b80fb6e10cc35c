"""What a training run says about itself: a dataclass, its JSON, and its loss as a picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hubkit.conversation import Seat
from hubkit.untrusted import JsonObject

CURVE = (
    "step",
    "epoch",
    "loss",
    "eval_loss",
    "learning_rate",
    "grad_norm",
    "rewards/accuracies",
    "rewards/margins",
)


@dataclass
class TrainReport:
    """One finished SFT run.

    Tokens are per epoch, after truncation. `tokens_per_second` is over the training loop of the
    last process; `seconds` is over all of the run, what killed processes had reached at their last
    checkpoint included."""

    base: str
    base_revision: str | None
    seat: Seat
    steps: int
    epochs: float
    rows: JsonObject
    tokens: int
    loss_tokens: int
    seconds: float
    tokens_per_second: float
    final_loss: float | None
    loss_curve: list[dict[str, float]]
    trainable_parameters: int
    parameters: int
    resumed_from_step: int
    device: str
    seed: int
    template_sha256: str
    fingerprint: str
    system: str | None = None
    processes: int = 1
    kind: str = "adapter"
    notes: list[str] = field(default_factory=list)
    sft: JsonObject = field(default_factory=dict)
    lora: JsonObject | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        """Plain data, as in ``training_report.json``."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write ``training_report.json`` and ``loss.png`` into `folder`."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (folder / "training_report.json").write_text(text + "\n", "utf-8")
        draw_loss(self.loss_curve, folder / "loss.png", title=f"{self.seat} seat on {self.base}")


def draw_loss(curve: list[dict[str, float]], path: Path, *, title: str) -> None:
    """The loss (nats per loss-bearing token) over steps as a PNG; evaluation losses, where there
    are any, as dots.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for key, style, name in (("loss", "-", "training"), ("eval_loss", "o--", "held out")):
        points = [(entry["step"], entry[key]) for entry in curve if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name, markersize=4)
    axes.set(title=title, xlabel="step", ylabel="loss per token (nats)")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    from importlib.metadata import version

    return {
        name: version(name)
        for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
    }


def outcome(trainer: Any) -> dict[str, Any]:
    """What a finished trainer knows: steps, losses, speed, sizes, device."""
    curve = [
        {k: float(e[k]) for k in CURVE if k in e}
        for e in trainer.state.log_history
        if "loss" in e or "eval_loss" in e
    ]
    summary: dict[str, Any] = next(
        (e for e in reversed(trainer.state.log_history) if "train_runtime" in e), {}
    )
    losses = [e["loss"] for e in curve if "loss" in e]
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "steps": trainer.state.global_step,
        "epochs": round(float(trainer.state.epoch or 0), 4),
        "final_loss": sum(losses[-5:]) / len(losses[-5:]) if losses else None,
        "loss_curve": curve,
        "tokens_per_second": _everywhere(trainer) / max(summary.get("train_runtime", 0.0), 1e-9),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": _device(trainer.args.device),
    }


def _everywhere(trainer: Any) -> int:
    """Tokens trained on in all processes together."""
    import torch

    tokens = torch.tensor(trainer.tokens_trained, device=trainer.args.device)
    return int(trainer.accelerator.reduce(tokens, reduction="sum"))


def _device(device: Any) -> str:
    import os

    import torch

    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    return f"{device.type}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
