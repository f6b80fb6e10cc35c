"""Which engine serves a model, and why: decided from its configuration alone, before anything is
fetched, converted or loaded.

``python -m hubkit.local_engine.engine_choice FOLDER…`` prints one JSON object per folder, so that
other processes can ask without importing anything of this package. `architectures.txt` lists what
llama.cpp's converter (`llamacpp_source.SOURCE`) takes of the models that write text: the name in
`architectures`, llama.cpp's own name, and ``window`` where llama.cpp computes sliding-window
attention."""

from __future__ import annotations

import functools
import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from hubkit.errors import HubkitError, RemoteCodeError, brings_code
from hubkit.local_engine import llamacpp_source
from hubkit.local_engine.engine import UnsupportedModelError
from hubkit.local_engine.gguf_lora import check_adapter
from hubkit.local_engine.gguf_model import architecture, check_supported, read_config
from hubkit.untrusted import JsonObject

# Ways of storing quantised weights that llama.cpp's converter reads.
_QUANTISATIONS = {"bitnet", "fp8", "gptq", "compressed-tensors", "modelopt", "mxfp4"}
# Whose graph in llama.cpp ignores `norm_topk_prob`: seen by comparing log-probabilities.
_NORMALISES_EXPERTS = {"Qwen3MoeForCausalLM"}
DEFAULT_CONTEXT = 2048


class EngineChoice(NamedTuple):
    """An engine's name and why it is the one, as half a sentence."""

    engine: Literal["llamacpp", "transformers"]
    reason: str


def engine_for(
    folder: Path,
    adapters: tuple[Path, ...] = (),
    *,
    context: int = DEFAULT_CONTEXT,
    cache_dir: Path | None = None,
) -> EngineChoice:
    """Choose the engine for the model in `folder`.

    Args:
        folder: A model's folder; its config.json is enough. A GGUF file or a folder with one is
            llama.cpp's.
        adapters: Folders with LoRA adapters that are served too.
        context: Tokens per sequence: below a model's attention window the window does not matter.
        cache_dir: Where llama.cpp's converter is kept, to say whether it has been fetched.

    Raises:
        EngineError: There is no readable configuration.
        RemoteCodeError: Neither engine computes the model without code out of its repo.
    """
    choice = _engine_for(folder, adapters, context, cache_dir)
    if choice.engine == "transformers":
        _refuse_code(folder)
    return choice


def _engine_for(
    folder: Path, adapters: tuple[Path, ...], context: int, cache_dir: Path | None
) -> EngineChoice:
    if folder.suffix == ".gguf" or (any(folder.glob("*.gguf")) and not _has_config(folder)):
        return EngineChoice("llamacpp", "a GGUF file is llama.cpp's own format")
    config = read_config(folder)
    if accelerator := cuda():
        return EngineChoice("transformers", f"the embedded llama.cpp has no CUDA; {accelerator}")
    try:
        reason = _conversion(config, context, cache_dir)
        for adapter in adapters:
            check_adapter(adapter, config)
    except UnsupportedModelError as error:
        return EngineChoice("transformers", str(error))
    return EngineChoice("llamacpp", reason)


def _refuse_code(folder: Path) -> None:
    """Raise `RemoteCodeError` for a model that brings its architecture as code."""
    config = read_config(folder)
    if not config.get("auto_map"):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise RemoteCodeError(brings_code(str(folder)))


def converts_here(config: JsonObject) -> bool:
    """Whether this package's own converter handles `config`, without torch and without a
    download.
    """
    try:
        check_supported(config)
    except UnsupportedModelError:
        return False
    return True


def check_convertible(config: JsonObject, context: int) -> None:
    """Raise `UnsupportedModelError` for a model that llama.cpp does not compute exactly."""
    name = architecture(config)
    if name not in _architectures():
        raise UnsupportedModelError(f"llama.cpp has no conversion for {name}")
    window = _window(config)
    if window and not _architectures()[name] and window < context - 1:
        raise UnsupportedModelError(
            f"llama.cpp ignores the attention window of {name} ({window} tokens, of {context})"
        )
    if name in _NORMALISES_EXPERTS and config.get("norm_topk_prob") is False:
        raise UnsupportedModelError(f"llama.cpp always normalises the expert weights of {name}")
    quantisation = config.get("quantization_config") or {}
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else "?"
    if quantisation and method not in _QUANTISATIONS:
        raise UnsupportedModelError(f"llama.cpp's converter reads no {method} weights")


def cuda() -> str | None:
    """What says that models are computed on a CUDA device here; None where they are not.

    Without torch in the process: by the driver's device files, what is visible, and the build of
    torch that is installed."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return None
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return None
    try:
        build = version("torch")
    except PackageNotFoundError:
        return None
    return None if "+cpu" in build else f"torch {build} computes on the GPU"


def _conversion(config: JsonObject, context: int, cache_dir: Path | None) -> str:
    check_convertible(config, context)
    name = architecture(config)
    if converts_here(config):
        return f"{name} weights are converted to GGUF by hubkit"
    source = llamacpp_source.SOURCE
    present = cache_dir is not None and llamacpp_source.folder(cache_dir).is_dir()
    fetched = "" if present else f", {source.megabytes} MB, fetched at first use"
    converter = f"{source.project} {source.version}{fetched}"
    return f"{name} weights are converted to GGUF by llama.cpp ({converter})"


@functools.cache
def _architectures() -> dict[str, bool]:
    """Name in `architectures` → whether llama.cpp computes sliding-window attention for it."""
    text = (Path(__file__).parent / "architectures.txt").read_text("utf-8")
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: "window" in row[2:] for row in rows}


def _window(config: JsonObject) -> int | None:
    """The attention window in tokens, where one is in use."""
    text = config.get("text_config")
    merged = {**config, **(text if isinstance(text, dict) else {})}
    window = merged.get("sliding_window")
    if not isinstance(window, int) or merged.get("use_sliding_window") is False:
        return None
    kinds = merged.get("layer_types")
    if isinstance(kinds, list) and "sliding_attention" not in kinds:
        return None
    return window


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").exists() and any(folder.glob("*.safetensors"))


def main() -> int:
    """Print the choice for each folder of the command line; an error is a choice of none."""
    arguments = json.loads(sys.stdin.read() or "{}")
    for name in sys.argv[1:]:
        try:
            choice = engine_for(
                Path(name),
                tuple(map(Path, arguments.get("adapters", ()))),
                context=arguments.get("context", DEFAULT_CONTEXT),
                cache_dir=Path(arguments["cache_dir"]) if "cache_dir" in arguments else None,
            )
            print(json.dumps({"engine": choice.engine, "reason": choice.reason}))
        except HubkitError as error:
            print(json.dumps({"error": str(error)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
