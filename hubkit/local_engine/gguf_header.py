"""The header of a GGUF file, walked once before a reader believes its counts.

The `gguf` package reads as many fields, tensors and elements as the header promises, also past the
end of the file; here each count is held against the bytes that are there."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from hubkit.errors import EngineError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of plain values
_TEXT, _ARRAY = 8, 9
_MAX_NESTING = 3
_MAX_DIMENSIONS = 8
_LEAST_FIELD, _LEAST_TENSOR = 13, 24  # bytes


def check_header(path: Path) -> None:
    """Check that the counts and lengths in a GGUF file's header fit into the file.

    Raises:
        EngineError: One does not.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Header(data).walk()
    except (OSError, ValueError, struct.error) as error:
        raise EngineError(
            f"{path} is not a whole GGUF file of a language model ({error}); download it again"
        ) from error


class _Header:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._size, self._at = data, len(data), 0

    def walk(self) -> None:
        """Raises `ValueError`."""
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version = self._number("<I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}")
        tensors, fields = self._number("<Q"), self._number("<Q")
        self._require(tensors * _LEAST_TENSOR + fields * _LEAST_FIELD, "tensors and fields")
        for _ in range(fields):
            self._text()
            self._value(self._number("<I"), 0)
        for _ in range(tensors):
            self._text()
            dimensions = self._number("<I")
            if dimensions > _MAX_DIMENSIONS:
                raise ValueError(f"a tensor of it has {dimensions} dimensions")
            self._skip(8 * dimensions + 4 + 8, "tensors")

    def _value(self, kind: int, depth: int) -> None:
        if kind == _TEXT:
            self._text()
        elif kind == _ARRAY:
            self._array(depth)
        elif kind in _SIZES:
            self._skip(_SIZES[kind], "fields")
        else:
            raise ValueError(f"a field of it has the unknown type {kind}")

    def _array(self, depth: int) -> None:
        kind, count = self._number("<I"), self._number("<Q")
        if depth > _MAX_NESTING:
            raise ValueError("its arrays nest too deeply")
        if kind in _SIZES:
            self._skip(count * _SIZES[kind], "elements of an array")
            return
        self._require(count * 8, "elements of an array")
        for _ in range(count):
            self._value(kind, depth + 1)

    def _text(self) -> None:
        self._skip(self._number("<Q"), "characters")

    def _number(self, form: str) -> int:
        size = struct.calcsize(form)
        self._require(size, "bytes")
        number: int = struct.unpack_from(form, self._data, self._at)[0]
        self._at += size
        return number

    def _skip(self, size: int, unit: str) -> None:
        self._require(size, unit)
        self._at += size

    def _require(self, size: int, unit: str) -> None:
        if size > self._size - self._at:
            raise ValueError(f"it promises more {unit} than it has bytes")
