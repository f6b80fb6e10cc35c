"""The protocol between the service and its two engines: token ids in, token ids out.

The service renders, tokenizes, detokenizes, validates and counts; an engine only computes. It
yields `Started`, then `Step`s, then `Finish`. Closing the iterator early cancels the work and
releases its resources."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from hubkit.errors import EngineError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, in the order TGI applies it: penalties, temperature, top-k,
    top-p, typical-p.

    `do_sample` False takes the most likely token. `top_k` 0, `top_p` 1 and `typical_p` 1 switch a
    filter off; `repetition_penalty` 1 and `frequency_penalty` 0 likewise. `grammar` is a JSON
    schema that the text must follow."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    seed: int = 0
    grammar: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to generate. `adapter` None is the base; `dialogue` is a client's hint for cache
    re-use.
    """

    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    adapter: str | None = None
    top_n: int = 0
    dialogue: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token: its id, its log-probability under the model (before any filter), and the
    `top_n` best.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The engine has started the job: after how long a wait, and how many prompt tokens it takes
    from its cache.
    """

    cached_tokens: int
    queue_s: float


@dataclass(frozen=True, slots=True)
class Finish:
    """Why the sequence ended."""

    reason: Literal["length", "eos"]


Event = Started | Step | Finish


class UnsupportedModelError(EngineError):
    """This engine cannot compute this model; another one may."""


class GenerationError(EngineError):
    """The engine failed on one request; others continue."""


class Engine(Protocol):
    """An engine that holds one base model and its adapters."""

    name: str
    parallel: int  # sequences computed at once
    context: int  # tokens per sequence, prompt and completion together

    @property
    def busy(self) -> int:
        """Return the number of sequences being computed."""
        ...

    @property
    def waiting(self) -> int:
        """Return the number of requests that wait for their turn."""
        ...

    def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Yield `Started`, one `Step` per token, `Finish`. Raises `GenerationError`."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
