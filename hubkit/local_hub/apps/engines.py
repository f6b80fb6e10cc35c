"""What an inference endpoint of the embedded Hub runs: the embedded engine, started for an
endpoint's settings.

The engine is another program, known by its command line and by the state file that it writes when
it is ready. What the container images of the real service read from their environment and arguments
is translated to its options here."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubkit.errors import EngineError
from hubkit.files import write_whole
from hubkit.local_hub.apps.subprocesses import ChildProcess, environment, last_words

START_TIMEOUT_S = 600.0
_ENV_OPTIONS = {"MAX_TOTAL_TOKENS": "--context", "MAX_CONCURRENT_REQUESTS": "--max-concurrent"}
_ARG_OPTIONS = {
    "--max-model-len": "--context",
    "--context-length": "--context",
    "--max-num-seqs": "--slots",
    "--max-running-requests": "--slots",
}


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine serves: a repo at a revision (``repo_id[@revision]``), adapters by name, and
    other options.
    """

    model: str
    adapters: dict[str, str]
    options: tuple[str, ...]

    @property
    def repos(self) -> list[str]:
        """The ids of all repos that it reads."""
        return [spec.partition("@")[0] for spec in (self.model, *self.adapters.values())]


def engine_spec(model: Mapping[str, Any]) -> EngineSpec:
    """What the settings of an endpoint's model mean. Raises `ValueError` for what cannot be read.

    Adapters come as text-generation-inference takes them (``LORA_ADAPTERS=repo_id@revision,…`` in
    the environment), or as vLLM and SGLang do (``--lora-modules name=path``, ``--lora-paths
    name=path``); ``/repository`` is the endpoint's own repository, which then is an adapter of the
    model that ``--model`` names."""
    repository, revision = str(model["repository"]), model.get("revision")
    repo_at_revision = f"{repository}@{revision}" if revision else repository
    env, args = dict(model.get("env") or {}), [str(arg) for arg in model.get("args") or []]
    base, adapters = repo_at_revision, _tgi_adapters(str(env.get("LORA_ADAPTERS", "")))
    named = {flag: args[at + 1] for at, flag in enumerate(args[:-1]) if flag.startswith("--")}
    for flag in ("--lora-modules", "--lora-paths"):
        for text in _values(args, flag):
            name, equals, path = text.partition("=")
            if not (name and equals and path):
                raise ValueError(f"{flag} {text!r} is not NAME=PATH")
            adapters[name] = repo_at_revision if path == "/repository" else path
    model_name = named.get("--model") or named.get("--model-path")
    if list(model.get("command") or [])[-1:] == ["serve"] and args and not args[0].startswith("-"):
        model_name = args[0]
    if model_name and model_name != "/repository":
        base_revision = named.get("--revision")
        base = f"{model_name}@{base_revision}" if base_revision else model_name
    options: list[str] = []
    for values, table in ((env, _ENV_OPTIONS), (named, _ARG_OPTIONS)):
        for name, option in table.items():
            if str(values.get(name, "")).isdecimal():
                options += [option, str(values[name])]
    return EngineSpec(base, adapters, tuple(options))


def _tgi_adapters(text: str) -> dict[str, str]:
    """``LORA_ADAPTERS``: repo_id[@revision] separated by commas; an adapter is called by its repo's
    id.
    """
    return {
        part.partition("@")[0]: part
        for part in (piece.strip() for piece in text.split(","))
        if part
    }


def _values(args: Sequence[str], flag: str) -> list[str]:
    if flag not in args:
        return []
    tail = args[args.index(flag) + 1 :]
    end = next((at for at, arg in enumerate(tail) if arg.startswith("--")), len(tail))
    return list(tail[:end])


class Engine:
    """A running engine: a child that answers at `address`, to whoever knows `key`."""

    def __init__(
        self,
        spec: EngineSpec,
        folder: Path,
        cache: Path,
        hub_url: str,
        token: str,
        on_stop: Callable[[], None],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._on_stop = on_stop
        self.key = secrets.token_hex(16)
        self._state = folder / f"state-{self.key[:8]}.json"
        self.log = folder / "engine.log"
        self.address = ""
        token_path = folder / "token"
        write_whole(token_path, token.encode(), mode=0o600, durable=True)
        command = [
            sys.executable,
            "-m",
            "hubkit.local_engine",
            "--model",
            spec.model,
            "--exit-with-parent",
        ]
        command += [
            "--state-file",
            str(self._state),
            "--cache-dir",
            str(cache / "gguf"),
            *spec.options,
        ]
        for name, adapter in spec.adapters.items():
            command += ["--adapter", f"{name}={adapter}"]
        env = environment(
            {
                "HF_ENDPOINT": hub_url,
                "HF_TOKEN_PATH": str(token_path),
                "HF_HUB_CACHE": str(cache / "hub"),
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HUBKIT_ENDPOINT_TOKEN": self.key,
            }
        )
        with self.log.open("wb") as log:
            self.child = ChildProcess(command, env=env, cwd=folder, output=log)

    def wait_until_ready(self, cancelled: Callable[[], bool]) -> bool:
        """True when it answers; False when it was cancelled meanwhile. Raises `EngineError` with
        its last words.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and not cancelled():
            with suppress(OSError, ValueError, KeyError):
                self.address = str(
                    next(iter(json.loads(self._state.read_text("utf-8"))["addresses"].values()))
                )
                return True
            if self.child.poll() is not None:
                raise EngineError(last_words(self.log))
            time.sleep(0.05)
        if cancelled():
            return False
        raise EngineError(f"not ready after {START_TIMEOUT_S:g} s: {last_words(self.log)}")

    def stop(self) -> None:
        """End it and everything below it."""
        self.child.stop()
        self._on_stop()
        self._state.unlink(missing_ok=True)
