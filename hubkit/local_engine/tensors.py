"""Reads safetensors files without torch: names, shapes, and values as float32 arrays.

A model repo is a stranger's file: the header's size, offsets and shapes are checked before anything
is believed. bfloat16, which numpy lacks, is widened by placing its 16 bits in the upper half of a
float32 (exact)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hubkit.errors import EngineError

_HEADER_LIMIT_BYTES = 64 * 1024 * 1024
_DTYPES: dict[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor inside a safetensors file; `load` reads its values."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def load(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The values, float32, in `shape`."""
        raw = np.memmap(
            self.path, dtype=_DTYPES[self.dtype], mode="r", offset=self.offset, shape=self.shape
        )
        if self.dtype == "BF16":
            return (np.asarray(raw).astype(np.uint32) << 16).view(np.float32)
        return np.asarray(raw).astype(np.float32)


def stored_tensors(folder: Path, pattern: str = "model*.safetensors") -> dict[str, StoredTensor]:
    """Every tensor in the safetensors files of `folder` that match `pattern`, by name.

    Raises `EngineError` when there is none, or a file is cut off or malformed.
    """
    files = sorted(folder.glob(pattern))
    if not files:
        raise EngineError(
            f"{folder} has no {pattern}: push the weights as safetensors (save_pretrained does)"
        )
    found: dict[str, StoredTensor] = {}
    for path in files:
        found.update(_read_header(path))
    return found


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER_LIMIT_BYTES, size - 8):
            raise EngineError(
                f"{path} is not a whole safetensors file ({size} bytes); download it again"
            )
        try:
            header = json.loads(file.read(length))
            entries = {
                k: _entry(path, k, v, 8 + length, size)
                for k, v in header.items()
                if k != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(
                f"{path} has a malformed safetensors header ({error}); download it again"
            ) from error
    return entries


def _entry(
    path: Path, name: str, fields: dict[str, Any], data_start: int, size: int
) -> StoredTensor:
    begin, end = fields["data_offsets"]
    shape = tuple(int(n) for n in fields["shape"])
    dtype = fields["dtype"]
    if dtype not in _DTYPES:
        raise EngineError(
            f"{path} stores {name!r} as {dtype}; the engine reads F64, F32, F16 and BF16 weights"
        )
    expected = int(np.prod(shape, dtype=np.int64)) * np.dtype(_DTYPES[dtype]).itemsize
    if min(shape, default=0) < 0 or begin < 0 or end - begin != expected or data_start + end > size:
        raise EngineError(f"{path} is cut off or malformed at {name!r}; download it again")
    return StoredTensor(path, name, dtype, shape, data_start + begin)
