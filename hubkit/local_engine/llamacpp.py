"""llama.cpp from the `xllamacpp` wheel, called in-process: one base model and its LoRA adapters in
one process.

Every parameter is sent with every request, because llama.cpp's server defaults (temperature 0.8,
top-k 40, min-p 0.05) are not TGI's. Four more things are set for a reason:

- `id_slot` explicitly: its own slot choice mixes dialogues, and with per-request adapters it finds
  no prefix at all;
- `cache_ram_mib` 0: its second-level prompt cache hands one adapter's keys and values to another;
- `cache_prompt` off whenever a slot changes adapter, so that nothing that another adapter computed
  can be read;
- `n_probs` 1: the only way to get token ids from this API, at no measurable cost.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hubkit.errors import EngineError
from hubkit.local_engine.engine import Event, Finish, GenerationError, Job, Sampling, Started, Step
from hubkit.local_engine.slots import Slot, SlotPool
from hubkit.openmp import spin_briefly
from hubkit.untrusted import JsonObject, count_in, number_in, object_in, objects_in, text_in

_SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "typ_p"]
_PREFILL_CHUNK = 128  # tokens between two looks at whether the request was cancelled
_IMPOSSIBLE_LOGPROB = -9999.0  # JSON has no -inf
_WHOLE_CONTEXT = 1 << 20  # penalties look at every token so far, as TGI's do
_SEED_RANGE = 0xFFFFFFFF  # llama.cpp's seeds have 32 bits, and the highest means "random"


class LlamaCppEngine:
    """Serves GGUF files. `adapters`: name → GGUF LoRA of the same base."""

    name = "llamacpp"

    def __init__(
        self,
        model: Path,
        adapters: Mapping[str, Path],
        *,
        parallel: int,
        context: int,
        threads: int | None = None,
    ) -> None:
        """Load the model; takes about half a second for 135M parameters. Raises `EngineError` when
        it does not load.
        """
        self.parallel, self.context = parallel, context
        self._adapter_ids = {name: i for i, name in enumerate(adapters)}
        self._slots = SlotPool(parallel, batch_tokens=_PREFILL_CHUNK)
        self._threads = ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="llamacpp")
        self._server = _load(
            model, list(adapters.values()), parallel, context, threads or os.cpu_count() or 1
        )

    @property
    def busy(self) -> int:
        """Sequences being computed."""
        return self._slots.busy

    @property
    def waiting(self) -> int:
        """Requests waiting for a slot."""
        return self._slots.waiting

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Yield `Started`, one `Step` per token, `Finish`. Raises `GenerationError`."""
        started = time.monotonic()
        slot = await self._slots.acquire(job)
        queued_s = time.monotonic() - started
        call = _Call(self._server, self._request(job, slot))
        finished = asyncio.create_task(self._finish(call, slot, job))
        try:
            async for event in call.events():
                if isinstance(event, Finish):
                    await asyncio.shield(
                        finished
                    )  # the slot is released before the caller sees the end
                if isinstance(event, Started):
                    self._slots.begun(slot)
                    event = Started(event.cached_tokens, queued_s)
                yield event
        finally:
            call.cancelled = True

    async def _finish(self, call: _Call, slot: Slot, job: Job) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, call.run)
        finally:
            self._slots.release(slot, job, call.generated, computed=call.computed)

    def close(self) -> None:
        """Free the model."""
        self._threads.shutdown(wait=True)
        del self._server

    def _request(self, job: Job, slot: Slot) -> JsonObject:
        return {
            "prompt": job.prompt_ids,
            "id_slot": slot.id,
            "cache_prompt": slot.adapter == job.adapter,
            "lora": [
                {"id": i, "scale": float(name == job.adapter)}
                for name, i in self._adapter_ids.items()
            ],
            "n_predict": job.max_new_tokens,
            "n_probs": max(1, job.top_n),
            "post_sampling_probs": False,
            "stream": True,
            "return_progress": True,
            **_sampling(job.sampling),
        }


def _sampling(sampling: Sampling) -> JsonObject:
    return {
        "samplers": _SAMPLERS,
        "temperature": sampling.temperature if sampling.do_sample else 0.0,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "typical_p": sampling.typical_p,
        "min_p": 0.0,
        "repeat_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": 0.0,
        "repeat_last_n": _WHOLE_CONTEXT,
        "seed": sampling.seed % _SEED_RANGE,
        **({"json_schema": sampling.grammar} if sampling.grammar is not None else {}),
    }


def _load(model: Path, adapters: list[Path], parallel: int, context: int, threads: int) -> Any:
    spin_briefly()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_parallel = parallel
    params.n_ctx = parallel * context
    params.n_batch = params.n_ubatch = _PREFILL_CHUNK
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0
    params.ctx_shift = False
    params.fit_params = False
    params.lora_init_without_apply = True
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in adapters]
    params.verbosity = 1
    # The wheel always opens an HTTP port as well; only this process knows its key.
    params.hostnames = ["127.0.0.1"]
    params.api_keys = [secrets.token_urlsafe()]
    params.ui = params.endpoint_slots = False
    params.endpoint_metrics = True
    try:
        server = xllamacpp.Server(params)
        # The server's loop answers this, so it runs. A loop that is told to end before its first
        # iteration never does, and freeing the model would wait for it forever.
        server.handle_metrics()
        return server
    except RuntimeError as error:
        raise EngineError(
            f"llama.cpp cannot load {model} with adapters {adapters}: {error}"
        ) from error


class _Call:
    """One blocking call into llama.cpp, its events carried from the engine's thread to the event
    loop.
    """

    def __init__(self, server: Any, request: JsonObject) -> None:
        self._server, self._request = server, json.dumps(request)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | GenerationError] = asyncio.Queue()
        self._started = False
        self.cancelled = False
        self.computed = False
        self.generated: list[int] = []

    def run(self) -> None:
        """Blocks until the sequence ends or `cancelled` is seen. Runs in a worker thread."""
        ended = False

        def on_event(text: str) -> bool:
            nonlocal ended
            for event in self._parse(json.loads(text)):
                ended = ended or isinstance(event, Finish | GenerationError)
                self._post(event)
            return self.cancelled

        try:
            if not self.cancelled:
                self._server.handle_completions(self._request, on_event)
        except Exception as error:
            self._post(GenerationError(f"llama.cpp failed: {error}"))
        else:
            if not ended:
                self._post(GenerationError("llama.cpp stopped without a reason"))

    async def events(self) -> AsyncIterator[Event]:
        """What `run` reports, up to and including `Finish`."""
        while True:
            event = await self._queue.get()
            if isinstance(event, GenerationError):
                raise event
            yield event
            if isinstance(event, Finish):
                return

    def _post(self, event: Event | GenerationError) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    def _parse(self, message: JsonObject) -> list[Event | GenerationError]:
        if "error" in message:
            reason = text_in(object_in(message, "error"), "message") or message["error"]
            return [GenerationError(f"llama.cpp refused the request: {reason}")]
        if "prompt_progress" in message:  # one before the first chunk, then one after each
            first, self._started = not self._started, True
            cached = count_in(object_in(message, "prompt_progress"), "cache")
            return [Started(cached, 0.0)] if first else []
        self.computed = True
        choice = objects_in(message, "choices")[0]
        steps = [_step(entry) for entry in objects_in(object_in(choice, "logprobs"), "content")]
        self.generated += [step.token_id for step in steps]
        reason = text_in(choice, "finish_reason")
        if not reason:
            return [*steps]
        return [*steps, Finish("length" if reason == "length" else "eos")]


def _step(entry: JsonObject) -> Step:
    top = tuple(
        (count_in(item, "id"), _logprob(item)) for item in objects_in(entry, "top_logprobs")
    )
    return Step(count_in(entry, "id"), _logprob(entry), top)


def _logprob(item: JsonObject) -> float:
    return number_in(item, "logprob", _IMPOSSIBLE_LOGPROB)


def count_tokens(model: Path, texts: list[str]) -> list[int]:
    """How many tokens llama.cpp makes of each text, by the tokenizer inside the GGUF file.

    Raises `EngineError` when the file does not load.
    """
    server = _load(model, [], 1, 256, 1)
    requests = [{"prompt": text, "n_predict": 1, "cache_prompt": False} for text in texts]
    answers = [server.handle_completions(request) for request in requests]
    return [int(answer["usage"]["prompt_tokens"]) for answer in answers]
