"""Which requests are in which batch at a provider: on disk before a batch is submitted, so that a
process that was killed finds it again instead of submitting, and paying, twice.

One JSON line for each thing that happens to a batch: it is about to be submitted, the provider has
named it, it is closed without results."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hubkit.serving.json_lines import JsonLines


@dataclass(slots=True)
class Batch:
    """One batch.

    Attributes:
        id: Our name of it.
        requests: Ids of its requests.
        submitted_at: When it was about to be submitted, in seconds since 1970.
        name: The provider's name of it; empty until that is known.
    """

    id: str
    requests: frozenset[str]
    submitted_at: float
    name: str = ""


class BatchLedger:
    """The batches whose records are in ``folder/batches.jsonl``. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._lines = JsonLines(folder / "batches.jsonl")
        self._batches: dict[str, Batch] = {}
        self._batch_of: dict[str, Batch] = {}

    def __enter__(self) -> Self:
        for record in self._lines.read():
            self._take(record)
        self._lines.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    @property
    def names(self) -> list[str]:
        """The provider's names of all batches that it has named."""
        return [batch.name for batch in self._batches.values() if batch.name]

    def batch_of(self, request: str) -> Batch | None:
        """The newest batch that a request is in; None for one that is in none."""
        return self._batch_of.get(request)

    def begin(self, requests: Iterable[str]) -> Batch:
        """Write down a batch that is about to be submitted."""
        batch = Batch(f"hubkit-{uuid.uuid4().hex}", frozenset(requests), time.time())
        facts = {"requests": sorted(batch.requests), "at": batch.submitted_at}
        self._lines.append({"batch": batch.id, **facts})
        self._add(batch)
        return batch

    def name(self, batch: Batch, name: str) -> None:
        """Write down the provider's name of a batch."""
        batch.name = name
        self._lines.append({"batch": batch.id, "name": name})

    def close(self, batch: Batch, why: str) -> None:
        """Write down that a batch has no results to wait for: its requests are in no batch."""
        self._lines.append({"batch": batch.id, "closed": why})
        self._remove(batch)

    def _add(self, batch: Batch) -> None:
        self._batches[batch.id] = batch
        self._batch_of.update(dict.fromkeys(batch.requests, batch))

    def _remove(self, batch: Batch) -> None:
        for request in batch.requests:
            if self._batch_of.get(request) is batch:
                del self._batch_of[request]

    def _take(self, record: Any) -> None:
        """Count a record that is on disk."""
        if "requests" in record:
            self._add(Batch(record["batch"], frozenset(record["requests"]), record["at"]))
        elif (batch := self._batches.get(record.get("batch"))) is None:
            return
        elif "name" in record:
            batch.name = record["name"]
        else:
            self._remove(batch)
