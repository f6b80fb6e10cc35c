"""How much a seat learns from how much data: three sizes, held out, with intervals.

    python tests/bench/learning_curve.py [--recipes parrot realm] [--seat asker] [--tokens 3500 7000
    14000]

Writes ``results/learning_curve.json`` and ``results/learning_curve.png``. Base and corpus come from
the configured Hub (made first where they are not there), with the laptop profile; or from `--base`,
`--train` and `--test`: a snapshot of the base, and the parquet files of a corpus."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from figures import RESULTS, write

from hubkit import evaluation, pipeline
from hubkit.hub import connect
from hubkit.pipeline.stage import WEIGHTS, parquet
from hubkit.recipe import Recipe, load
from hubkit.training import Base, train


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--recipes", nargs="+", default=["parrot", "realm"])
    options.add_argument("--seat", choices=["asker", "chat"], default="asker")
    options.add_argument("--tokens", type=int, nargs="+", default=[3500, 7000, 14000])
    options.add_argument(
        "--conversations", type=int, help="held-out conversations; the profile's number by default"
    )
    options.add_argument("--base", type=Path)
    options.add_argument("--train", type=Path, nargs="+")
    options.add_argument("--test", type=Path, nargs="+")
    chosen = options.parse_args()
    curves = {name: curve(name, chosen) for name in chosen.recipes}
    about = f"What the {chosen.seat} learns from how much data, on held-out conversations."
    named = {name: {f"{p['tokens']} tokens": p for p in points} for name, points in curves.items()}
    write(
        "learning_curve",
        about,
        "make bench-curve",
        {"seat": chosen.seat, "recipes": named},
        add=False,
    )
    draw(curves, RESULTS / "learning_curve.png")
    print(json.dumps(named, indent=1))


def curve(name: str, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """One point per size; the first is the base itself, in the same seat."""
    made = load(name, profiles=["laptop"], overrides=[f"eval.conversations={chosen.conversations}"]
                if chosen.conversations else [])  # fmt: skip
    block = getattr(made, chosen.seat)
    base_folder, rows, held_out = inputs(made, chosen)

    def score(folder: Path | None) -> evaluation.HeldOut:
        return evaluation.heldout_loss(
            made.eval, base_folder, folder, held_out, evaluation.Seating.of(block)
        )

    base = score(None)
    points = [point(base)]
    for tokens in chosen.tokens:
        with tempfile.TemporaryDirectory() as scratch:
            out, work = Path(scratch) / "out", Path(scratch) / "work"
            sized = block.model_copy(update={"max_tokens": tokens})
            report = train(
                sized, rows, Base(base_folder, block.base), out, seed=made.seed, work=work
            )
            found = score(out)
        against = evaluation.compare(
            found, base, resamples=made.eval.resamples, confidence=made.eval.confidence
        )
        points.append(
            {
                **point(found),
                "tokens": report.tokens,
                "loss_tokens": report.loss_tokens,
                "rows": report.rows["rows_used"],
                "seconds": report.seconds,
                "against_base": against.to_dict(),
            }
        )
    return points


def inputs(made: Recipe, chosen: argparse.Namespace) -> tuple[Path, list[Path], list[Path]]:
    """The base's folder, and the files of the training and the test split."""
    if chosen.base:
        return chosen.base, chosen.train, chosen.test
    hub = connect()
    (corpus,) = pipeline.run(made, hub, only="corpus")
    base = pipeline.require(hub, getattr(made, chosen.seat).base)
    folder = hub.snapshot(base, allow_patterns=WEIGHTS)
    return folder, parquet(hub, corpus.ref, "train"), parquet(hub, corpus.ref, "test")


def point(found: evaluation.HeldOut) -> dict[str, Any]:
    """A held-out loss as a point of the curve: nothing trained on yet."""
    held = {"conversations": len(found.ids), "held_out_tokens": sum(found.tokens)}
    return {
        "tokens": 0,
        "loss_tokens": 0,
        "rows": 0,
        "loss": found.loss,
        "perplexity": found.perplexity,
        **held,
    }


def draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Loss over loss-bearing tokens, the interval of the difference from the base drawn round each
    point.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, points in curves.items():
        base = points[0]["loss"]
        x, y = [p["loss_tokens"] for p in points], [p["loss"] for p in points]
        spread = [p.get("against_base") or {"low": 0.0, "high": 0.0} for p in points]
        axes.plot(x, y, "o-", label=name)
        axes.fill_between(
            x, [base + s["low"] for s in spread], [base + s["high"] for s in spread], alpha=0.2
        )
    axes.set(xlabel="loss-bearing tokens trained on", ylabel="held-out loss per token (nats)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
