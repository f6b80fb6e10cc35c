"""Models whose endpoint is ``deploy``: an Inference Endpoint serves each for as long as somebody
asks it.

The endpoint is found or made, waited for, used and given back (`hubkit.cloud.held`). Models that
share a base share an endpoint where the engine serves adapters of one base together. Such a server
holds only the base's chat template, so an adapter's prompts are rendered here, with its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from hubkit import cloud
from hubkit.cloud.endpoints import base_of
from hubkit.cloud.prices import hardware
from hubkit.errors import HubError, RepoMissingError
from hubkit.hub import Hub, Ref
from hubkit.pipeline.stage import Context, Work
from hubkit.progress import Progress
from hubkit.recipe import DEPLOY, EMBEDDED, Deploy, Rollout
from hubkit.serving.client import ClientTemplate

TOKEN_ENV = "HUBKIT_DEPLOY_TOKEN"
"""Where a rollout's seat finds the token for its endpoint while it is held."""

SEATS = ("asker", "chat")


@dataclass(frozen=True, slots=True)
class Hosted:
    """A model that an endpoint is made for, on which terms, and how many tokens a sequence of it
    may have.
    """

    ref: Ref
    terms: Deploy
    context: int


@dataclass(frozen=True, slots=True)
class Spoken:
    """How a model is spoken to at its endpoint: what kind of server it is, the model's name there,
    and the template with which its prompts are rendered here, where the server holds another's."""

    profile: Literal["tgi", "vllm", "sglang", "llamacpp"]
    model: str
    template: ClientTemplate | None


def wanted(hub: Hub, hosted: Mapping[str, Hosted]) -> dict[str, cloud.Wanted]:
    """Name → the endpoint to be made; those that share one have the same. Nothing is made.

    Raises `RecipeError` for hardware that is in no price table, and adapters that do not name their
    base."""
    found = {name: _wanted(hub, one) for name, one in hosted.items()}
    for name, one in found.items():
        together = [other for other in found.values() if _alike(one, other)]
        adapters = tuple(dict.fromkeys(adapter for other in together for adapter in other.adapters))
        context = max(other.context or 0 for other in together)
        found[name] = replace(one, adapters=adapters, context=context)
    return found


def _alike(one: cloud.Wanted, other: cloud.Wanted) -> bool:
    """Whether one endpoint serves both: the same, or TGI with adapters of the same base on the same
    hardware.
    """
    same = (one.model, one.engine, one.hardware) == (other.model, other.engine, other.hardware)
    return same and (one.engine == "tgi" or one.adapters == other.adapters)


def _wanted(hub: Hub, one: Hosted) -> cloud.Wanted:
    base = base_of(hub, one.ref)
    return cloud.Wanted(
        model=base or one.ref,
        engine=one.terms.engine,
        hardware=hardware(one.terms.hardware),
        adapters=(one.ref,) if base else (),
        context=one.context,
        gguf_file=one.terms.gguf,
        sleep_minutes=one.terms.sleep_minutes,
        max_replica=one.terms.replicas,
    )


def spoken(hub: Hub, hosted: Mapping[str, Hosted]) -> dict[str, Spoken]:
    """Name → how it will be spoken to."""
    found = {}
    for name, up in wanted(hub, hosted).items():
        ref = hosted[name].ref
        own = up.engine == "tgi" and ref in up.adapters
        found[name] = Spoken(
            up.engine, cloud.served_as(up, ref), _template(hub, ref) if own else None
        )
    return found


def _template(hub: Hub, ref: Ref) -> ClientTemplate:
    """The chat template that the repo itself ships, and the end of its turns. Raises
    `RepoMissingError` without one.
    """
    source = hub.read(ref, "chat_template.jinja").decode("utf-8")
    config = json.loads(hub.read(ref, "tokenizer_config.json"))
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if value:
            special[name] = str(value["content"] if isinstance(value, dict) else value)
    stops = [special["eos_token"]] if "eos_token" in special else []
    return ClientTemplate(source, special, stops=stops)


@contextmanager
def held(hub: Hub, hosted: Mapping[str, Hosted], progress: Progress) -> Iterator[dict[str, str]]:
    """Name → address; the endpoints are given back at the end, however it ends. Raises
    `EndpointError`, `HubError`.
    """
    if hosted and hub.token is None:
        raise HubError(
            f"no token for {hub.url}: log in with `hf auth login` to deploy there", status=401
        )
    ends = wanted(hub, hosted)
    terms = {one: hosted[name].terms for name, one in reversed(ends.items())}
    asked = [cloud.Terms(one, said.after, 60 * said.wait_minutes) for one, said in terms.items()]
    with cloud.held(hub, *asked, progress=progress) as found:
        urls = {one: up.url for one, up in zip(terms, found, strict=True)}
        yield {name: urls[one] for name, one in ends.items()}


def prices(hub: Hub, hosted: Mapping[str, Hosted]) -> list[dict[str, Any]]:
    """Each endpoint that would be made: its ``name``, which of `hosted` it ``serves``, its
    ``engine`` and ``hardware``, and ``usd_per_hour`` at most while it is up."""
    rows: dict[cloud.Wanted, dict[str, Any]] = {}
    for name, one in wanted(hub, hosted).items():
        rate = one.hardware.usd_per_hour * one.max_replica
        row = {"name": one.name, "serves": [], "engine": one.engine, "hardware": str(one.hardware)}
        rows.setdefault(one, {**row, "usd_per_hour": rate})["serves"].append(name)
    return list(rows.values())


# A rollout's seats


def seats(block: Rollout, inputs: Mapping[str, Ref]) -> dict[str, Hosted]:
    """The seats of `block` that are deployed."""
    found = {}
    for seat in SEATS:
        config = getattr(block, seat)
        if DEPLOY in config.endpoints:
            found[seat] = Hosted(inputs[seat], config.deploy or Deploy(), config.context)
    return found


def as_deployed(context: Context, inputs: dict[str, Ref], block: Rollout) -> Rollout:
    """`block` with what its deployed seats speak: their engine's profile, their model's name there,
    their token.
    """
    changes = {}
    for seat, said in spoken(context.hub, seats(block, inputs)).items():
        told = {"profile": said.profile, "model": said.model, "token_env": TOKEN_ENV}
        changes[seat] = getattr(block, seat).model_copy(update=told)
    return block.model_copy(update=changes) if changes else block


def templates(
    context: Context, inputs: dict[str, Ref], block: Rollout
) -> dict[str, ClientTemplate]:
    """``asker_template`` and ``chat_template`` of `rollout.run`, for seats whose server may hold
    another's template: an adapter on an endpoint that holds only its base's, and a trained model at
    an address of the user's own.
    """
    found = {
        f"{seat}_template": one.template
        for seat, one in spoken(context.hub, seats(block, inputs)).items()
        if one.template is not None
    }
    for seat in SEATS:
        config, ref = getattr(block, seat), inputs.get(seat)
        is_trained = config.repo == "asker" or (
            ref is not None and ref.repo_id == context.hub.qualify(context.recipe.repos.chat)
        )
        if ref is not None and is_trained and not {DEPLOY, EMBEDDED} & set(config.endpoints):
            with suppress(RepoMissingError):
                found[f"{seat}_template"] = _template(context.hub, ref)
    return found


@contextmanager
def addresses(
    context: Context, inputs: dict[str, Ref], work: Work, block: Rollout
) -> Iterator[dict[str, str]]:
    """Seat → address, for the seats that are deployed; meanwhile their token is in the
    environment.
    """
    asked = seats(block, inputs)
    with (
        held(context.hub, asked, work.progress) as urls,
        _token_in_environment(context.hub.token) if asked and context.hub.token else nullcontext(),
    ):
        yield urls


@contextmanager
def _token_in_environment(token: str) -> Iterator[None]:
    """`TOKEN_ENV` holds `token` for the length of the block."""
    before = os.environ.get(TOKEN_ENV)
    os.environ[TOKEN_ENV] = token
    try:
        yield
    finally:
        if before is None:
            del os.environ[TOKEN_ENV]
        else:
            os.environ[TOKEN_ENV] = before
