"""Replies on disk: one JSON line each, written before the reply counts; a line that a kill cut off
is asked for again.

Takes a folder and what identifies the run; gives a mapping from key to (text, finish reason), and
whatever else was noted with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hubkit.errors import DiskFullError
from hubkit.untrusted import JsonObject, text_in


@dataclass(frozen=True, slots=True)
class JournalSpec:
    """Where a run keeps its journal, and what tells the run from others.

    Args:
        folder: It survives a kill: what was answered is not asked for again.
        seed: Of all that the run draws.
        provenance: What the run is made from.
    """

    folder: Path
    seed: int
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """Use as a context manager. A journal of another run (`identity` differs) is put aside, never
    mixed in.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, object], *, name: str = "replies"
    ) -> None:
        self._path = folder / f"{name}.jsonl"
        self._identity = json.dumps(identity, sort_keys=True, default=str)
        self._known: dict[str, JsonObject] = {}

    @classmethod
    def of(cls, spec: JournalSpec, *, name: str = "replies") -> Self:
        """The journal that `spec` describes."""
        identity = {"seed": spec.seed, "provenance": dict(spec.provenance)}
        return cls(spec.folder, identity, name=name)

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read()
        if whole is None:
            self._path.replace(self._path.with_suffix(".old"))
        self._file = self._path.open("ab")
        if whole:
            self._file.truncate(whole)
        else:
            self._append({"identity": self._identity})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._path.parent

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> tuple[str, str]:
        record = self._known[key]
        return text_in(record, "content"), text_in(record, "finish_reason")

    def record(self, key: str) -> JsonObject:
        """A reply with what else was noted."""
        return self._known[key]

    def records(self) -> Iterable[JsonObject]:
        """Every reply with what else was noted, in the order in which they came."""
        return self._known.values()

    def note(self, key: str, content: str, finish_reason: str, **details: Any) -> None:
        """Keep a reply: on disk first. Raises `DiskFullError` when it cannot be written."""
        record = {"key": key, "content": content, "finish_reason": finish_reason, **details}
        self._append(record)
        self._known[key] = record

    def _append(self, record: JsonObject) -> None:
        try:
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DiskFullError(
                f"{self._path} cannot be written: {error.strerror}; "
                "free some space and run it again"
            ) from None

    def _read(self) -> int | None:
        """Bytes of whole lines (0: none yet), or None when the file belongs to another run."""
        whole = 0
        if not self._path.exists():
            return 0
        for line in self._path.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            if not whole and record.get("identity") != self._identity:
                return None
            if "key" in record:
                self._known[record["key"]] = record
            whole += len(line)
        return whole
