"""The same dialogues through different clients: ``python rollout_contenders.py NAME OPTIONS``
prints one JSON line.

Each contender drives `dialogues` dialogues of 8 requests (4 turns of each seat, every request
carrying the whole conversation so far) against the same addresses with 64 in flight, and says how
many seconds and how much processor time that took, to its result being where it keeps results.
Interpreter start and imports are not counted, for any of them: each drives `warm_up` dialogues
first."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REQUESTS = 8
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 64}


async def bare_dialogue(post: Any, url: str, number: int) -> list[dict[str, str]]:
    """One dialogue with nothing around it; `post(url, body)` gives the decoded answer."""
    said: list[dict[str, str]] = []
    for turn in range(REQUESTS):
        roles = ("assistant", "user") if turn % 2 == 0 else ("user", "assistant")
        seen = [{"role": roles[i % 2], "content": text["content"]} for i, text in enumerate(said)]
        messages = [{"role": "system", "content": "You are a person."}, *seen]
        answer = await post(
            f"{url}/v1/chat/completions",
            {"model": "tgi", "messages": messages, "seed": turn, **SAMPLING},
        )
        said.append(answer["choices"][0]["message"])
    return said


def bare(options: dict[str, Any], *, retry: bool = False) -> float:
    """aiohttp, 64 workers, nothing durable. With `retry`: what a careful person adds in ten
    lines.
    """
    import aiohttp

    async def go() -> float:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def once(url: str, body: dict[str, Any]) -> Any:
                async with session.post(url, json=body) as response:
                    response.raise_for_status()
                    return await response.json()

            async def stubborn(url: str, body: dict[str, Any]) -> Any:
                for attempt in range(20):
                    try:
                        return await once(url, body)
                    except aiohttp.ClientError:
                        await asyncio.sleep(min(0.25 * 2**attempt, 5))
                raise RuntimeError("gave up")

            numbers = iter(range(options["dialogues"]))

            async def worker() -> None:
                for number in numbers:
                    url = options["urls"][number % len(options["urls"])]
                    await bare_dialogue(stubborn if retry else once, url, number)

            started = time.perf_counter()
            await asyncio.gather(*[worker() for _ in range(options["in_flight"])])
            return time.perf_counter() - started

    return asyncio.run(go())


def hubkit(options: dict[str, Any]) -> float:
    """This project, with its journal; parquet shards are written within the time."""
    from hubkit.recipe import Rollout
    from hubkit.rollout import JournalSpec, Seats, run
    from hubkit.serving import ServedModel

    seat = {"repo": "x", "system": "You are a person.", "sampling": SAMPLING, "context": 1 << 20}
    block = Rollout.model_validate(
        {
            "mode": "free",
            "dialogues": options["dialogues"],
            "turns": {"value": REQUESTS // 2},
            "asker": seat,
            "chat": seat,
            "in_flight": options["in_flight"],
            "fsync": options.get("fsync", "turn"),
        }
    )
    with tempfile.TemporaryDirectory(dir=options["folder"]) as folder:
        report = run(
            block, [], Path(folder) / "out",
            Seats(*(ServedModel.of(seat, options["urls"]) for seat in (block.asker, block.chat))),
            JournalSpec(Path(folder) / "journal", 1),
        )  # fmt: skip
    assert report.end_reasons == {"target_turns": options["dialogues"]}, report
    return float(report.session["seconds"])


def datatrove(options: dict[str, Any], *, durable: bool) -> float:
    """datatrove's InferenceRunner against an endpoint, its request cache (SQLite) on or off."""
    from datatrove.data import Document
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter

    async def rollout(document: Document, generate: Any) -> list[str]:
        said: list[str] = []
        for turn in range(REQUESTS):
            roles = ("assistant", "user") if turn % 2 == 0 else ("user", "assistant")
            seen = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
            messages = [{"role": "system", "content": f"You are a person. {document.id}"}, *seen]
            result = await generate({"messages": messages, "seed": turn, **SAMPLING})
            said.append(result.text)
        return said

    with tempfile.TemporaryDirectory(dir=options["folder"]) as folder:
        config = InferenceConfig(
            server_type="endpoint", endpoint_url=options["urls"][0], model_name_or_path="tgi",
            max_concurrent_generations=options["in_flight"], rollouts_per_document=1,
        )  # fmt: skip
        writer = JsonlWriter(f"{folder}/out", "${rank}_${chunk_index}.jsonl", compression=None)
        runner = InferenceRunner(
            rollout_fn=rollout, config=config, output_writer=writer,
            records_per_chunk=options["dialogues"],
            checkpoints_local_dir=f"{folder}/checkpoints" if durable else None,
        )  # fmt: skip
        documents = [Document(text="x", id=str(i)) for i in range(options["dialogues"])]
        started = time.perf_counter()
        runner.run(iter(documents), rank=0, world_size=1)
        return time.perf_counter() - started


def distilabel(options: dict[str, Any]) -> float:
    """distilabel over as many requests. It has no dialogues of two models: each stands alone, in
    batches of 256.

    Its processes are started within the time, because nothing of it can be asked before.
    """
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    count = options["dialogues"] * REQUESTS
    with tempfile.TemporaryDirectory(dir=options["folder"]) as folder:
        settings = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 64}
        llm = OpenAILLM(
            model="tgi", base_url=f"{options['urls'][0]}/v1", api_key="none",
            generation_kwargs=settings
        )  # fmt: skip
        with Pipeline(name="bench", cache_dir=folder) as pipeline:
            load = LoadDataFromDicts(
                data=[{"instruction": f"question {i}"} for i in range(count)], batch_size=256
            )
            load >> TextGeneration(llm=llm, input_batch_size=256)
        started = time.perf_counter()
        done = pipeline.run()
        seconds = time.perf_counter() - started
        made = done["default"]["train"]["generation"]
        assert len(made) == count and all(made), f"{len(made)} of {count} answers"
        return seconds


CONTENDERS = {
    "bare aiohttp": bare,
    "bare aiohttp with retries": lambda options: bare(options, retry=True),
    "hubkit": hubkit,
    "hubkit, synced once a second": lambda options: hubkit({**options, "fsync": "interval"}),
    "datatrove": lambda options: datatrove(options, durable=False),
    "datatrove with its request cache": lambda options: datatrove(options, durable=True),
    "distilabel, single requests": distilabel,
}

if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    CONTENDERS[sys.argv[1]]({**given, "dialogues": given["warm_up"]})  # whatever it imports
    cpu = time.process_time()
    seconds = CONTENDERS[sys.argv[1]](given)
    cpu, requests = time.process_time() - cpu, given["dialogues"] * REQUESTS
    print(
        "\n" + json.dumps({"seconds": seconds, "requests_per_s": requests / seconds, "cpu_s": cpu})
    )
