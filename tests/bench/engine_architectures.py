"""``python tests/bench/engine_architectures.py [ARCHITECTURE…]``: the embedded engine's speed in
dialogues, an architecture a row.

Random weights of some 50 million parameters; 8 dialogues in flight, of 3 turns each. The first
prompt has 128 tokens; each later one is the prompt before it, the model's own answer and 32 fixed
tokens of the other side. Every answer has 48 tokens: the model cannot end one (`endless`), and
every length is asserted. The engine that `hubkit serve` would take and transformers' own `generate`
take turns in every round. The engine gets each dialogue's next prompt as soon as its answer is
there, as a rollout sends it; `generate` gets the prompts of a turn in one batch, as a
script does, in float32 and, where the processor multiplies faster in it, in bfloat16. Writes
tests/bench/results/engine_architectures.json.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import functools
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "bench")]

import figures  # noqa: E402
from support.tiny_architectures import ARCHITECTURES, tiny_model  # noqa: E402

from hubkit.openmp import spin_briefly  # noqa: E402

IN_FLIGHT, TURNS, CONTEXT = 8, 3, 512
PROMPT_TOKENS, ADDED_TOKENS, NEW_TOKENS = 128, 32, 48
END, GGUF = 2, "base.gguf"
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
    if "n_embd" in tiny:  # under both names: which one counts depends on their order
        size = {**_SIZE, "n_embd": 512, "n_layer": 8, "n_head": 8}
    if "intermediate_size" in tiny:  # one that is always four times as wide
        size["intermediate_size"] = 4 * size["hidden_size"]
    return size


@dataclass(frozen=True, slots=True)
class Spoken:
    """What the dialogues of one round took."""

    seconds: float
    reused_tokens: int = 0  # of all prompts, taken from the engine's cache

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of wall time, prompts included."""
        return IN_FLIGHT * TURNS * NEW_TOKENS / self.seconds


def words(dialogue: int, turn: int, round_: int) -> list[int]:
    """What the other side says in a turn: other tokens in every dialogue, turn and round."""
    count = ADDED_TOKENS if turn else PROMPT_TOKENS
    step, first = 1 + dialogue + IN_FLIGHT * turn, 7 * round_ + 50 * turn
    return [20 + (i * step + first) % 400 for i in range(count)]


def prompt_tokens(turn: int) -> int:
    """How long a prompt is in `turn`."""
    return PROMPT_TOKENS + turn * (NEW_TOKENS + ADDED_TOKENS)


def measured(architecture: str, folder: Path, rounds: int) -> dict[str, Any]:
    """The row of `architecture`."""
    import torch

    from hubkit.local_engine.conversion import model_to_gguf
    from hubkit.local_engine.engine import UnsupportedModelError
    from hubkit.local_engine.engine_choice import engine_for
    from hubkit.training.config import bf16_is_faster

    model = endless(tiny_model(architecture, folder / "base", **size_of(architecture)))
    model.save_pretrained(folder / "base")
    choice = engine_for(folder / "base", context=CONTEXT, cache_dir=CONVERTERS)
    chosen, reason = choice.engine, choice.reason
    if chosen == "llamacpp":
        try:
            model_to_gguf(folder / "base", folder / GGUF, dtype="q8_0", context=CONTEXT,
                          cache_dir=CONVERTERS)  # fmt: skip
        except UnsupportedModelError as error:
            chosen, reason = "transformers", str(error).replace(str(folder), "the folder")
    models = {"generate": model}
    if bf16_is_faster():
        models["generate_bfloat16"] = copy.deepcopy(model).to(torch.bfloat16)
    spoken: dict[str, list[Spoken]] = {name: [] for name in (chosen, *models)}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for round_ in range(rounds + 1):  # the first warms up
            results = {chosen: pool.apply(by_engine, (chosen, str(folder), round_))}
            results |= {name: by_generate(each, round_) for name, each in models.items()}
            for name, result in results.items():
                spoken[name] += [result] if round_ else []
    speeds = {name: [result.tokens_per_s for result in rounds_of]
              for name, rounds_of in spoken.items()}  # fmt: skip
    best = [max(at) for at in zip(*[speeds[name] for name in models], strict=True)]
    row: dict[str, Any] = {
        "parameters": sum(values.numel() for values in model.parameters()),
        "engine": chosen,
        "reason": reason,
        "prompt_tokens": IN_FLIGHT * sum(map(prompt_tokens, range(TURNS))),
        **{f"{name}_tokens_per_s": figures.spread(values, 1) for name, values in speeds.items()},
    }
    over = (a / b for a, b in zip(speeds[chosen], best, strict=True))
    row[f"{chosen}_over_generate"] = figures.spread(over, 2)
    row[f"{chosen}_reused_prompt_tokens"] = min(one.reused_tokens for one in spoken[chosen])
    row["load"] = round(os.getloadavg()[0], 1)
    return row


def endless(model: Any) -> Any:
    """`model` without a way to end: token 2 has the logit 0, below the most likely of 49152."""
    head = model.get_output_embeddings()
    head.weight.data[END] = 0
    if getattr(head, "bias", None) is not None:
        head.bias.data[END] = 0
    return model


def by_generate(model: Any, round_: int) -> Spoken:
    """The dialogues by transformers' `generate`, each turn in one batch."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    ids = torch.zeros((IN_FLIGHT, 0), dtype=torch.long)
    began = time.perf_counter()
    for turn in range(TURNS):
        added = torch.tensor([words(dialogue, turn, round_) for dialogue in range(IN_FLIGHT)])
        prompts = torch.cat([ids, added], dim=1)
        assert prompts.shape[1] == prompt_tokens(turn)
        with torch.inference_mode():
            ids = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False,
                                 max_new_tokens=NEW_TOKENS)  # fmt: skip
        answers = ids[:, prompts.shape[1] :]
        assert answers.shape == (IN_FLIGHT, NEW_TOKENS) and not (answers == END).any()
    return Spoken(time.perf_counter() - began)


@functools.cache
def engine(name: str, folder: str) -> Any:
    """One of the embedded engines, loaded once in a process of its own."""
    spin_briefly()  # as the command line does
    from hubkit.local_engine.llamacpp import LlamaCppEngine
    from hubkit.local_engine.torch_engine import TransformersEngine

    if name == "transformers":
        base = Path(folder) / "base"
        return TransformersEngine(base, {}, parallel=IN_FLIGHT, context=CONTEXT)
    return LlamaCppEngine(Path(folder) / GGUF, {}, parallel=IN_FLIGHT, context=CONTEXT)


def by_engine(name: str, folder: str, round_: int) -> Spoken:
    """The dialogues by an embedded engine, each going on as soon as its answer is there."""
    from hubkit.local_engine.engine import Job, Started, Step

    loaded = engine(name, folder)

    async def one(dialogue: int) -> int:
        ids: list[int] = []
        reused = 0
        for turn in range(TURNS):
            ids += words(dialogue, turn, round_)
            assert len(ids) == prompt_tokens(turn)
            job = Job(ids, NEW_TOKENS, dialogue=f"{round_}-{dialogue}")
            events = [event async for event in loaded.generate(job)]
            reused += sum(event.cached_tokens for event in events if isinstance(event, Started))
            written = [event.token_id for event in events if isinstance(event, Step)]
            assert len(written) == NEW_TOKENS, f"{name} wrote {len(written)} tokens"
            ids = ids + written
        return reused

    async def everything() -> Spoken:
        began = time.perf_counter()
        reused = await asyncio.gather(*[one(dialogue) for dialogue in range(IN_FLIGHT)])
        return Spoken(time.perf_counter() - began, sum(reused))

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
        f"{IN_FLIGHT} dialogues in flight, of {TURNS} turns each: the first prompt has "
        f"{PROMPT_TOKENS} tokens, each later one is the prompt before it, the model's own answer "
        f"and {ADDED_TOKENS} tokens of the other side; every answer has {NEW_TOKENS} tokens. The "
        "embedded engine computes a dialogue's beginning once and goes on with it as soon as its "
        "answer is there; transformers' `generate` gets the prompts of each turn, of the same "
        "lengths, in one batch, and computes them whole. Greedy, in the same run, without a GPU, "
        "random weights of some 50 million parameters, which llama.cpp keeps as q8_0; tokens/s are "
        "output tokens by the time of all turns, prompts included.",
        "python tests/bench/engine_architectures.py",
        {"rows": {name: rows[name] for name in ARCHITECTURES if name in rows}},
    )


if __name__ == "__main__":
    main()
