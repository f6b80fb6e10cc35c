"""Models that are served for as long as somebody asks them: by the embedded engine, or by an
endpoint made for them.

Takes models at commits, or folders here; gives addresses and how to speak there. Adapters of one
base share its engine, and its endpoint where the service can: its weights are loaded once, each
adapter answers at its own address or name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hubkit.hub import Hub, Ref, environment
from hubkit.hub.places import cache
from hubkit.pipeline import deployed
from hubkit.progress import Progress
from hubkit.recipe import Deploy
from hubkit.serving import client
from hubkit.serving.client import ClientTemplate


@dataclass(frozen=True, slots=True)
class Model:
    """What is served: a repo at a commit or a folder here, and the base that it is an adapter of
    (None: whole weights).

    With `deploy`, an Inference Endpoint on these terms serves it, otherwise the embedded engine.
    """

    at: Ref | Path
    base: Ref | None = None
    deploy: Deploy | None = None


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a model answers, and how it is spoken to there. With a `template`, its prompts are
    rendered here.
    """

    urls: tuple[str, ...]
    profile: str = "tgi"
    served_as: str = "tgi"
    token: str | None = field(default=None, repr=False)
    template: ClientTemplate | None = None


@contextmanager
def serving(
    hub: Hub, models: Mapping[str, Model], log: Path, progress: Progress, *, slots: int, tokens: int
) -> Iterator[dict[str, Reached]]:
    """Name → where it is reached, for the length of the block; sequences have at most `tokens`
    tokens.

    Embedded engines have `slots` slots each and write their logs into the folder `log`. Endpoints
    are given back at the end, however it ends. Raises `EngineError`, `EndpointError` and `HubError`
    for what does not come up."""
    asked = deployed_of(models, tokens)
    embedded = {name: model for name, model in models.items() if name not in asked}
    spoken = deployed.spoken(hub, asked)
    with (
        engines(embedded, log, progress, slots=slots, tokens=tokens) as addresses,
        deployed.held(hub, asked, progress) as urls,
    ):
        found = {name: Reached((url,)) for name, url in addresses.items()}
        for name, url in urls.items():
            said = spoken[name]
            found[name] = Reached((url,), said.profile, said.model, hub.token, said.template)
        yield found


def deployed_of(models: Mapping[str, Model], tokens: int) -> dict[str, deployed.Hosted]:
    """Those of `models` that an endpoint is made for."""
    return {
        name: deployed.Hosted(model.at, model.deploy, tokens)
        for name, model in models.items()
        if model.deploy is not None and isinstance(model.at, Ref)
    }


@contextmanager
def engines(
    models: Mapping[str, Model],
    log: Path,
    progress: Progress,
    *,
    slots: int,
    tokens: int,
    at_once: bool = False,
) -> Iterator[dict[str, str]]:
    """Name → address on an embedded engine, one engine a base, of `slots` slots: for each of its
    models, if `at_once` all of them are asked in full."""
    by_base: dict[str, list[str]] = {}
    for name, model in models.items():
        by_base.setdefault(_said(model.base or model.at), []).append(name)
    urls: dict[str, str] = {}
    with ExitStack() as started:
        for number, (base, seated) in enumerate(by_base.items()):
            progress(0, None, f"starting the engine: {base}")
            adapters = {f"adapter{k}": name for k, name in enumerate(seated) if models[name].base}
            listen = [*adapters, *(["base"] if len(adapters) < len(seated) else [])]
            engine = client.start_engine(
                base,
                {label: _said(models[name].at) for label, name in adapters.items()},
                listen=listen,
                env=environment()
                if any(isinstance(models[name].at, Ref) for name in seated)
                else {},
                cache_dir=cache("engine"),
                log_path=log / f"engine-{number}.log",
                context=tokens,
                slots=slots * len(seated) if at_once else slots,
            )
            addresses = started.enter_context(engine).addresses
            labels = {name: label for label, name in adapters.items()}
            urls |= {name: addresses[labels.get(name, "base")] for name in seated}
        yield urls


def _said(model: Ref | Path) -> str:
    return f"{model.repo_id}@{model.revision}" if isinstance(model, Ref) else str(model)
