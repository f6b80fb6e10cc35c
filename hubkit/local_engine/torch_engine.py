"""Plain transformers behind the same service: other architectures, CUDA, and the reference that
fidelity is judged by.

float32 on a CPU, bfloat16 on CUDA. Jobs that wait are taken up together, as one batch per adapter;
each sequence has its own sampling parameters, so a batch computes logits together and chooses
tokens one by one. Prompts are not cached between requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.errors import EngineError, RemoteCodeError, refusing_remote_code
from hubkit.local_engine.engine import Event, Finish, GenerationError, Job, Sampling, Started, Step

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("hubkit.local_engine")


@dataclass(eq=False, slots=True)
class _Running:
    """One sequence: its job, where its events go, and how far it is."""

    job: Job
    loop: asyncio.AbstractEventLoop
    arrived: float
    events: asyncio.Queue[Event | GenerationError] = field(default_factory=asyncio.Queue)
    generated: list[int] = field(default_factory=list)
    random: Any = None
    cancelled: bool = False
    done: bool = False

    def post(self, event: Event | GenerationError) -> None:
        """Hand an event over to the event loop; anything but a step or the start ends the
        sequence.
        """
        self.done = self.done or isinstance(event, Finish | GenerationError)
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class TransformersEngine:
    """Serves a model folder with `AutoModelForCausalLM`. `adapters`: name → PEFT folder."""

    name = "transformers"

    def __init__(
        self,
        model: Path,
        adapters: Mapping[str, Path],
        *,
        parallel: int,
        context: int,
        device: str | None = None,
    ) -> None:
        """Load the model. Raises `EngineError` when transformers or PEFT cannot."""
        self.parallel, self.context = parallel, context
        self._model, self._eos = _load(model, adapters, device)
        self._waiting: list[_Running] = []
        self._batch: list[_Running] = []
        self._loop_task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transformers")

    @property
    def busy(self) -> int:
        """Sequences being computed."""
        return len(self._batch)

    @property
    def waiting(self) -> int:
        """Requests waiting for the next batch."""
        return len(self._waiting)

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Yield `Started`, one `Step` per token, `Finish`. Raises `GenerationError`."""
        if job.sampling.grammar is not None:
            raise GenerationError("the transformers engine has no grammars")
        running = _Running(job, asyncio.get_running_loop(), time.monotonic())
        self._waiting.append(running)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._run_batches())
        try:
            while True:
                event = await running.events.get()
                if isinstance(event, GenerationError):
                    raise event
                yield event
                if isinstance(event, Finish):
                    return
        finally:
            running.cancelled = True
            if running in self._waiting:
                self._waiting.remove(running)

    def close(self) -> None:
        """Free the model."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            first = self._waiting[0].job.adapter
            self._batch = [item for item in self._waiting if item.job.adapter == first][
                : self.parallel
            ]
            self._waiting = [item for item in self._waiting if item not in self._batch]
            try:
                await loop.run_in_executor(
                    self._thread, _compute, self._model, self._eos, self._batch
                )
            finally:
                self._batch = []


def _load(
    model: Path, adapters: Mapping[str, Path], device: str | None
) -> tuple[Any, frozenset[int]]:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    try:
        with refusing_remote_code(str(model)):
            loaded = AutoModelForCausalLM.from_pretrained(
                model, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        loaded = loaded.to(device).eval()
        eos = loaded.generation_config.eos_token_id
        for name, folder in adapters.items():
            loaded = _with_adapter(loaded, name, folder)
    except RemoteCodeError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EngineError(
            f"transformers cannot load {model} with adapters {list(adapters)}: {error}"
        ) from error
    _log.info("%s loaded on %s as %s", model, device, dtype)
    return loaded, frozenset(eos if isinstance(eos, list) else [eos])


def _with_adapter(model: Any, name: str, folder: Path) -> Any:
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), adapter_name=name)
        return model
    return PeftModel.from_pretrained(model, str(folder), adapter_name=name).eval()


def _compute(model: Any, eos: frozenset[int], batch: list[_Running]) -> None:
    """Generate every sequence of `batch` to its end. Runs in the engine's thread."""
    try:
        adapter = batch[0].job.adapter
        if adapter is not None:
            model.set_adapter(adapter)
            _steps(model, eos, batch)
        elif hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                _steps(model, eos, batch)
        else:
            _steps(model, eos, batch)
    except Exception as error:  # whatever a model's code raises ends this batch and no other
        for running in batch:
            if not running.done:
                running.post(
                    GenerationError(f"transformers failed: {type(error).__name__}: {error}")
                )


def _steps(model: Any, eos: frozenset[int], batch: list[_Running]) -> None:
    """Prompts padded on the left, one token at a time for all; a finished sequence idles until the
    last one ends.
    """
    import torch

    longest = max(len(running.job.prompt_ids) for running in batch)
    pad = min(eos)
    rows = [[pad] * (longest - len(r.job.prompt_ids)) + r.job.prompt_ids for r in batch]
    mask = [[0] * (longest - len(r.job.prompt_ids)) + [1] * len(r.job.prompt_ids) for r in batch]
    ids, attention = (
        torch.tensor(rows, device=model.device),
        torch.tensor(mask, device=model.device),
    )
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    now, cache = time.monotonic(), None
    for running in batch:
        running.random = torch.Generator().manual_seed(running.job.sampling.seed)
        running.post(Started(0, now - running.arrived))
    while not all(running.done or running.cancelled for running in batch):
        with torch.inference_mode():
            out = model(
                input_ids=ids,
                attention_mask=attention,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        cache = out.past_key_values
        logits = out.logits[:, -1].float().cpu()
        chosen = [_advance(r, row, eos, pad) for r, row in zip(batch, logits, strict=True)]
        ids = torch.tensor(chosen, device=model.device).unsqueeze(1)
        attention = torch.cat([attention, attention.new_ones(len(batch), 1)], dim=1)
        positions = positions[:, -1:] + 1


def _advance(running: _Running, logits: torch.Tensor, eos: frozenset[int], pad: int) -> int:
    """The next token of one sequence, reported; `pad` for one that is over. `logits`:
    (vocabulary,).
    """
    if running.done or running.cancelled:
        return pad
    job = running.job
    logprobs = logits.log_softmax(-1)
    token = _choose(logits, running)
    running.generated.append(token)
    best = logprobs.topk(job.top_n) if job.top_n else None
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best else ()
    running.post(Step(token, float(logprobs[token]), top))
    if token in eos:
        running.post(Finish("eos"))
    elif len(running.generated) >= job.max_new_tokens:
        running.post(Finish("length"))
    return token


def _choose(logits: torch.Tensor, running: _Running) -> int:
    """TGI's chain: penalties, then (when sampling) temperature, top-k, top-p, typical-p, one
    draw.
    """
    import torch

    sampling = running.job.sampling
    scores = _penalised(logits.unsqueeze(0), running)
    if not sampling.do_sample:
        return int(scores.argmax())
    for warp in _warpers(sampling):
        scores = warp(None, scores)
    return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=running.random))


def _penalised(scores: torch.Tensor, running: _Running) -> torch.Tensor:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    sampling = running.job.sampling
    seen = torch.tensor([running.job.prompt_ids + running.generated])
    if sampling.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(seen, scores)
    if sampling.frequency_penalty:
        counts = torch.bincount(seen[0], minlength=scores.shape[-1])[: scores.shape[-1]]
        scores = scores - sampling.frequency_penalty * counts
    return scores


def _warpers(sampling: Sampling) -> list[Any]:
    from transformers import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )

    warpers: list[Any] = []
    if sampling.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.typical_p < 1.0:
        warpers.append(TypicalLogitsWarper(sampling.typical_p))
    return warpers
