"""How much an asker learns from how much data: three sizes, held out, with intervals. Writes JSON and a picture.

    python tests/bench/learning_curve.py --base FOLDER --train train.parquet --test test.parquet

`--base` is a snapshot of the recipe's base; the parquet files are the splits of a corpus that `hubkit corpus` made.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from hubkit import evals, recipe
from hubkit.train import train

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipe", default="parrot")
    options.add_argument("--seat", choices=["asker", "chat"], default="asker")
    options.add_argument("--base", type=Path, required=True)
    options.add_argument("--train", type=Path, nargs="+", required=True)
    options.add_argument("--test", type=Path, nargs="+", required=True)
    options.add_argument("--tokens", type=int, nargs="+", default=[3500, 7000, 14000])
    chosen = options.parse_args()
    points = curve(chosen)
    RESULTS.mkdir(exist_ok=True)
    name = f"learning_curve_{chosen.recipe}_{chosen.seat}"
    (RESULTS / f"{name}.json").write_text(json.dumps(points, indent=1) + "\n", "utf-8")
    draw(points, RESULTS / f"{name}.png")
    print(json.dumps(points, indent=1))


def curve(chosen: argparse.Namespace) -> list[dict]:
    """One point per size; the first is the base itself, in the same seat."""
    made = recipe.load(chosen.recipe, profiles=["laptop"])
    block = getattr(made, chosen.seat)

    def score(folder: Path | None) -> evals.HeldOut:
        return evals.heldout_loss(made.eval, chosen.base, folder, chosen.test, seat=block.seat, system=block.system)

    base = score(None)
    points = [{"tokens": 0, "loss_tokens": 0, "rows": 0, "loss": base.loss, "perplexity": base.perplexity}]
    for tokens in chosen.tokens:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            sized = block.model_copy(update={"max_tokens": tokens})
            report = train(
                sized,
                chosen.train,
                chosen.base,
                folder / "out",
                base_repo_id=block.base,
                seed=made.seed,
                work=folder / "work",
            )
            found = score(folder / "out")
        against = evals.compare(found, base, resamples=made.eval.resamples, confidence=made.eval.confidence)
        points.append(
            {
                "tokens": report.tokens,
                "loss_tokens": report.loss_tokens,
                "rows": report.rows["rows_used"],
                "loss": found.loss,
                "perplexity": found.perplexity,
                "against_base": against.to_dict(),
            }
        )
    return points


def draw(points: list[dict], path: Path) -> None:
    """Loss over loss-bearing tokens, the interval of the difference drawn round each point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    base = points[0]["loss"]
    x, y = [p["loss_tokens"] for p in points], [p["loss"] for p in points]
    spread = [(p.get("against_base") or {"low": 0.0, "high": 0.0}) for p in points]
    axes.plot(x, y, "o-")
    axes.fill_between(x, [base + s["low"] for s in spread], [base + s["high"] for s in spread], alpha=0.2)
    axes.set(xlabel="loss-bearing tokens trained on", ylabel="held-out loss per token (nats)")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
