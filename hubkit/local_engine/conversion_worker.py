"""The child process of `conversion`: sets its limits, converts one thing, tries the result.

Reads a task as JSON on standard input. Its report (a JSON file, replaced at each step) says how far
it came: ``convert``, ``trial``, ``done``, or an error and its kind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import resource
import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn

from hubkit.errors import EngineError
from hubkit.files import write_whole
from hubkit.local_engine.engine import Job, UnsupportedModelError
from hubkit.untrusted import JsonObject, object_in, parse_json, text_in

_FORBIDDEN = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.sendto",
    "subprocess.Popen",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.system",
    "pickle.find_class",
)
_TRIAL_CONTEXT = 64


def main() -> int:
    """Carry out one task; 0 when the report says what came of it."""
    task = json.load(sys.stdin)
    _limit(task["limits"])
    report = Path(task["report"])
    try:
        _write(report, phase="convert")
        _load_libraries(task)
        sys.addaudithook(_refuse)
        out = Path(task["out"])
        with contextlib.redirect_stdout(sys.stderr):
            _CONVERTERS[task["kind"], task["converter"] is not None](task, out)
        if not out.is_file():
            raise UnsupportedModelError(f"llama.cpp's converter wrote nothing for {task['folder']}")
        _write(report, phase="trial")
        _try(Path(task.get("base_gguf", out)), {"trial": out} if "base_gguf" in task else {})
        _write(report, phase="done")
    except UnsupportedModelError as error:
        _write(report, error=str(error), kind="unsupported")
    except EngineError as error:
        _write(report, error=str(error), kind="engine")
    except MemoryError:
        limit = task["limits"]["memory_bytes"] >> 20
        _write(
            report,
            error=f"{task['folder']}: the conversion needs more than {limit} MiB of memory",
            kind="engine",
        )
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        large = "; it writes more than it may" if error.errno == errno.EFBIG else ""
        _write(report, error=f"{task['folder']}: {error}{large}", kind="full" if full else "engine")
    return 0


def _limit(limits: dict[str, int]) -> None:
    for name, value in (
        (resource.RLIMIT_DATA, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(name)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (bound, bound))


def _write(report: Path, **fields: Any) -> None:
    write_whole(report, json.dumps(fields))


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _FORBIDDEN:
        raise EngineError(f"the conversion tried {event}, which it has no reason for")


def _load_libraries(task: JsonObject) -> None:
    """Import, before anything is forbidden, what looks around in the system when imported."""
    if task["kind"] == "gguf":
        import transformers

        assert transformers.AutoTokenizer
    if not text_in(task, "converter"):
        return
    converter = text_in(task, "converter")
    sys.path[:0] = [converter, f"{converter}/gguf-py"]
    import torch
    from transformers import AutoConfig, AutoTokenizer, dynamic_module_utils

    def no_remote_code(*_: Any, **__: Any) -> NoReturn:
        raise UnsupportedModelError(f"{task['folder']} is computed by code of its own repo")

    dynamic_module_utils.get_class_from_dynamic_module = no_remote_code
    dynamic_module_utils.resolve_trust_remote_code = lambda *_, **__: False
    torch.set_num_threads(1)
    assert AutoConfig and AutoTokenizer
    _read_current_configurations()
    logging.getLogger().addHandler(_Errors())


def _read_current_configurations() -> None:
    """Give llama.cpp's converter the keys by which transformers 4 named the rotary settings."""
    from conversion import ModelBase  # type: ignore[import-not-found]

    load = ModelBase.load_hparams

    def load_hparams(folder: Path, is_mistral_format: bool, guess: bool = False) -> JsonObject:
        hparams: JsonObject = load(folder, is_mistral_format, guess=False)
        rope = object_in(hparams, "rope_parameters")
        share, theta = rope.get("partial_rotary_factor"), rope.get("rope_theta")
        names = {"partial_rotary_factor": share, "rotary_pct": share, "rope_theta": theta}
        names |= {"rotary_emb_base": theta, "n_ctx": hparams.get("n_positions")}
        return {**{k: v for k, v in names.items() if v is not None}, **hparams}

    ModelBase.load_hparams = staticmethod(load_hparams)


class _Errors(logging.Handler):
    """Keeps what llama.cpp's converter says went wrong."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            type(self).last = record.getMessage()


def _model_here(task: JsonObject, out: Path) -> None:
    from hubkit.local_engine.gguf_model import QUANTISATIONS, convert_model

    (dtype,) = (name for name in QUANTISATIONS if name == text_in(task, "dtype"))
    convert_model(Path(text_in(task, "folder")), out, dtype)


def _adapter_here(task: JsonObject, out: Path) -> None:
    from hubkit.local_engine.gguf_lora import convert_lora
    from hubkit.local_engine.gguf_model import read_config

    convert_lora(Path(text_in(task, "folder")), read_config(Path(text_in(task, "base"))), out)


def _model_by_llamacpp(task: JsonObject, out: Path) -> None:
    """llama.cpp's tensors and hyper-parameters, and our vocabulary."""
    import gguf
    import torch
    from conversion import (
        ModelBase,
        ModelType,
        get_model_architecture,
        get_model_class,
    )

    from hubkit.local_engine.gguf_model import eos_token_ids, read_config
    from hubkit.local_engine.gguf_vocab import write_vocab

    folder = Path(text_in(task, "folder"))
    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}

    def convert() -> None:
        hparams = ModelBase.load_hparams(folder, False)
        base = get_model_class(get_model_architecture(hparams, ModelType.TEXT))

        class Model(base):  # type: ignore[misc,valid-type]
            model_arch = base.model_arch

            def set_vocab(self) -> None:
                infos = [info for shard in self.gguf_writer.tensors for info in shard.items()]
                (rows,) = (int(t.shape[0]) for name, t in infos if name == "token_embd.weight")
                ends = eos_token_ids(folder, read_config(folder))
                write_vocab(self.gguf_writer, folder, rows=rows, eos_token_ids=ends)

            def set_gguf_parameters(self) -> None:
                super().set_gguf_parameters()
                _correct_feed_forward_length(self.gguf_writer)

        kind = getattr(gguf.LlamaFileType, kinds[text_in(task, "dtype")])
        with torch.inference_mode():
            Model(folder, kind, out, model_name="model", hparams=hparams).write()

    _call_converter(convert, task)


def _correct_feed_forward_length(writer: Any) -> None:
    """Let the layers' width be that of their tensors where llama.cpp's converter writes four times
    the embedding's, whatever the configuration says (Phi, GPT-2, Falcon and others)."""
    infos = {name: info for shard in writer.tensors for name, info in shard.items()}
    written = {key: value for shard in writer.kv_data for key, value in shard.items()}
    length = written.get(f"{writer.arch}.feed_forward_length")
    width = written.get(f"{writer.arch}.embedding_length")
    down = infos.get("blk.0.ffn_down.weight")
    if length and width and down and length.value == 4 * width.value:
        length.value = int(down.shape[-1])


def _adapter_by_llamacpp(task: JsonObject, out: Path) -> None:
    """The adapter with the alpha and the factors that llama.cpp needs, through its script."""
    from hubkit.local_engine.gguf_lora import write_transposed

    source, copy = Path(text_in(task, "folder")), Path(text_in(task, "scratch")) / "adapter"
    copy.mkdir()
    config = parse_json((source / "adapter_config.json").read_text("utf-8"))
    config["lora_alpha"] = task["alpha"]
    (copy / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    weights = "adapter_model.safetensors"
    if task["conv1d"]:
        write_transposed(source, copy / weights)
    else:
        (copy / weights).symlink_to(source / weights)
    script = f"{task['converter']}/convert_lora_to_gguf.py"
    sys.argv = [script, "--base", text_in(task, "base"), "--outfile", str(out), "--outtype", "f32"]
    sys.argv.append(str(copy))
    _call_converter(lambda: runpy.run_path(script, run_name="__main__"), task)


def _gguf(task: JsonObject, out: Path) -> None:
    from hubkit.local_engine.gguf_file import serve_folder

    serve_folder(Path(text_in(task, "folder")), out)


def _call_converter(convert: Any, task: JsonObject) -> None:
    """Whatever llama.cpp's converter raises means that it cannot convert this."""
    try:
        convert()
    except (MemoryError, OSError, EngineError):
        raise
    except SystemExit as error:
        if error.code:
            raise UnsupportedModelError(
                f"llama.cpp's converter refuses {task['folder']}: {_Errors.last or error.code}"
            ) from error
    except Exception as error:
        raise UnsupportedModelError(
            f"llama.cpp's converter cannot convert {task['folder']}: "
            f"{type(error).__name__}: {str(error)[:300]}"
        ) from error


def _try(base: Path, adapters: dict[str, Path]) -> None:
    """Load into llama.cpp and compute two tokens."""
    from hubkit.local_engine.llamacpp import LlamaCppEngine

    async def generate(engine: LlamaCppEngine) -> None:
        adapter = next(iter(adapters), None)
        async for _ in engine.generate(Job([0, 1], 2, adapter=adapter)):
            pass

    try:
        engine = LlamaCppEngine(base, adapters, parallel=1, context=_TRIAL_CONTEXT, threads=1)
        asyncio.run(generate(engine))
        engine.close()
    except EngineError as error:
        raise UnsupportedModelError(str(error)) from error


_CONVERTERS = {
    ("model", False): _model_here,
    ("adapter", False): _adapter_here,
    ("gguf", False): _gguf,
    ("model", True): _model_by_llamacpp,
    ("adapter", True): _adapter_by_llamacpp,
}

if __name__ == "__main__":
    sys.exit(main())
