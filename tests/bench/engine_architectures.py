"""``python tests/bench/engine_architectures.py [ARCHITECTURE…]``: the embedded engine's speed, an
architecture a row.

Random weights of some 50 million parameters; 8 sequences in flight, each with a prompt of its own.
llama.cpp, this package's transformers engine and transformers' own `generate` (one batch, float32)
take turns in every round on the same prompts. Writes tests/bench/results/engine_architectures.json.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "bench")]

import figures  # noqa: E402
from support.tiny_architectures import ARCHITECTURES, tiny_model  # noqa: E402

IN_FLIGHT, PROMPT_TOKENS, NEW_TOKENS, CONTEXT = 8, 128, 48, 512
ENGINES = ("llamacpp", "transformers")
CONVERTERS = Path(tempfile.gettempdir()) / f"hubkit-test-models-{os.getuid()}" / "gguf"
_SIZE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}
_SIZE |= {"num_attention_heads": 8}


def size_of(architecture: str) -> dict[str, Any]:
    """The medium size of `architecture`, on top of its tiny configuration."""
    tiny = ARCHITECTURES[architecture]
    size: dict[str, Any] = {**_SIZE, "num_key_value_heads": 4}
    if "num_key_value_heads" in tiny:  # one that has no fewer of them than heads
        size["num_key_value_heads"] = 8
    if "head_dim" in tiny:
        size["head_dim"] = 64
    if "query_pre_attn_scalar" in tiny:
        size["query_pre_attn_scalar"] = 64
    if tiny.get("sliding_window"):
        size["sliding_window"] = CONTEXT
    if "moe_intermediate_size" in tiny:
        size["moe_intermediate_size"] = 352
    if "layer_types" in tiny:
        size["layer_types"] = tiny["layer_types"] * (size["num_hidden_layers"] // 2)
    if "n_embd" in tiny:
        size = {"n_embd": 512, "n_layer": 8, "n_head": 8}
    return size


def measured(architecture: str, folder: Path, rounds: int) -> dict[str, Any]:
    """The row of `architecture`: output tokens per second of wall time, prompts included."""
    from hubkit.local_engine.conversion import model_to_gguf
    from hubkit.local_engine.engine import UnsupportedModelError
    from hubkit.local_engine.engine_choice import engine_for

    model = tiny_model(architecture, folder / "base", **size_of(architecture))
    choice = engine_for(folder / "base", context=CONTEXT, cache_dir=CONVERTERS)
    chosen, reason = choice.engine, choice.reason
    if chosen == "llamacpp":
        gguf = folder / "base.gguf"
        try:
            model_to_gguf(folder / "base", gguf, dtype="q8_0", context=CONTEXT,
                          cache_dir=CONVERTERS)  # fmt: skip
        except UnsupportedModelError:
            chosen, reason = "transformers", "llama.cpp does not load what the conversion gives"
    names = [name for name in ENGINES if name == "transformers" or chosen == name]
    pools = {name: multiprocessing.get_context("spawn").Pool(1) for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in (*names, "generate")}
    for round_ in range(rounds + 1):  # the first warms up
        jobs = [
            [20 + (i * k + 7 * round_) % 400 for i in range(PROMPT_TOKENS)]
            for k in range(1, IN_FLIGHT + 1)
        ]
        found = {name: pool.apply(engine_speed, (name, str(folder), jobs))
                 for name, pool in pools.items()}  # fmt: skip
        found["generate"] = generate_speed(model, jobs)
        for name, speed in found.items():
            speeds[name] += [speed] if round_ else []
    for pool in pools.values():
        pool.terminate()
    row: dict[str, Any] = {
        "parameters": sum(values.numel() for values in model.parameters()),
        "engine": chosen,
        "reason": reason,
        **{f"{name}_tokens_per_s": figures.spread(found, 1) for name, found in speeds.items()},
    }
    for name in names:
        pairs = zip(speeds[name], speeds["generate"], strict=True)
        row[f"{name}_over_generate"] = figures.spread((a / b for a, b in pairs), 2)
    row["load"] = round(os.getloadavg()[0], 1)
    return row


def generate_speed(model: Any, prompts: list[list[int]]) -> float:
    """transformers' `generate` on one batch, every sequence of full length."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    ids = torch.tensor(prompts)
    options = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return len(prompts) * NEW_TOKENS / (time.perf_counter() - began)


@functools.cache
def engine(name: str, folder: str) -> Any:
    """One of the embedded engines, loaded once in a process of its own."""
    from hubkit.local_engine.conversion import model_to_gguf
    from hubkit.local_engine.llamacpp import LlamaCppEngine
    from hubkit.local_engine.torch_engine import TransformersEngine

    base, gguf = Path(folder) / "base", Path(folder) / "base.gguf"
    if name == "transformers":
        return TransformersEngine(base, {}, parallel=IN_FLIGHT, context=CONTEXT)
    model_to_gguf(base, gguf, dtype="q8_0", context=CONTEXT, cache_dir=CONVERTERS)
    return LlamaCppEngine(gguf, {}, parallel=IN_FLIGHT, context=CONTEXT)


def engine_speed(name: str, folder: str, prompts: list[list[int]]) -> float:
    """The same of an embedded engine; a sequence that ends early counts with what it wrote."""
    from hubkit.local_engine.engine import Job, Step

    loaded = engine(name, folder)

    async def one(ids: list[int]) -> int:
        steps = loaded.generate(Job(ids, NEW_TOKENS))
        return sum([isinstance(event, Step) async for event in steps])

    async def everything() -> float:
        began = time.perf_counter()
        counts = await asyncio.gather(*[one(ids) for ids in prompts])
        return sum(counts) / (time.perf_counter() - began)

    return asyncio.run(everything())


def main() -> None:
    """Write the table, one architecture after the other; those of earlier runs stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.architectures:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            row = measured(name, Path(folder), options.rounds)
        print(f"{time.monotonic() - started:.0f} s", name, row, flush=True)
        enter(name, row)


def enter(name: str, row: dict[str, Any]) -> None:
    """Put the row of `name` into the results file, in place of an earlier one."""
    earlier = figures.gather().get("engine_architectures", {}).get("rows", {})
    rows = {**earlier, name: row}
    figures.write(
        "engine_architectures",
        "The embedded engine beside transformers on the same prompts in the same run, 8 in flight, "
        "random weights of some 50 million parameters, without a GPU.",
        "python tests/bench/engine_architectures.py",
        {"rows": {name: rows[name] for name in ARCHITECTURES if name in rows}},
    )


if __name__ == "__main__":
    main()
