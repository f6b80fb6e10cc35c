"""Models served for the length of a block: by the embedded engine, by a server of another kind that
is started here, by an Inference Endpoint, or where they answer already.

Adapters of one base share its engine, and its endpoint where the service can: its weights are
loaded once, each adapter answers at its own address or name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hubkit import settings
from hubkit.errors import RepoMissingError
from hubkit.hub import Hub, Ref, environment
from hubkit.hub.adapters import base_of
from hubkit.hub.places import cache
from hubkit.progress import Lasting, Progress
from hubkit.recipe import Engine
from hubkit.serving import inference_endpoints
from hubkit.serving.client import ClientTemplate, EngineSettings, start_engine
from hubkit.serving.engines.launcher import BASE, Capacity, EngineOptions, launch
from hubkit.serving.models import ModelSpec, ServedModel
from hubkit.serving.templates import published_template


@contextmanager
def serve(
    hub: Hub,
    specs: Mapping[str, ModelSpec],
    *,
    log_dir: Path,
    progress: Progress,
    slots: int,
    tokens: int,
    slots_per_model: bool = False,
) -> Iterator[dict[str, ServedModel]]:
    """Serve each of `specs` until the block ends, however it ends.

    Args:
        hub: Where repos are, and whose Inference Endpoints are used.
        specs: What is to be served, by name.
        log_dir: Folder of the engines' logs.
        progress: Told what is being started.
        slots: Sequences that one engine works on at once.
        tokens: The most tokens of a sequence.
        slots_per_model: Each model of an engine has `slots` of its own.

    Raises:
        EngineError: A local engine does not come up.
        EndpointError: An Inference Endpoint does not come up, or fails while it is used.
        HubError: The service of Inference Endpoints refuses.
    """
    answering = {
        name: spec.source for name, spec in specs.items() if isinstance(spec.source, ServedModel)
    }
    load = _Load(log_dir, progress, slots, tokens, slots_per_model)
    hosted = inference_endpoints.hosted(specs, tokens)
    unserved = {name: spec for name, spec in specs.items() if name not in {**answering, **hosted}}
    local = {name: spec for name, spec in unserved.items() if spec.engine is None}
    launched = {name: spec for name, spec in unserved.items() if spec.engine is not None}
    with (
        inference_endpoints.deployed(hub, hosted, progress) as deployed,
        _engines(local, load) as started,
        _servers(hub, launched, load) as servers,
    ):
        models = {**answering, **started, **servers, **deployed}
        by_description: dict[str, list[str]] = {}
        for name in specs:
            by_description.setdefault(models[name].description, []).append(name)
        for description, names in by_description.items():
            other_names = [name for name in names if not description.startswith(name)]
            said = f"{', '.join(other_names)}: {description}" if other_names else description
            progress(0, None, Lasting(said))
        yield {
            name: replace(model, template=specs[name].template or model.template)
            for name, model in models.items()
        }


@dataclass(frozen=True, slots=True)
class _Load:
    """What the engines that are started here are for: `serve`'s arguments of these names."""

    log_dir: Path
    progress: Progress
    slots: int
    tokens: int
    slots_per_model: bool

    def slots_for(self, names: Sequence[str]) -> int:
        """The slots of an engine that serves these models."""
        return self.slots * len(names) if self.slots_per_model else self.slots


@contextmanager
def _engines(specs: Mapping[str, ModelSpec], load: _Load) -> Iterator[dict[str, ServedModel]]:
    """Each model at an address of the local engine, one engine a base."""
    by_base: dict[str, list[str]] = {}
    for name, spec in specs.items():
        by_base.setdefault(_model_argument(spec.base or spec.source), []).append(name)
    models: dict[str, ServedModel] = {}
    with ExitStack() as running:
        for number, (base, names) in enumerate(by_base.items()):
            load.progress(0, None, f"starting the engine: {base}")
            adapters = {f"adapter{k}": name for k, name in enumerate(names) if specs[name].base}
            listen = [*adapters, *(["base"] if len(adapters) < len(names) else [])]
            engine = start_engine(
                base,
                {label: _model_argument(specs[name].source) for label, name in adapters.items()},
                listen=listen,
                env=_environment_for(specs, names),
                cache_dir=cache("engine"),
                log_path=load.log_dir / f"engine-{number}.log",
                settings=EngineSettings(context=load.tokens, slots=load.slots_for(names)),
            )
            started = running.enter_context(engine)
            addresses = started.addresses
            labels = {name: label for label, name in adapters.items()}
            token = settings.value(settings.ENDPOINT_TOKEN) or None  # it requires what is set here
            computed_by = f"{base}, by the embedded engine ({started.name}): {started.reason}"
            models |= {
                name: ServedModel(
                    (addresses[labels.get(name, "base")],), token=token, computed_by=computed_by
                )
                for name in names
            }
        yield models


@contextmanager
def _servers(
    hub: Hub, specs: Mapping[str, ModelSpec], load: _Load
) -> Iterator[dict[str, ServedModel]]:
    """Each model at a server that is started here, one a base and way to run it."""
    bases = {
        name: spec.base or (base_of(hub, spec.source) if isinstance(spec.source, Ref) else None)
        for name, spec in specs.items()
    }
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, spec in specs.items():
        facts = (spec.options or Engine()).model_dump_json()
        base = _model_argument(bases[name] or spec.source)
        groups.setdefault((spec.engine or "", facts, base), []).append(name)
    models: dict[str, ServedModel] = {}
    with ExitStack() as running:
        for number, ((kind, facts, base), names) in enumerate(groups.items()):
            load.progress(0, None, f"starting {kind}: {base}")
            adapters = {_label(specs[n].source, k): n for k, n in enumerate(names) if bases[n]}
            labels = {name: label for label, name in adapters.items()}
            options = Engine.model_validate_json(facts)
            engine = running.enter_context(
                launch(
                    kind,
                    base,
                    {label: _model_argument(specs[n].source) for label, n in adapters.items()},
                    options=EngineOptions(
                        tuple(options.command),
                        tuple(options.args),
                        options.gpus,
                        options.wait_minutes,
                    ),
                    env=_environment_for(specs, names),
                    log_path=load.log_dir / f"{kind}-{number}.log",
                    cache_dir=cache("engine"),
                    capacity=Capacity(load.tokens, load.slots_for(names)),
                )
            )
            for name in names:
                served_model = engine.models[labels.get(name, BASE)]
                models[name] = ServedModel(
                    (served_model.url,),
                    engine.profile,
                    served_model.model,
                    template=_own_template(hub, specs[name], adapter=name in labels),
                    extra_body=served_model.extra_body,
                    computed_by=f"{base}, by {engine.kind}, started here: {engine.reason}",
                )
        yield models


def _label(source: Ref | Path | ServedModel, number: int) -> str:
    """What an adapter is called in requests."""
    name = source.repo_id if isinstance(source, Ref) else Path(str(source)).name
    return f"{name}-{number}" if number else name


def _own_template(hub: Hub, spec: ModelSpec, *, adapter: bool) -> ClientTemplate | None:
    """The template that an adapter was pushed with: its server holds the base's."""
    if adapter and isinstance(spec.source, Ref):
        with suppress(RepoMissingError):
            return published_template(hub, spec.source)
    return None


def _environment_for(specs: Mapping[str, ModelSpec], names: Sequence[str]) -> dict[str, str]:
    """What an engine needs to read these models from the Hub; nothing for those in folders."""
    refs = (source for name in names for source in (specs[name].source, specs[name].base))
    return environment() if any(isinstance(source, Ref) for source in refs) else {}


def _model_argument(source: Ref | Path | ServedModel) -> str:
    return f"{source.repo_id}@{source.revision}" if isinstance(source, Ref) else str(source)
