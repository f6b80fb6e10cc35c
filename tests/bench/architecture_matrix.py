"""``python tests/bench/architecture_matrix.py [ARCHITECTURE…]``: the whole loop on tiny models.

Writes tests/bench/results/architectures.json: for each architecture whether LoRA trains, merges, is
served (by which engine), rolls out in both seats, is evaluated, is pushed and is loaded by stock
libraries from there; or what failed. Random weights: it shows what works, not how well."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "bench")]

import figures  # noqa: E402
from support.tiny_architectures import ARCHITECTURES, tiny_model  # noqa: E402
from support.tiny_models import write_rows  # noqa: E402

from hubkit import rollout as rollouts  # noqa: E402
from hubkit.conversation import Conversation  # noqa: E402
from hubkit.recipe import Rollout, Sampling, SeatConfig, Training, Turns  # noqa: E402

STEPS = (
    "train", "merge", "serve", "adapter_served", "rollout", "eval", "push", "stock_libraries",
)  # fmt: skip
ROWS: list[list[tuple[str, Any]]] = [
    [("user", f"How do I bake bread {i}?"), ("assistant", "Mix flour."), ("user", "And rye?"),
     ("assistant", "Less water.")]
    for i in range(4)
]  # fmt: skip
SFT = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
SFT |= {"max_length": 96, "warmup_steps": 0}
FUSED = {"Qwen3Moe", "Mixtral", "Olmoe"}
"""Mixtures whose experts are single parameters: LoRA on their attention."""
CONVERTERS = Path(tempfile.gettempdir()) / f"hubkit-test-models-{os.getuid()}" / "gguf"


class Loop:
    """The loop of one architecture in `folder`; `row` says what holds."""

    def __init__(self, architecture: str, folder: Path, hub: Any) -> None:
        self.architecture, self.folder, self.hub = architecture, folder, hub
        self.base, self.repo_id = folder / "base", f"matrix/{architecture.lower()}"
        self.row: dict[str, Any] = {"architecture": architecture}

    def run(self) -> dict[str, Any]:
        """Do each step; one that fails is noted with its reason, and ends the loop."""
        tiny_model(self.architecture, self.base, pad_token_id=0)  # a padding row is never trained
        self.data = write_rows(self.folder / "rows.parquet", ROWS)
        steps: list[Callable[[], Any]] = [self.train, self.serve, self.evaluate, self.push]
        for step in steps:
            try:
                step()
            except Exception as error:  # what fails is the row's news
                self.row["failed"] = f"{step.__name__}: {type(error).__name__}: {error}"[:400]
                break
        return {**dict.fromkeys(STEPS, False), **self.row}

    def train(self) -> None:
        """Both seats by LoRA, and one merged."""
        from hubkit.training import Base, train

        targets = (
            ["q_proj", "k_proj", "v_proj", "o_proj"] if self.architecture in FUSED else "all-linear"
        )
        lora = {"r": 4, "target_modules": targets}
        self.adapters: dict[str, Path] = {}
        for name, seat, merged in (
            ("asker", "user", False), ("chat", "assistant", False), ("merged", "user", True),
        ):  # fmt: skip
            block = Training.model_validate(
                {"base": self.repo_id, "seat": seat, "lora": lora, "sft": SFT}
                | {"merge_adapter": merged}
            )
            self.adapters[name] = out = self.folder / name / "out"
            work = self.folder / name / "work"
            report = train(
                block, [self.data], Base(self.base, self.repo_id), out, seed=1, work=work
            )
            assert report.steps == 2, report.steps
            self.row["merge" if merged else "train"] = True

    def serve(self) -> None:
        """Both adapters on one engine, which two dialogues are rolled out on."""
        from hubkit.serving import ServedModel
        from hubkit.serving.client import EngineSettings, start_engine

        loras = {name: str(self.adapters[name]) for name in ("asker", "chat")}
        with start_engine(
            str(self.base), loras, listen=[*loras, "base"], cache_dir=CONVERTERS,
            settings=EngineSettings(context=384, slots=4, threads=1, start_timeout_s=300),
        ) as engine:  # fmt: skip
            reason = engine.reason.replace(f"{self.folder}/", "")
            self.row |= {"serve": True, "engine": engine.name, "reason": reason}
            sampling = Sampling(max_tokens=8, temperature=1.0)
            seat = {"sampling": sampling, "context": 384}
            block = Rollout(
                dialogues=2,
                turns=Turns(value=2),
                in_flight=2,
                retries_per_turn=0,
                retry_on=[],
                asker=SeatConfig(repo="asker", system="You ask.", **seat),
                chat=SeatConfig(repo="chat", **seat),
            )
            openings = [
                Conversation(f"o{i}", [{"role": "user", "content": f"Bread {i}?"}], "test", {})
                for i in range(2)
            ]
            models = {name: ServedModel.at(engine.addresses[name]) for name in loras}
            report = rollouts.run(
                block, openings, self.folder / "dialogues", rollouts.Seats(**models),
                rollouts.JournalSpec(self.folder / "journal", 1),
            )  # fmt: skip
            self.row["adapter_served"] = True
            assert report.dialogues == 2 and report.generated_turns >= 2, report.end_reasons
            self.row["rollout"] = True

    def evaluate(self) -> None:
        """The asker's held-out loss."""
        from hubkit.evaluation.held_out_loss import Seating, heldout_loss
        from hubkit.recipe import Evals

        evals = Evals(conversations=2, max_tokens=96)
        loss = heldout_loss(
            evals, self.base, self.adapters["asker"], [self.data], Seating("user")
        ).loss
        assert loss > 0, loss
        self.row["eval"] = True

    def push(self) -> None:
        """To a Hub, and back by stock libraries alone."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        ref = self.hub.commit(f"{self.repo_id}-asker", self.adapters["asker"], "An adapter")
        merged = self.hub.commit(f"{self.repo_id}-merged", self.adapters["merged"], "A model")
        self.row["push"] = True
        adapter, whole = self.hub.snapshot(ref), self.hub.snapshot(merged)
        tokenizer = AutoTokenizer.from_pretrained(adapter)
        turns = [{"role": "user", "content": "Bread?"}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        below = AutoModelForCausalLM.from_pretrained(self.base).eval()
        with torch.no_grad():
            by_adapter = PeftModel.from_pretrained(below, str(adapter)).eval()(ids).logits
            by_merged = AutoModelForCausalLM.from_pretrained(whole).eval()(ids).logits
        difference = (by_adapter - by_merged).abs().max() / by_adapter.abs().max()
        assert difference < 0.1, f"the merged model differs by {difference:.2f}"
        self.row["stock_libraries"] = True


def main() -> None:
    """Write the table, one architecture after the other; those of earlier runs stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", default=list(ARCHITECTURES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["HUBKIT_HOME"] = home
        from hubkit.hub import connect
        from hubkit.hub.embedded import stop

        hub = connect()
        try:
            for name in options.architectures:
                started = time.monotonic()
                with tempfile.TemporaryDirectory() as folder:
                    row = Loop(name, Path(folder), hub).run()
                print(f"{time.monotonic() - started:.0f} s", row, flush=True)
                enter(row)
        finally:
            stop()


def enter(row: dict[str, Any]) -> None:
    """Put `row` into the results file, in place of an earlier one of its architecture."""
    rows = figures.gather().get("architectures", {}).get("rows", [])
    others = [r for r in rows if r["architecture"] != row["architecture"]]
    rows = sorted([*others, row], key=lambda r: list(ARCHITECTURES).index(r["architecture"]))
    figures.write(
        "architectures",
        "The whole loop on tiny models with random weights, an architecture a row.",
        "python tests/bench/architecture_matrix.py",
        {
            "architectures": len(rows),
            "whole_loop": sum(all(r[step] for step in STEPS) for r in rows),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
