"""A model repo or a LoRA adapter as GGUF files for llama.cpp, made in a child process with limits.

**Two converters, and why.** Llama and Mistral, and with them the offline demo, are converted by
this package (`gguf_model`, `gguf_lora`): no torch, no download, one tensor in memory at a time.
Everything else is converted by llama.cpp's own converter (`llamacpp_source`).

- *Fidelity*: a conversion is right if it matches what llama.cpp's graph for that architecture
  expects (permutations, norms stored as w - 1, fused experts, rotary factors, scales). Its authors
  change both together; a second implementation would lag behind.
- *Breadth*: 199 architectures that write text, LoRA for all of them, and weights stored as FP8,
  GPTQ, MXFP4 or compressed tensors. Widening ours by hand gained eight.
- *Upkeep*: one pinned version and hash, against a table kept here per architecture and release.
- *Cost*: 37 MB once, and torch for a few seconds per conversion. Where it cannot be fetched, the
  transformers engine serves, and says so.

Only its tensors and hyper-parameters are used. Vocabularies are ours in either case
(`gguf_vocab`): llama.cpp here reads and writes token ids, its converter would refuse every
tokenizer whose hash it has not been told, and for some of them it asks for remote code.

**Limits.** Weights and configurations are untrusted input. `tensors.check_plausible` refuses what
contradicts itself; then a child (`conversion_worker`) converts without network, without further
processes and without this process's environment, within limits on memory, written bytes and time
that follow from the size of the files. It loads what it wrote into llama.cpp and computes a token,
so that a file which llama.cpp refuses, or dies of, is found there and not in the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hubkit
from hubkit.errors import DiskFullError, EngineError, HubError, HubkitError
from hubkit.local_engine import llamacpp_source
from hubkit.local_engine.engine import UnsupportedModelError
from hubkit.local_engine.engine_choice import check_convertible, converts_here
from hubkit.local_engine.gguf_header import check_header
from hubkit.local_engine.gguf_lora import check_adapter, has_conv1d
from hubkit.local_engine.gguf_model import Dtype, read_config
from hubkit.local_engine.repo import Snapshot, converted, fetch
from hubkit.local_engine.settings import DEFAULT_CONTEXT, default_cache_dir
from hubkit.local_engine.tensors import check_plausible, stored_tensors
from hubkit.locks import FileLock
from hubkit.untrusted import JsonObject, text_in

GGUF_MODEL = "model.gguf"
_GIB = 1 << 30
_SLOWEST_BYTES_S = 2_000_000  # of weights per second of CPU time, on the slowest machine
_FIXED_CPU_S = 300
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")


def gguf_files(
    model: Snapshot,
    adapters: Mapping[str, Snapshot],
    *,
    dtype: Dtype,
    context: int,
    cache_dir: Path,
) -> tuple[Path, dict[str, Path]]:
    """The GGUF files of a model and its adapters, each converted once per commit into `cache_dir`.

    Raises as `model_to_gguf` does.
    """
    if (model.folder / GGUF_MODEL).exists():
        if adapters:
            raise UnsupportedModelError(
                f"{model.name} is a GGUF file, which adapters cannot be converted for; serve them "
                "on the base's repo with safetensors"
            )
        return model.folder / GGUF_MODEL, {}
    base = converted(
        cache_dir,
        f"{model.key}-{dtype}",
        lambda out: model_to_gguf(
            model.folder, out, dtype=dtype, context=context, cache_dir=cache_dir
        ),
    )

    def lora(adapter: Snapshot) -> Path:
        return converted(
            cache_dir,
            f"{model.key}-lora-{adapter.key}",
            lambda out: adapter_to_gguf(adapter.folder, model.folder, base, out, cache_dir),
        )

    return base, {name: lora(adapter) for name, adapter in adapters.items()}


def prepared(model: Snapshot, cache_dir: Path) -> Snapshot:
    """Return `model` itself, or for a GGUF file a folder that serves like a model repo: the file
    with this package's vocabulary, its tokenizer.json, chat template and config.json.

    Raises:
        EngineError: The file is damaged, or its tokenizer cannot be reproduced exactly.
    """
    if model.gguf is None:
        return model
    source = model.gguf
    check_header(source)
    target = cache_dir / f"gguf-{model.key}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
                folder = Path(scratch) / "model"
                folder.mkdir()
                task = {"kind": "gguf", "folder": str(source), "converter": None}
                run_limited({**task, "out": str(folder / GGUF_MODEL)}, source.stat().st_size)
                folder.rename(target)
    return Snapshot(model.name, target, model.key)


def model_to_gguf(folder: Path, out: Path, *, dtype: Dtype, context: int, cache_dir: Path) -> None:
    """Write `out`, the GGUF of the model in `folder`, checked to load and to compute.

    Args:
        folder: A model repo: config.json, safetensors, tokenizer.json.
        out: The file to write.
        dtype: How matrices are stored; vectors stay float32.
        context: Tokens per sequence that will be served.
        cache_dir: Where llama.cpp's converter is kept.

    Raises:
        UnsupportedModelError: llama.cpp cannot compute this model exactly.
        EngineError: The repo is damaged, or its conversion exceeds its limits.
    """
    config = read_config(folder)
    size = check_plausible(folder, config)
    check_convertible(config, context)
    task: JsonObject = {"kind": "model", "folder": str(folder), "out": str(out), "dtype": dtype}
    _convert(converts_here(config), task, size, cache_dir)


def adapter_to_gguf(adapter: Path, base: Path, base_gguf: Path, out: Path, cache_dir: Path) -> None:
    """Write `out`, the GGUF of the LoRA adapter in `adapter` for the model in `base`, whose GGUF is
    `base_gguf`. Raises as `model_to_gguf` does.
    """
    config = read_config(base)
    alpha = check_adapter(adapter, config)
    tensors = stored_tensors(adapter, "adapter_model*.safetensors")
    size = sum(path.stat().st_size for path in {tensor.path for tensor in tensors.values()})
    task: JsonObject = {
        "kind": "adapter",
        "folder": str(adapter),
        "base": str(base),
        "base_gguf": str(base_gguf),
        "out": str(out),
        "alpha": alpha,
        "conv1d": has_conv1d(config),
    }
    _convert(converts_here(config), task, size + base_gguf.stat().st_size, cache_dir)


def _convert(built_in: bool, task: JsonObject, size: int, cache_dir: Path) -> None:
    """Convert with this package where it can, else with llama.cpp's converter."""
    if built_in:
        try:
            return run_limited({**task, "converter": None}, size)
        except UnsupportedModelError:
            pass  # a tensor that only llama.cpp's converter knows
    converter = llamacpp_source.converter(cache_dir)
    run_limited({**task, "converter": str(converter)}, size)


def run_limited(task: JsonObject, size: int) -> None:
    """Carry out `task` in a child process whose limits follow from `size`, the bytes it reads.

    Raises:
        UnsupportedModelError: The child says so, or llama.cpp aborted on what it wrote.
        EngineError: The child says so, or exceeded a limit.
        DiskFullError: There is no space left for the result.
    """
    cpu_s = _FIXED_CPU_S + size // _SLOWEST_BYTES_S
    limits = {
        "memory_bytes": 4 * _GIB + 3 * size,
        "file_bytes": _GIB // 4 + 5 * size,
        "cpu_s": cpu_s,
    }
    with tempfile.TemporaryDirectory(prefix="hubkit-conversion-") as scratch:
        report = Path(scratch) / "report.json"
        request = {**task, "limits": limits, "report": str(report), "scratch": scratch}
        command = [sys.executable, "-P", "-m", "hubkit.local_engine.conversion_worker"]
        try:
            child = subprocess.run(
                command,
                input=json.dumps(request),
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                cwd=scratch,
                env=_environment(),
                timeout=4 * cpu_s,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"{task['folder']}: the conversion took more than {4 * cpu_s} s and was ended"
            ) from error
        outcome = json.loads(report.read_text("utf-8")) if report.exists() else {}
    _judge(task, outcome, child, cpu_s)


def _judge(task: JsonObject, outcome: JsonObject, child: Any, cpu_s: int) -> None:
    folder, phase = task["folder"], outcome.get("phase")
    if phase == "done":
        return
    if outcome.get("error"):
        problem = text_in(outcome, "kind")
        if problem == "full":
            raise DiskFullError(f"no space left for {task['out']}; free some or set --cache-dir")
        kind: Callable[[str], Exception] = (
            UnsupportedModelError if problem == "unsupported" else EngineError
        )
        raise kind(text_in(outcome, "error"))
    last = (child.stderr.strip().splitlines() or ["no message"])[-1][-300:]
    if -child.returncode == signal.SIGXCPU:
        last = f"it took more than {cpu_s} s of CPU time"
    if phase == "trial" and -child.returncode in (signal.SIGABRT, signal.SIGSEGV, signal.SIGFPE):
        raise UnsupportedModelError(f"llama.cpp aborts on {folder}: {last}")
    raise EngineError(
        f"{folder}: the conversion to GGUF ended with exit status {child.returncode}: {last}"
    )


def _with_tokenizer(base: Path, model: Snapshot, dtype: str, cache_dir: Path) -> Path:
    from hubkit.local_engine.gguf_text import with_tokenizer

    return converted(
        cache_dir,
        f"{model.key}-{dtype}-text",
        lambda out: with_tokenizer(base, model.folder, out),
    )


def _environment() -> dict[str, str]:
    """What the child needs and nothing else: no token of any kind."""
    inherited = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    package = str(Path(hubkit.__file__).resolve().parent.parent)
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(min(4, len(os.sched_getaffinity(0)))),
    }


def main() -> int:
    """Convert what standard input names (``model``, ``adapters``) for a server that is sent text;
    print the paths as JSON.
    """
    request = json.load(sys.stdin)
    cache_dir = Path(request.get("cache_dir") or default_cache_dir())
    dtype = request.get("dtype", "q8_0")
    try:
        model = fetch(request["model"])
        base, adapters = gguf_files(
            prepared(model, cache_dir),
            {name: fetch(spec) for name, spec in request["adapters"].items()},
            dtype=dtype,
            context=request.get("context", DEFAULT_CONTEXT),
            cache_dir=cache_dir,
        )
        base = model.gguf or _with_tokenizer(base, model, dtype, cache_dir)
    except HubkitError as error:
        kind = "hub" if isinstance(error, HubError) else "engine"
        print(json.dumps({"error": str(error), "kind": kind}))
        return 0
    loras = {name: str(path) for name, path in adapters.items()}
    print(json.dumps({"model": str(base), "adapters": loras}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
