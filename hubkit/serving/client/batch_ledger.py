"""Which requests are in which batch at a provider: on disk before a batch is submitted, so that a
process that was killed finds it again instead of submitting, and paying, twice.

One JSON line for each thing that happens to a batch: it is about to be submitted, the provider has
named it, it is closed without results."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from hubkit.errors import DiskFullError


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
        self._path = folder / "batches.jsonl"
        self._batches: dict[str, Batch] = {}
        self._batch_of: dict[str, Batch] = {}

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read()
        self._file = self._path.open("ab")
        self._file.truncate(whole)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

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
        self._append({"batch": batch.id, **facts})
        self._add(batch)
        return batch

    def name(self, batch: Batch, name: str) -> None:
        """Write down the provider's name of a batch."""
        batch.name = name
        self._append({"batch": batch.id, "name": name})

    def close(self, batch: Batch, why: str) -> None:
        """Write down that a batch has no results to wait for: its requests are in no batch."""
        self._append({"batch": batch.id, "closed": why})
        self._remove(batch)

    def _add(self, batch: Batch) -> None:
        self._batches[batch.id] = batch
        self._batch_of.update(dict.fromkeys(batch.requests, batch))

    def _remove(self, batch: Batch) -> None:
        for request in batch.requests:
            if self._batch_of.get(request) is batch:
                del self._batch_of[request]

    def _append(self, record: Mapping[str, object]) -> None:
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DiskFullError(
                f"{self._path} cannot be written: {error.strerror}; "
                "free some space and run it again"
            ) from None

    def _read(self) -> int:
        """Take what is on disk; gives the bytes of its whole lines."""
        if not self._path.exists():
            return 0
        whole = 0
        for line in self._path.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            if "requests" in record:
                self._add(Batch(record["batch"], frozenset(record["requests"]), record["at"]))
            elif (batch := self._batches.get(record.get("batch"))) is None:
                continue
            elif "name" in record:
                batch.name = record["name"]
            else:
                self._remove(batch)
        return whole
