"""The transformers engine: other architectures, CUDA, and the reference for fidelity.

float32 on a CPU, bfloat16 on CUDA. Sequences join and leave a running batch (continuous batching):
a new one computes its prompt alone, without padding, and decodes with the others from then on; all
tokens of a step are chosen at once on the device (`torch_sampling`). What a sequence computed is
kept, for as many sequences as run at once, so the next turn of a dialogue computes only what is
new.
A model whose state is more than keys and values per token (Mamba, linear attention) runs one
sequence at a time and keeps nothing."""

from __future__ import annotations

import asyncio
import inspect
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.adapter_config import NAME, checked_lora
from hubkit.errors import EngineError, RemoteCodeError, refusing_remote_code
from hubkit.local_engine.engine import Event, Finish, GenerationError, Job, Started
from hubkit.local_engine.torch_sampling import Draws, choose

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("hubkit.local_engine")
_SHORTEST_PREFIX = 16  # tokens, from which on copying a prefix is worth it
_PER_TOKEN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

Layers = list[tuple[Any, Any]]  # keys and values of each layer, (1, heads, tokens, dimension)


@dataclass(eq=False, slots=True)
class _Running:
    """One sequence: its job, where its events go, and how far it is.

    Attributes:
        tokens: Prompt and what was generated.
        layers: Keys and values of all of `tokens` but the last, while it is in no batch.
        cache: The model's own cache, where keys and values are not all of its state.
    """

    job: Job
    loop: asyncio.AbstractEventLoop
    arrived: float
    events: asyncio.Queue[Event | GenerationError] = field(default_factory=asyncio.Queue)
    tokens: list[int] = field(default_factory=list)
    draws: Draws | None = None
    layers: Layers = field(default_factory=list)
    cache: Any = None
    cancelled: bool = False
    done: bool = False

    def post(self, event: Event | GenerationError) -> None:
        """Hand an event over to the event loop; anything but a step or the start ends the
        sequence.
        """
        self.done = self.done or isinstance(event, Finish | GenerationError)
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be computed."""
        return self.done or self.cancelled


@dataclass(slots=True)
class _Prefix:
    """What a sequence that has ended computed."""

    adapter: str | None
    tokens: list[int]
    layers: Layers


@dataclass(slots=True)
class _Batch:
    """Sequences of one adapter that decode together. `mask`: (rows, tokens), 0 for padding."""

    rows: list[_Running]
    cache: Any
    mask: torch.Tensor


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
        loaded, eos = _load(model, adapters, device)
        self._decoder = _Decoder(loaded, eos, parallel)
        self._arrivals: queue.SimpleQueue[_Running | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="transformers", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> int:
        """Sequences being computed."""
        return sum(not running.ended for running in list(self._decoder.active))

    @property
    def waiting(self) -> int:
        """Requests waiting for a place in the batch."""
        return len(self._decoder.waiting) + self._arrivals.qsize()

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Yield `Started`, one `Step` per token, `Finish`. Raises `GenerationError`."""
        if job.sampling.grammar is not None:
            raise GenerationError("the transformers engine has no grammars")
        running = _Running(job, asyncio.get_running_loop(), time.monotonic())
        self._arrivals.put(running)
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

    def close(self) -> None:
        """Free the model, after the step that is being computed."""
        self._arrivals.put(None)
        self._thread.join()

    def _run(self) -> None:
        """Take up what arrives and compute step after step, until `close`."""
        decoder = self._decoder
        while True:
            idle = not (decoder.active or decoder.waiting)
            try:
                arrival = self._arrivals.get(block=idle)
                if arrival is None:
                    return
                decoder.waiting.append(arrival)
                continue
            except queue.Empty:
                decoder.step()


class _Decoder:
    """The batch: who waits, who runs, and what is kept. Used by the engine's thread alone."""

    def __init__(self, model: Any, eos: frozenset[int], parallel: int) -> None:
        self._model, self._eos = model, eos
        self.waiting: deque[_Running] = deque()
        self.active: list[_Running] = []
        self._prefixes: deque[_Prefix] = deque(maxlen=parallel)
        self._batches: dict[str | None, _Batch] = {}
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        self._per_token = not (kinds - _PER_TOKEN_LAYERS or getattr(model, "_is_stateful", False))
        self._parallel = parallel if self._per_token else 1
        base = getattr(model, "get_base_model", lambda: model)()
        names = inspect.signature(base.forward).parameters
        self._takes = {name for name in ("position_ids", "logits_to_keep") if name in names}

    def step(self) -> None:
        """Start what waits where there is a place; then one token for every sequence."""
        while self.waiting and len(self.active) < self._parallel:
            running = self.waiting.popleft()
            if not running.cancelled:
                self.active.append(running)
                self._each([running], self._start)
        groups: dict[str | None, list[_Running]] = {}
        for running in self.active:
            if not running.ended:
                groups.setdefault(running.job.adapter, []).append(running)
        for group in groups.values():
            self._each(group, self._decode)
        for adapter in {running.job.adapter for running in self.active if running.ended}:
            self._split(adapter)
        for running in self.active:
            if running.ended and running.layers:
                self._keep(running)
        self.active = [running for running in self.active if not running.ended]

    def _each(self, group: list[_Running], compute: Any) -> None:
        """`compute` for sequences of one adapter; what a model's code raises ends these alone."""
        import torch

        try:
            with torch.inference_mode(), self._adapter(group[0].job.adapter):
                compute(group)
        except Exception as error:
            self._batches.pop(group[0].job.adapter, None)
            for running in group:
                running.layers = []
                if not running.done:
                    running.post(
                        GenerationError(f"transformers failed: {type(error).__name__}: {error}")
                    )

    @contextmanager
    def _adapter(self, name: str | None) -> Iterator[None]:
        if name is not None:
            if name not in getattr(self._model, "active_adapters", [name + " "]):
                self._model.set_adapter(name)
            yield
        elif hasattr(self._model, "disable_adapter"):
            with self._model.disable_adapter():
                yield
        else:
            yield

    def _start(self, group: list[_Running]) -> None:
        """Compute a new sequence's prompt, or what of it no prefix holds, and its first token."""
        import torch

        (running,) = group
        job = running.job
        running.tokens = list(job.prompt_ids)
        random = torch.Generator().manual_seed(job.sampling.seed)
        running.draws = Draws(job.sampling, job.top_n, random)
        shared, layers = self._shared_prefix(job)
        running.post(Started(shared, time.monotonic() - running.arrived))
        cache = self._new_cache(layers)
        ids = torch.tensor([running.tokens[shared:]], device=self._model.device)
        mask = torch.ones((1, len(running.tokens)), dtype=torch.long, device=ids.device)
        positions = torch.arange(shared, len(running.tokens), device=ids.device).unsqueeze(0)
        logits, running.cache = self._forward(ids, mask, positions, cache)
        if self._per_token:
            running.layers = _layers_of(running.cache)
            running.cache = None
        self._advance(group, logits)

    def _decode(self, group: list[_Running]) -> None:
        """The next token of sequences that all have computed their prompts."""
        import torch

        device = self._model.device
        ids = torch.tensor([[running.tokens[-1]] for running in group], device=device)
        lengths = [len(running.tokens) - 1 for running in group]
        positions = torch.tensor(lengths, device=device).unsqueeze(1)
        batch = self._batches.get(group[0].job.adapter)
        if batch is None or batch.rows != group:
            batch = self._joined(group, lengths)
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(group), 1)], dim=1)
        logits, batch.cache = self._forward(ids, batch.mask, positions, batch.cache)
        self._advance(group, logits)

    def _joined(self, group: list[_Running], lengths: list[int]) -> _Batch:
        """A batch of these sequences, padded on the left; the adapter's former one is split."""
        import torch

        adapter, longest = group[0].job.adapter, max(lengths)
        self._split(adapter)
        mask = torch.zeros((len(group), longest), dtype=torch.long, device=self._model.device)
        for row, length in enumerate(lengths):
            mask[row, longest - length :] = 1
        cache = group[0].cache
        if self._per_token:
            cache = self._new_cache(_padded([running.layers for running in group], longest))
        for running in group:
            running.layers = []
        self._batches[adapter] = _Batch(list(group), cache, mask)
        return self._batches[adapter]

    def _split(self, adapter: str | None) -> None:
        """Give the sequences of the adapter's batch their own keys and values back."""
        batch = self._batches.pop(adapter, None)
        if batch is None:
            return
        for row, running in enumerate(batch.rows):
            running.cache = batch.cache
            if self._per_token:
                start = batch.mask.shape[1] - (len(running.tokens) - 1)
                running.cache = None
                running.layers = [
                    (k[row : row + 1, :, start:], v[row : row + 1, :, start:])
                    for k, v in _layers_of(batch.cache)
                ]

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> tuple[torch.Tensor, Any]:
        """The logits after the last token, (rows, vocabulary), and the cache."""
        options = {"position_ids": positions, "logits_to_keep": 1}
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in options.items() if name in self._takes},
        )
        return out.logits[:, -1], out.past_key_values

    def _advance(self, group: list[_Running], logits: torch.Tensor) -> None:
        """Choose and report a token for each sequence."""
        draws = [running.draws for running in group if running.draws is not None]
        steps = choose(logits, draws, [running.tokens for running in group])
        for running, step in zip(group, steps, strict=True):
            running.tokens.append(step.token_id)
            running.post(step)
            generated = len(running.tokens) - len(running.job.prompt_ids)
            if step.token_id in self._eos:
                running.post(Finish("eos"))
            elif generated >= running.job.max_new_tokens:
                running.post(Finish("length"))

    def _new_cache(self, layers: Layers) -> Any:
        from transformers import DynamicCache

        if not self._per_token:
            return None
        cache = DynamicCache()
        for index, (keys, values) in enumerate(layers):
            cache.update(keys, values, index)
        return cache

    def _shared_prefix(self, job: Job) -> tuple[int, Layers]:
        """The longest beginning of the prompt that was computed before, by the same adapter."""
        best, longest = 0, None
        for prefix in self._prefixes:
            if prefix.adapter == job.adapter:
                limit = min(len(prefix.tokens), len(job.prompt_ids) - 1)
                shared = _common(prefix.tokens, job.prompt_ids, limit)
                if shared > best:
                    best, longest = shared, prefix
        if longest is None or best < _SHORTEST_PREFIX:
            return 0, []
        return best, [(k[:, :, :best], v[:, :, :best]) for k, v in longest.layers]

    def _keep(self, running: _Running) -> None:
        """Keep what was computed, in place of a shorter beginning of the same."""
        computed = running.tokens[: running.layers[0][0].shape[2]]
        for prefix in list(self._prefixes):
            size = len(prefix.tokens)
            if prefix.adapter == running.job.adapter and prefix.tokens == computed[:size]:
                self._prefixes.remove(prefix)
        layers = [(k.clone(), v.clone()) for k, v in running.layers]  # not views of a whole batch
        self._prefixes.append(_Prefix(running.job.adapter, computed, layers))
        running.layers = []


def _common(first: list[int], second: list[int], limit: int) -> int:
    """How many of the first `limit` items are equal from the start."""
    if first[:limit] == second[:limit]:
        return limit
    return next(i for i in range(limit) if first[i] != second[i])


def _layers_of(cache: Any) -> Layers:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _padded(rows: list[Layers], longest: int) -> Layers:
    """One batch out of sequences of unequal lengths, with zeros before the shorter ones."""
    import torch
    from torch.nn.functional import pad

    def joined(tensors: list[Any]) -> Any:
        return torch.cat([pad(t, (0, 0, longest - t.shape[2], 0)) for t in tensors])

    return [
        (joined([row[i][0] for row in rows]), joined([row[i][1] for row in rows]))
        for i in range(len(rows[0]))
    ]


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

    try:
        checked_lora(folder)
    except ValueError as error:
        raise EngineError(f"the adapter {name} is not loaded, for its {NAME}: {error}") from None
    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), adapter_name=name)
        return model
    return PeftModel.from_pretrained(model, str(folder), adapter_name=name).eval()
