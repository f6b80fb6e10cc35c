"""From settings to a running server: fetch, convert, load, bind, say when ready."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import uvicorn

from hubkit.errors import EngineError
from hubkit.files import write_whole
from hubkit.local_engine.app import build_app
from hubkit.local_engine.conversion import GGUF_MODEL, gguf_files, prepared
from hubkit.local_engine.engine import Engine, UnsupportedModelError
from hubkit.local_engine.engine_choice import engine_for
from hubkit.local_engine.generation import Generator
from hubkit.local_engine.gguf_lora import read_adapter_config
from hubkit.local_engine.gguf_model import Dtype, eos_token_ids, read_config
from hubkit.local_engine.llamacpp import LlamaCppEngine
from hubkit.local_engine.metrics import Metrics
from hubkit.local_engine.repo import Snapshot, fetch, fetch_repo
from hubkit.local_engine.service import BASE, ServedModel, Service
from hubkit.local_engine.settings import Listen, Settings, bearer_token, check_addresses
from hubkit.local_engine.templates import TemplateRenderer, read_template
from hubkit.local_engine.tensors import check_plausible
from hubkit.local_engine.text import TextCodec
from hubkit.untrusted import JsonObject, count_in, repo_name

_log = logging.getLogger("hubkit.local_engine")
_GRACE_S = 2


def run(settings: Settings) -> None:
    """Serve until told to stop. Raises `EngineError` or `HubError` when it cannot start."""
    settings, model, adapters = _snapshots(settings)
    check_addresses(settings.listen, settings.adapters)
    context = min(
        settings.context,
        count_in(read_config(model.folder), "max_position_embeddings") or settings.context,
    )
    engine, reason = load_engine(replace(settings, context=context), model, adapters)
    try:
        asyncio.run(_serve(settings, model, adapters, engine, reason))
    finally:
        engine.close()


def _snapshots(settings: Settings) -> tuple[Settings, Snapshot, dict[str, Snapshot]]:
    """Every repo on disk. A model that is an adapter becomes an adapter of its base, served at
    every bare address.
    """
    model = fetch(settings.model)
    if model.is_adapter:
        config = read_adapter_config(model.folder)
        base = str(config.get("base_model_name_or_path") or "")
        # An adapter in a folder of this machine's owner may name a folder as its base; one from a
        # Hub may not.
        base_in_folder = Path(settings.model).is_dir() and Path(base).is_dir()
        if not base_in_folder:
            try:
                base = repo_name(base)
            except ValueError as error:
                raise EngineError(f"the base of adapter {model.name}: {error}") from None
        name, revision = Path(model.name).name, config.get("revision")
        settings = replace(
            settings,
            model=f"{base}@{revision}" if revision and not base_in_folder else base,
            adapters={name: settings.model, **settings.adapters},
            listen=[
                replace(at, serves=name) if at.serves == BASE else at for at in settings.listen
            ],
        )
        model = fetch(base) if base_in_folder else fetch_repo(settings.model)
    model = prepared(model, settings.cache_dir)
    adapters = {name: fetch(spec) for name, spec in settings.adapters.items()}
    for name, adapter in adapters.items():
        trained_on = read_adapter_config(adapter.folder).get("base_model_name_or_path")
        if trained_on not in (model.name, settings.model):
            _log.warning(
                "adapter %s was trained on %s and is served on %s", name, trained_on, model.name
            )
    return settings, model, adapters


def load_engine(
    settings: Settings, model: Snapshot, adapters: dict[str, Snapshot]
) -> tuple[Engine, str]:
    """Load the engine of `settings`, or the one that suits the model, and say why it is that one.

    `auto` takes what `engine_for` says, and transformers for what llama.cpp turns out not to
    compute.
    """
    folders = {name: adapter.folder for name, adapter in adapters.items()}
    engine, reason = str(settings.engine), "as configured"
    if engine == "auto":
        engine, reason = engine_for(
            model.folder,
            tuple(folders.values()),
            context=settings.context,
            cache_dir=settings.cache_dir,
        )
    if engine == "llamacpp":
        try:
            return _llamacpp(settings, model, adapters), reason
        except UnsupportedModelError as error:
            if settings.engine == "llamacpp":
                raise
            reason = str(error)
    if (model.folder / GGUF_MODEL).exists():
        raise EngineError(f"{model.name} is a GGUF file, which only llama.cpp serves: {reason}")
    if settings.engine == "auto":
        _log.warning("serving with transformers: %s", reason)
    check_plausible(model.folder, read_config(model.folder))
    from hubkit.local_engine.torch_engine import TransformersEngine

    loaded = TransformersEngine(
        model.folder, folders, parallel=settings.slots, context=settings.context
    )
    return loaded, reason


def _llamacpp(settings: Settings, model: Snapshot, adapters: dict[str, Snapshot]) -> Engine:
    base, loras = gguf_files(
        model,
        adapters,
        dtype=cast(Dtype, settings.dtype),
        context=settings.context,
        cache_dir=settings.cache_dir,
    )
    return LlamaCppEngine(
        base, loras, parallel=settings.slots, context=settings.context, threads=settings.threads
    )


def build_service(
    settings: Settings,
    model: Snapshot,
    adapters: dict[str, Snapshot],
    engine: Engine,
    ports: dict[int, str],
) -> Service:
    """Everything above the engine. Raises `EngineError` for a repo without a tokenizer."""
    codec = TextCodec(model.folder)
    base_template = read_template(model.folder)
    templates = {BASE: base_template}
    base_eos = frozenset(eos_token_ids(model.folder, read_config(model.folder)))
    eos = {BASE: base_eos}
    for name, adapter in adapters.items():
        templates[name] = read_template(adapter.folder, base_template)
        has_config = (adapter.folder / "generation_config.json").exists()
        eos[name] = frozenset(eos_token_ids(adapter.folder, {})) if has_config else base_eos
    info = ServedModel(
        model_id=model.name,
        revision=model.key,
        adapters={name: adapter.name for name, adapter in adapters.items()},
        eos_ids=eos,
        version=f"hubkit-{_version()}",
    )
    renderer = TemplateRenderer(
        {name: template for name, template in templates.items() if template}
    )
    generator = Generator(engine, codec, Metrics(), max_concurrent=settings.max_concurrent)
    return Service(info, codec, renderer, generator, default_adapters=ports)


class _Server(uvicorn.Server):
    """uvicorn, but a signal ends `serve` instead of the process: there is a state file and a child
    to clean up.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._listening = asyncio.Event()

    def stop(self) -> None:
        """Stop accepting; a second call stops waiting for open requests."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def ready(self, serving: asyncio.Task[None]) -> None:
        """Returns once connections are accepted, or `serving` has failed."""
        started = asyncio.create_task(self._listening.wait())
        await asyncio.wait({started, serving}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    settings: Settings,
    model: Snapshot,
    adapters: dict[str, Snapshot],
    engine: Engine,
    reason: str,
) -> None:
    sockets = [_bind(address) for address in settings.listen]
    ports = {
        sock.getsockname()[1]: at.serves for sock, at in zip(sockets, settings.listen, strict=True)
    }
    service = build_service(settings, model, adapters, engine, ports)
    await service.renderer.check()
    hosts = {address.host.strip("[]") for address in settings.listen}
    app = build_app(service, token=bearer_token(), hosts=hosts)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = _Server(config)
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, server.stop)
    serving = asyncio.create_task(server.serve(sockets=sockets))
    try:
        await server.ready(serving)
        addresses = _addresses(settings.listen, sockets)
        if settings.state_file and server.started:
            _write_state(settings.state_file, model, addresses, (engine.name, reason))
        _log.info("serving %s at %s with %s: %s", model.name, addresses, engine.name, reason)
        await serving
    finally:
        if settings.state_file:
            settings.state_file.unlink(missing_ok=True)
        await service.renderer.close()


def _bind(address: Listen) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it: else a body would wait until the client confirms the headers.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.bind((address.host.strip("[]"), address.port))
    except OSError as error:
        raise EngineError(
            f"cannot listen on {address.host}:{address.port} ({error.strerror}); "
            "take another port, or 0 for any"
        ) from error
    return sock


def _addresses(listen: list[Listen], sockets: list[socket.socket]) -> dict[str, str]:
    """Name → URL; a second address of the same name is called NAME-2, and so on."""
    addresses: dict[str, str] = {}
    for at, sock in zip(listen, sockets, strict=True):
        servers = sum(name == at.serves or name.startswith(f"{at.serves}-") for name in addresses)
        addresses[f"{at.serves}-{servers + 1}" if servers else at.serves] = (
            f"http://{at.host}:{sock.getsockname()[1]}"
        )
    return addresses


def _write_state(
    path: Path, model: Snapshot, addresses: dict[str, str], engine: tuple[str, str]
) -> None:
    state: JsonObject = {
        "pid": os.getpid(),
        "addresses": addresses,
        "engine": engine[0],
        "engine_reason": engine[1],
        "model": model.name,
        "revision": model.key,
    }
    write_whole(path, json.dumps(state) + "\n")


def _version() -> str:
    try:
        return version("hubkit")
    except PackageNotFoundError:
        return "dev"
