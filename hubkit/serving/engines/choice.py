"""Which embedded engine a model gets, asked of the embedded engine's package in a process of its
own, and the files that other engines are given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hubkit.errors import EngineError, HubError, HubUnreachableError, RepoMissingError
from hubkit.serving.engines import devices
from hubkit.untrusted import JsonObject, text_in, texts_in

_WEIGHT_PATTERNS = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "*.txt"]


class EngineChoice(NamedTuple):
    """An engine's name (``llamacpp`` or ``transformers``) and why it is the one."""

    engine: str
    reason: str


def engine_for(
    folder: Path,
    adapters: Iterable[Path] = (),
    *,
    context: int | None = None,
    cache_dir: Path | None = None,
) -> EngineChoice:
    """Say which engine the embedded server would take for a model, and why, without loading it.

    Args:
        folder: The model's folder; its config.json is enough.
        adapters: Folders of LoRA adapters served with it; their adapter_config.json is enough.
        context: Tokens per sequence that will be served.
        cache_dir: Where converted weights are kept (``cache("engine")``).

    Raises:
        EngineError: The folder has no readable configuration.
    """
    request: JsonObject = {"adapters": [str(path) for path in adapters]}
    request |= {"context": context} if context else {}
    request |= {"cache_dir": str(cache_dir)} if cache_dir else {}
    answer = _ask("engine_choice", [str(folder)], request, {})
    return EngineChoice(text_in(answer, "engine"), text_in(answer, "reason"))


def converter_state(cache_dir: Path) -> str:
    """Whether llama.cpp's converter has been fetched to `cache_dir`, as a phrase."""
    answer = _ask("llamacpp_source", [str(cache_dir)], {}, {})
    return str(answer["state"])


def cuda_reason() -> str | None:
    """What CUDA devices there are, as a phrase; None without any."""
    count = len(devices.visible_devices())
    return f"{count} CUDA device{'s' if count > 1 else ''} here" if count else None


def gguf_files(
    model: str,
    adapters: Mapping[str, str],
    *,
    env: Mapping[str, str],
    cache_dir: Path | None = None,
) -> tuple[Path, dict[str, Path]]:
    """Convert a model and its adapters for llama.cpp, once per commit.

    Args:
        model: ``repo_id[@revision]`` or a folder.
        adapters: Name → repo or folder.
        env: Laid over the environment, so that the same Hub is used.
        cache_dir: Where converted weights are kept.

    Returns:
        The base's GGUF file, and each adapter's by its name.

    Raises:
        EngineError: llama.cpp cannot compute one of them.
    """
    request = {"model": model, "adapters": dict(adapters)}
    request |= {"cache_dir": str(cache_dir)} if cache_dir else {}
    answer = _ask("conversion", [], request, env)
    return Path(text_in(answer, "model")), {
        name: Path(path) for name, path in texts_in(answer, "adapters").items()
    }


def snapshot_folder(spec: str, env: Mapping[str, str]) -> Path:
    """The folder of ``repo_id[@revision]`` at the Hub of `env`, downloaded if needed, or the folder
    that `spec` is. Raises `RepoMissingError` or `HubUnreachableError`.
    """
    if Path(spec).is_dir():
        return Path(spec).resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    merged = {**os.environ, **env}
    repo_id, _, revision = spec.partition("@")
    try:
        folder = snapshot_download(
            repo_id,
            revision=revision or None,
            endpoint=merged.get("HF_ENDPOINT"),
            token=merged.get("HF_TOKEN"),
            cache_dir=merged.get("HF_HUB_CACHE"),
            allow_patterns=_WEIGHT_PATTERNS,
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise RepoMissingError(
            f"{spec} is not at {merged.get('HF_ENDPOINT') or 'the Hub'} for this token, nor a "
            "local folder; check its name and your token"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise HubUnreachableError(f"{spec} cannot be downloaded: {error}") from error
    return Path(folder)


def _ask(
    module: str, arguments: list[str], request: Mapping[str, Any], env: Mapping[str, str]
) -> JsonObject:
    """Run a module of the embedded engine with `request` on standard input; its JSON answer."""
    child = subprocess.run(
        [sys.executable, "-m", f"hubkit.local_engine.{module}", *arguments],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )
    lines = child.stdout.strip().splitlines()
    if child.returncode or not lines:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"hubkit.local_engine.{module} failed: {last}")
    answer: JsonObject = json.loads(lines[-1])
    if "error" in answer:
        kind = HubError if answer.get("kind") == "hub" else EngineError
        raise kind(text_in(answer, "error"))
    return answer
