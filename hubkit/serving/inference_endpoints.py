"""Models that Inference Endpoints serve for as long as they are asked.

Each endpoint is found or made, waited for, used and given back (`hubkit.cloud.held`). Models that
share a base share an endpoint where the engine serves adapters of one base together. Such a server
holds only the base's chat template, so an adapter's prompts are rendered here, with its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from hubkit import cloud
from hubkit.cloud.prices import hardware
from hubkit.errors import HubError
from hubkit.hub import Hub, Ref
from hubkit.hub.adapters import base_of
from hubkit.progress import Progress
from hubkit.recipe import Deploy
from hubkit.serving.models import ModelSpec, ServedModel
from hubkit.serving.templates import published_template
from hubkit.untrusted import JsonObject


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model that an endpoint is made for, on which terms, and the most tokens of a sequence."""

    ref: Ref
    terms: Deploy
    context: int


def hosted(specs: Mapping[str, ModelSpec], tokens: int) -> dict[str, HostedModel]:
    """Those of `specs` that an endpoint is made for, by name."""
    return {
        name: HostedModel(spec.source, spec.deploy, tokens)
        for name, spec in specs.items()
        if spec.deploy is not None and isinstance(spec.source, Ref)
    }


@contextmanager
def deployed(
    hub: Hub, models: Mapping[str, HostedModel], progress: Progress
) -> Iterator[dict[str, ServedModel]]:
    """Each of `models` at its endpoint; they are given back at the end, however it ends.

    Raises:
        EndpointError: One does not come up, or fails while it is used.
        HubError: The service refuses, or there is no token for it.
    """
    if models and hub.token is None:
        raise HubError(
            f"no token for {hub.url}: log in with `hf auth login` to deploy there", status=401
        )
    endpoints = _endpoint_specs(hub, models)
    terms = {spec: models[name].terms for name, spec in reversed(endpoints.items())}
    templates = {
        name: published_template(hub, models[name].ref)
        for name, spec in endpoints.items()
        if spec.engine == "tgi" and models[name].ref in spec.adapters
    }
    requests = [
        cloud.LeaseRequest(spec, seat.after, 60 * seat.wait_minutes) for spec, seat in terms.items()
    ]
    with cloud.held(hub, *requests, progress=progress) as leased:
        urls = {spec: endpoint.url for spec, endpoint in zip(terms, leased, strict=True)}
        yield {
            name: ServedModel(
                (urls[spec],),
                spec.engine,
                cloud.served_as(spec, models[name].ref),
                hub.token,
                template=templates.get(name),
                computed_by=(
                    f"{models[name].ref}, by {spec.engine} on Inference Endpoint {spec.name}, "
                    "deployed as configured"
                ),
            )
            for name, spec in endpoints.items()
        }


def prices(hub: Hub, models: Mapping[str, HostedModel]) -> list[JsonObject]:
    """Each endpoint that would be made: its ``name``, which of `models` it ``serves``, its
    ``engine`` and ``hardware``, and ``usd_per_hour`` at most while it is up."""
    names_by_spec: dict[cloud.EndpointSpec, list[str]] = {}
    for name, spec in _endpoint_specs(hub, models).items():
        names_by_spec.setdefault(spec, []).append(name)
    return [
        {
            "name": spec.name,
            "serves": names,
            "engine": spec.engine,
            "hardware": str(spec.hardware),
            "usd_per_hour": spec.hardware.usd_per_hour * spec.max_replica,
        }
        for spec, names in names_by_spec.items()
    ]


def _endpoint_specs(hub: Hub, models: Mapping[str, HostedModel]) -> dict[str, cloud.EndpointSpec]:
    """Name → the endpoint to be made; models that share one have equal specs. Nothing is made.

    Raises `RecipeError` for hardware that is in no price table, and adapters that do not name their
    base."""
    specs = {name: _endpoint_spec(hub, model) for name, model in models.items()}
    for name, spec in specs.items():
        group = [peer for peer in specs.values() if _shareable(spec, peer)]
        adapters = tuple(dict.fromkeys(adapter for peer in group for adapter in peer.adapters))
        context = max(peer.context or 0 for peer in group)
        specs[name] = replace(spec, adapters=adapters, context=context)
    return specs


def _shareable(first: cloud.EndpointSpec, second: cloud.EndpointSpec) -> bool:
    """Whether one endpoint serves both: the same, or TGI with adapters of the same base on the same
    hardware.
    """
    alike = (first.model, first.engine, first.hardware) == (
        second.model,
        second.engine,
        second.hardware,
    )
    return alike and (first.engine == "tgi" or first.adapters == second.adapters)


def _endpoint_spec(hub: Hub, model: HostedModel) -> cloud.EndpointSpec:
    base = base_of(hub, model.ref)
    return cloud.EndpointSpec(
        model=base or model.ref,
        engine=model.terms.engine,
        hardware=hardware(model.terms.hardware),
        adapters=(model.ref,) if base else (),
        context=model.context,
        gguf_file=model.terms.gguf,
        sleep_minutes=model.terms.sleep_minutes,
        max_replica=model.terms.replicas,
    )
