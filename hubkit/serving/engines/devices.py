"""CUDA devices, asked without torch, and how a model is spread over them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_QUERY = ("--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_S = 20
# Of a device's memory: what weights may take, so that the rest holds keys and values.
_WEIGHTS_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Parallelism:
    """How many devices share one copy of the weights, and how many copies there are."""

    tensor: int
    data: int


def visible_devices() -> list[str]:
    """The devices that a child may use, as `CUDA_VISIBLE_DEVICES` names them."""
    configured = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not _driver_rows():
        return []
    if configured is not None:
        return [name for name in configured.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index in range(len(_driver_rows()))]


def device_memory_bytes() -> int:
    """Memory of the smallest visible device; 0 where the driver does not say."""
    rows, names = _driver_rows(), visible_devices()
    sizes = [
        int(memory) * 2**20
        for index, (uuid, memory) in enumerate(rows)
        if (str(index) in names or uuid in names) and memory.isdigit()
    ]
    return min(sizes, default=0)


def parallelism(
    devices: int, weights_bytes: int, memory_bytes: int, heads: int | None = None
) -> Parallelism:
    """Choose tensor and data parallelism for `devices` devices.

    As few devices as hold the weights share a copy, because copies scale without communication.

    Args:
        devices: How many may be used.
        weights_bytes: Size of the weight files.
        memory_bytes: Memory of one device; 0 if unknown, and then all devices share one copy.
        heads: Attention heads, which the devices of a copy must divide evenly; None if unknown.
    """
    sizes = [n for n in range(1, devices + 1) if devices % n == 0 and not (heads or n) % n]
    enough = [n for n in sizes if weights_bytes <= n * memory_bytes * _WEIGHTS_SHARE]
    tensor = enough[0] if enough else sizes[-1] if sizes else 1
    return Parallelism(tensor, max(1, devices // tensor))


def weights_bytes(folder: Path) -> int:
    """Size of the safetensors files in `folder`."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _driver_rows() -> Sequence[tuple[str, str]]:
    """(uuid, memory in MiB) of every device that the driver knows."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode:
        return []
    rows = [line.partition(",") for line in answer.stdout.splitlines() if line.strip()]
    return [(uuid.strip(), memory.strip()) for uuid, _, memory in rows]
