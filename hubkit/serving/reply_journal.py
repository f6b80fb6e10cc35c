"""Replies on disk: one JSON line each, written before the reply counts; a line that a kill cut off
is asked for again.

Takes a folder and what identifies the run; gives a mapping from key to (text, finish reason), and
whatever else was noted with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from hubkit.serving.json_lines import JsonLines
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
        self._lines = JsonLines(folder / f"{name}.jsonl")
        self._identity = json.dumps(identity, sort_keys=True, default=str)
        self._known: dict[str, JsonObject] = {}

    @classmethod
    def of(cls, spec: JournalSpec, *, name: str = "replies") -> Self:
        """The journal that `spec` describes."""
        identity = {"seed": spec.seed, "provenance": dict(spec.provenance)}
        return cls(spec.folder, identity, name=name)

    def __enter__(self) -> Self:
        if not self._read():
            self._lines.path.replace(self._lines.path.with_suffix(".old"))
            self._known, self._lines = {}, JsonLines(self._lines.path)
        self._lines.open()
        if not self._lines.whole_bytes:
            self._lines.append({"identity": self._identity})
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._lines.path.parent

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
        self._lines.append(record)
        self._known[key] = record

    def _read(self) -> bool:
        """Take what is on disk; False when the file belongs to another run."""
        for number, record in enumerate(self._lines.read()):
            if not number and record.get("identity") != self._identity:
                return False
            if "key" in record:
                self._known[text_in(record, "key")] = record
        return True
