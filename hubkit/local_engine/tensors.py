"""Reads safetensors files without torch: names, shapes, and values as float32 arrays.

A model repo is untrusted input: the header's size, offsets and shapes are checked before they are
used. bfloat16, which numpy lacks, is widened by placing its 16 bits in the upper half of a
float32 (exact)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hubkit.errors import EngineError
from hubkit.local_engine.engine import UnsupportedModelError
from hubkit.untrusted import JsonObject, list_in, parse_json

_HEADER_LIMIT_BYTES = 64 * 1024 * 1024
_DTYPES: dict[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "C64": 64}  # else in the name: I32, …
_LARGEST_DIMENSION = 2**40


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor inside a safetensors file; `load` reads its values."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def load(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Read the values as float32 in `shape`. Raises `UnsupportedModelError` for a type that is
        not a float of 16, 32 or 64 bits.
        """
        if self.dtype not in _DTYPES:
            raise UnsupportedModelError(f"{self.path} stores {self.name!r} as {self.dtype}")
        if 0 in self.shape:
            return np.zeros(self.shape, np.float32)
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
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        tensors.update(_read_header(path))
    return tensors


def check_plausible(folder: Path, config: JsonObject) -> int:
    """Check what a loader would believe: headers, the shard index, and the number of layers.

    Returns:
        The size of all weight files in bytes.

    Raises:
        EngineError: A file is malformed, the index names a file elsewhere, or the configuration
            has more layers than the files have tensors.
    """
    tensors = stored_tensors(folder)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = set(parse_json(index.read_text("utf-8"))["weight_map"].values())
            outside = [name for name in names if Path(name).name != name]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"{index} is malformed ({error}); download it again") from error
        if outside:
            raise EngineError(f"{index} names {outside[0][:80]!r}, which is in another folder")
    text = config.get("text_config")
    merged = {**config, **(text if isinstance(text, dict) else {})}
    for key in ("num_hidden_layers", "n_layers", "n_layer", "num_layers"):
        layers = merged.get(key, 0)
        if not isinstance(layers, int) or not 0 <= layers <= len(tensors):
            raise EngineError(
                f"{folder}/config.json has {key} {str(layers)[:40]}, but the weight files hold "
                f"{len(tensors)} tensors; download both again"
            )
    return sum(path.stat().st_size for path in {tensor.path for tensor in tensors.values()})


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER_LIMIT_BYTES, size - 8):
            raise EngineError(
                f"{path} is not a whole safetensors file ({size} bytes); download it again"
            )
        try:
            header = parse_json(file.read(length))
            entries = {
                k: _entry(path, k, v, 8 + length, size)
                for k, v in header.items()
                if k != "__metadata__"
            }
            spans = sorted((*v["data_offsets"], k) for k, v in header.items() if k in entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(
                f"{path} has a malformed safetensors header ({error}); download it again"
            ) from error
    for (_, end, _), (begin, _, name) in pairwise(spans):
        if begin < end:
            raise EngineError(
                f"{path} is malformed: {name!r} lies on another tensor; download it again"
            )
    return entries


def _whole_numbers(fields: JsonObject, key: str) -> tuple[int, ...]:
    numbers = tuple(n for n in list_in(fields, key) if isinstance(n, int))
    if key not in fields or len(numbers) != len(list_in(fields, key)):
        raise ValueError(f"{key} holds no whole numbers")
    return numbers


def _entry(path: Path, name: str, fields: JsonObject, data_start: int, size: int) -> StoredTensor:
    begin, end = _whole_numbers(fields, "data_offsets")
    shape = _whole_numbers(fields, "shape")
    dtype = str(fields["dtype"])
    bits = _BITS.get(dtype) or int(dtype.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ").partition("_")[0])
    expected = math.prod(shape) * bits // 8  # exact: Python's integers do not overflow
    outside = any(not 0 <= n <= _LARGEST_DIMENSION for n in shape) or len(shape) > 8
    if outside or begin < 0 or end - begin != expected or data_start + end > size:
        raise EngineError(f"{path} is cut off or malformed at {name!r}; download it again")
    return StoredTensor(path, name, dtype, shape, data_start + begin)
