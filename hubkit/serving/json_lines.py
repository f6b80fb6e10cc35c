"""Records on disk, one JSON line each, written through before they count; a line that a kill cut
off is dropped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from hubkit.errors import DiskFullError
from hubkit.untrusted import JsonObject


class JsonLines:
    """The file at `path`: read it once, `open` it, then append."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.whole_bytes = 0

    def read(self) -> Iterator[JsonObject]:
        """The records up to the first line that is not whole, at `whole_bytes`."""
        self.whole_bytes = 0
        if not self.path.exists():
            return
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            self.whole_bytes += len(line)
            yield record

    def open(self) -> None:
        """Make it ready for more records, without the line that a kill cut off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        self._file.truncate(self.whole_bytes)

    def append(self, record: Mapping[str, object]) -> None:
        """Add a record, durably. Raises `DiskFullError` when it cannot be written."""
        try:
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DiskFullError(
                f"{self.path} cannot be written: {error.strerror}; free some space and run it again"
            ) from None

    def close(self) -> None:
        """Nothing more is added."""
        self._file.close()
