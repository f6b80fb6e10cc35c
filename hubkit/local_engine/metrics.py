"""Counters in Prometheus' text format, under TGI's names; what TGI does not count is named
`hubkit_…`.
"""

from __future__ import annotations

import bisect
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hubkit.local_engine.engine import Engine
    from hubkit.local_engine.generation import Ending

_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Histogram:
    """Counts of values at or below each bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        """The histogram in Prometheus' text format."""
        total, lines = 0, [f"# TYPE {name} histogram"]
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self._requests = 0
        self._success = 0
        self._failures: Counter[str] = Counter()
        self._prompt_tokens: Counter[str] = Counter()
        self._cached_tokens: Counter[str] = Counter()
        self._histograms = {
            "tgi_request_duration": Histogram(_SECONDS),
            "tgi_request_queue_duration": Histogram(_SECONDS),
            "tgi_request_inference_duration": Histogram(_SECONDS),
            "tgi_request_mean_time_per_token_duration": Histogram(_SECONDS),
            "tgi_request_input_length": Histogram(_TOKENS),
            "tgi_request_max_new_tokens": Histogram(_TOKENS),
            "tgi_request_generated_tokens": Histogram(_TOKENS),
        }

    def requested(self) -> None:
        """A generation request arrived."""
        self._requests += 1

    def accepted(self, max_new_tokens: int) -> None:
        """It passed validation."""
        self._histograms["tgi_request_max_new_tokens"].add(max_new_tokens)

    def failed(self, error: str) -> None:
        """It was answered with an error."""
        self._failures[error] += 1

    def finished(self, ending: Ending, adapter: str | None) -> None:
        """A sequence ended well."""
        self._success += 1
        self._prompt_tokens[adapter or "base"] += ending.input_length
        self._cached_tokens[adapter or "base"] += ending.cached_tokens
        values = {
            "tgi_request_duration": ending.queue_s + ending.inference_s,
            "tgi_request_queue_duration": ending.queue_s,
            "tgi_request_inference_duration": ending.inference_s,
            "tgi_request_mean_time_per_token_duration": ending.inference_s
            / max(ending.generated_tokens, 1),
            "tgi_request_input_length": ending.input_length,
            "tgi_request_generated_tokens": ending.generated_tokens,
        }
        for name, value in values.items():
            self._histograms[name].add(value)

    def render(self, engine: Engine) -> str:
        """Everything, in Prometheus' text format."""
        lines = [
            *_counter("tgi_request_count", self._requests),
            *_counter("tgi_request_success", self._success),
            *_labelled("tgi_request_failure", "err", self._failures),
            *_gauge("tgi_queue_size", engine.waiting),
            *_gauge("tgi_batch_current_size", engine.busy),
            *_labelled("hubkit_prompt_tokens_total", "adapter", self._prompt_tokens),
            *_labelled("hubkit_prompt_tokens_cached_total", "adapter", self._cached_tokens),
        ]
        for name, histogram in self._histograms.items():
            lines += histogram.lines(name)
        return "\n".join(lines) + "\n"


def _counter(name: str, value: int) -> list[str]:
    return [f"# TYPE {name} counter", f"{name} {value}"]


def _gauge(name: str, value: int) -> list[str]:
    return [f"# TYPE {name} gauge", f"{name} {value}"]


def _labelled(name: str, label: str, values: Counter[str]) -> list[str]:
    quoted = (
        (key.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"), n)
        for key, n in values.items()
    )
    return [
        f"# TYPE {name} counter",
        *(f'{name}{{{label}="{key}"}} {n}' for key, n in sorted(quoted)),
    ]
