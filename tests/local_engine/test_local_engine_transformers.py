"""The transformers engine: sequences that join and leave, prefixes computed once, and sampling that
is every sequence's own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.tiny_architectures import tiny_model, with_adapter

from hubkit.local_engine.engine import Finish, Job, Sampling, Started, Step
from hubkit.local_engine.torch_engine import TransformersEngine
from hubkit.local_engine.torch_sampling import Draws, choose

PROMPTS = [[20 + (i * k) % 400 for i in range(1, 20 + 7 * k)] for k in range(1, 7)]


async def run(engine: TransformersEngine, job: Job) -> tuple[list[int], int]:
    """The generated ids, and how many prompt tokens came from the cache."""
    tokens, cached = [], -1
    async for event in engine.generate(job):
        if isinstance(event, Step):
            tokens.append(event.token_id)
        elif isinstance(event, Started):
            cached = event.cached_tokens
    return tokens, cached


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    import torch

    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
    return ids[len(prompt) :]


@pytest.mark.parametrize("architecture", ["Llama", "Gemma3Text", "GPT2", "Lfm2"])
def test_every_sequence_gets_what_it_would_get_alone(tmp_path: Path, architecture: str) -> None:
    model = tiny_model(architecture, tmp_path / "base")
    truth = [greedy(model, prompt, 4 + 3 * i) for i, prompt in enumerate(PROMPTS)]
    peft = with_adapter(model, tmp_path / "adapter")
    adapted = [greedy(peft, prompt, 5) for prompt in PROMPTS]
    engine = TransformersEngine(
        tmp_path / "base", {"a": tmp_path / "adapter"}, parallel=4, context=512
    )

    async def together() -> list[tuple[list[int], int]]:
        jobs = [Job(prompt, 4 + 3 * i) for i, prompt in enumerate(PROMPTS)]
        jobs += [Job(prompt, 5, adapter="a") for prompt in PROMPTS]
        return list(await asyncio.gather(*(run(engine, job) for job in jobs)))

    answers = asyncio.run(together())
    assert [tokens for tokens, _ in answers] == truth + adapted
    assert (engine.busy, engine.waiting) == (0, 0)
    engine.close()


def test_the_next_turn_computes_only_what_is_new(tmp_path: Path) -> None:
    model = tiny_model("Qwen3", tmp_path / "base")
    with_adapter(model, tmp_path / "adapter")
    engine = TransformersEngine(
        tmp_path / "base", {"a": tmp_path / "adapter"}, parallel=2, context=512
    )
    prompt = PROMPTS[2]

    async def turns() -> None:
        tokens, cached = await run(engine, Job(prompt, 6))
        assert cached == 0
        longer = [*prompt, *tokens, 30, 31, 32]
        again, cached = await run(engine, Job(longer, 6))
        assert cached == len(prompt) + len(tokens) - 1, "the last token was never computed"
        fresh = TransformersEngine(tmp_path / "base", {}, parallel=2, context=512)
        assert (await run(fresh, Job(longer, 6)))[0] == again
        fresh.close()
        assert (await run(engine, Job(longer, 6, adapter="a")))[1] == 0, "another adapter's"
        assert (await run(engine, Job(longer, 6)))[1] == len(longer) - 1, "one token is computed"

    asyncio.run(turns())
    engine.close()


def test_a_cancelled_sequence_leaves_the_batch(tmp_path: Path) -> None:
    tiny_model("Llama", tmp_path / "base")
    engine = TransformersEngine(tmp_path / "base", {}, parallel=2, context=512)

    async def cancel() -> None:
        events = engine.generate(Job(PROMPTS[0], 400))
        async for event in events:
            if isinstance(event, Step):
                break
        await events.aclose()
        assert len((await run(engine, Job(PROMPTS[1], 5)))[0]) <= 5

    asyncio.run(cancel())
    engine.close()  # returns once the step in progress is done
    assert engine.busy == 0


def test_a_failure_ends_its_own_sequences_and_no_other(tmp_path: Path) -> None:
    from hubkit.local_engine.engine import GenerationError

    tiny_model("Llama", tmp_path / "base")
    engine = TransformersEngine(tmp_path / "base", {}, parallel=4, context=512)

    async def fail() -> None:
        with pytest.raises(GenerationError, match="transformers failed"):
            await run(engine, Job([10**9], 5))
        assert (await run(engine, Job(PROMPTS[0], 3)))[0]

    asyncio.run(fail())
    engine.close()


def draw(sampling: Sampling, logits: Any, count: int = 600) -> Counter[int]:
    """How often each token is chosen, over as many rows of equal logits."""
    import torch

    rows = [Draws(sampling, 0, torch.Generator().manual_seed(i)) for i in range(count)]
    steps = choose(logits.repeat(count, 1), rows, [[0]] * count)
    return Counter(step.token_id for step in steps)


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(), {3}),
        (Sampling(do_sample=True, top_k=2), {3, 2}),
        (Sampling(do_sample=True, top_p=0.5), {3}),
        (Sampling(do_sample=True, top_p=0.7), {3, 2}),
        (Sampling(do_sample=True, top_k=3, top_p=0.99), {3, 2, 1}),
        (Sampling(do_sample=True, typical_p=0.2), {2}),
        (Sampling(do_sample=True), {0, 1, 2, 3}),
        (Sampling(do_sample=True, temperature=0.01), {3}),
    ],
    ids=str,
)
def test_filters_leave_what_they_say(sampling: Sampling, allowed: set[int]) -> None:
    import torch

    logits = torch.tensor([[0.05, 0.1, 0.25, 0.6]]).log()
    assert set(draw(sampling, logits)) == allowed


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    import torch

    chances = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    counts = draw(Sampling(do_sample=True), chances.log(), 4000)
    for token, chance in enumerate(chances[0].tolist()):
        assert abs(counts[token] / 4000 - chance) < 0.035  # 4.5 standard deviations


def test_mixed_rows_are_chosen_each_by_its_own_rule_and_seed() -> None:
    import torch

    torch.manual_seed(0)
    logits = torch.randn(5, 50)
    kinds = [
        Sampling(),
        Sampling(do_sample=True, seed=1),
        Sampling(repetition_penalty=1.5, frequency_penalty=0.7),
        Sampling(do_sample=True, top_p=0.8, seed=2),
        Sampling(do_sample=True, top_k=5, typical_p=0.9, seed=3),
    ]

    def rows() -> list[Draws]:
        return [Draws(k, i, torch.Generator().manual_seed(k.seed)) for i, k in enumerate(kinds)]

    prompts = [[1, 2, 2, 3]] * 5
    together = choose(logits, rows(), prompts)
    alone = [choose(logits[i : i + 1], [row], prompts[:1])[0] for i, row in enumerate(rows())]
    assert [step.token_id for step in together] == [step.token_id for step in alone]
    for i, step in enumerate(together):
        assert len(step.top) == i
        assert abs(step.logprob - float(logits[i].log_softmax(-1)[step.token_id])) < 1e-5
    expected = logits[2].clone()
    for token, count in Counter(prompts[0]).items():
        value = expected[token]
        expected[token] = (value * 1.5 if value < 0 else value / 1.5) - 0.7 * count
    assert together[2].token_id == int(expected.argmax())


def test_penalties_count_what_was_generated() -> None:
    import torch

    row = Draws(Sampling(frequency_penalty=2.0), 0, torch.Generator())
    logits = torch.tensor([[1.0, 0.9, 0.8]])
    chosen = [choose(logits, [row], [[]])[0].token_id for _ in range(3)]
    assert chosen == [0, 1, 2]


def test_finish_is_the_last_event(tmp_path: Path) -> None:
    tiny_model("Llama", tmp_path / "base")
    engine = TransformersEngine(tmp_path / "base", {}, parallel=1, context=512)

    async def events() -> list[Any]:
        return [event async for event in engine.generate(Job(PROMPTS[0], 1))]

    started, step, finish = asyncio.run(events())
    assert isinstance(started, Started) and isinstance(step, Step)
    assert finish == Finish("eos" if step.token_id == 2 else "length")
    engine.close()
