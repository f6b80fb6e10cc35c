"""A model that answers for as long as a block lasts, whoever serves it.

A `ModelSpec` says what is to be asked: weights (a repo at a commit, or a folder here), or a model
that answers at an address already. `hubkit.serving.serve` turns specs into `ServedModel`s: the
addresses, the dialect spoken there, the model's name in requests, the credentials, and the template
where prompts are rendered here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from hubkit.errors import RecipeError
from hubkit.hub import Ref
from hubkit.recipe import DEPLOY, EMBEDDED, Deploy, Engine, Sampling, SeatConfig
from hubkit.serving.client import (
    BatchEndpoint,
    ClientLimits,
    ClientTemplate,
    Endpoint,
    RequestOptions,
)
from hubkit.serving.client.dialects import batch_api
from hubkit.serving.client.endpoint import DEFAULT_LIMITS
from hubkit.serving.credentials import headers_in, key_in


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Where a model answers and how requests are made there. All `urls` serve the same model.

    With a `template`, prompts are rendered here and sent to ``/generate``: for servers that hold
    only another model's template. `extra_body` are keys of every request, before a seat's own."""

    urls: tuple[str, ...]
    dialect: str = "tgi"
    name: str = "tgi"
    token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    template: ClientTemplate | None = field(default=None, repr=False)
    turn_marks: tuple[str, ...] = ()
    """Control tokens that open turns of the model's template, where that is known."""
    extra_body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    computed_by: str = ""
    """What computes it and why, in words, where hubkit had it started."""

    @property
    def description(self) -> str:
        """Who answers here, and why that one, in words."""
        if self.computed_by:
            return self.computed_by
        named = "" if self.name == "tgi" else f" as {self.name}"
        return (
            f"the server at {', '.join(self.urls)}{named} (profile {self.dialect}), as configured"
        )

    @classmethod
    def at(cls, *urls: str, dialect: str = "tgi", name: str = "tgi") -> Self:
        """The model that answers at `urls`, without a key."""
        return cls(urls, dialect, name)

    @classmethod
    def of(cls, seat: SeatConfig, urls: Sequence[str] = (), *, named_by: str = "seat") -> Self:
        """What answers in `seat` of a recipe, at `urls` or at its own addresses.

        `named_by` is the recipe's key of the seat. Raises `RecipeError` when an environment
        variable that it names is not set."""
        token = key_in(seat.token_env, said_by=f"{named_by}.token_env")
        headers = headers_in(seat.headers, said_by=f"{named_by}.headers")
        return cls(tuple(urls or seat.endpoints), seat.profile, seat.model, token, headers)

    def endpoint(
        self,
        seat: SeatConfig | None = None,
        *,
        sampling: Sampling | None = None,
        limits: ClientLimits = DEFAULT_LIMITS,
        name: str = "endpoint",
        batch_folder: Path | None = None,
        on_batch: Callable[[str], None] = lambda sentence: None,
    ) -> Endpoint:
        """A client that asks this model.

        Args:
            seat: The recipe's seat in which it sits: its sampling and what its requests hold more.
            sampling: How answers are sampled instead.
            limits: How much is asked at once, and how long answers are waited for.
            name: What messages call it.
            batch_folder: Where it is kept which requests are in which batch, for a seat that asks
                by batch; it survives a kill.
            on_batch: Told in a sentence how a batch does.

        Raises:
            RecipeError: The seat asks by batch, and its provider has no batches, or nothing here
                waits for them.
        """
        request = RequestOptions(self.token, self.headers, self.extra_body)
        kind: Callable[..., Endpoint] = Endpoint
        if seat is not None:
            sampling = sampling or seat.sampling
            request = replace(
                request,
                extra_body={**(self.extra_body or {}), **(seat.extra_body or {})},
                chat_template_kwargs=seat.chat_template_kwargs,
                session_header=seat.session_header,
            )
            if seat.batch:
                kind = _by_batch(batch_folder, on_batch)
        return kind(
            self.urls,
            profile=self.dialect,
            model=self.name,
            sampling=(sampling or Sampling()).model_dump(),
            template=self.template,
            request=request,
            limits=limits,
            name=name,
        )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to be asked.

    Args:
        source: A repo at a commit, a folder here, or a model that is served already.
        base: What `source` is an adapter of; None for whole weights.
        deploy: The terms of an Inference Endpoint that serves it; None: an engine here does.
        engine: The kind of engine that serves it; None: the embedded one.
        options: How that engine is run.
        template: How its prompts are rendered here; None: as whoever serves it says.
    """

    source: Ref | Path | ServedModel
    base: Ref | Path | None = None
    deploy: Deploy | None = None
    engine: str | None = None
    options: Engine | None = None
    template: ClientTemplate | None = None

    @property
    def needs_serving(self) -> bool:
        """Whether something must be started before it can be asked."""
        return not isinstance(self.source, ServedModel)


def _by_batch(folder: Path | None, on_batch: Callable[[str], None]) -> Callable[..., BatchEndpoint]:
    if folder is None:
        raise RecipeError(
            "this is asked one by one, because each answer is waited for; leave batch out"
        )
    return partial(BatchEndpoint, folder=folder, on_batch=on_batch)


def spec_of(
    seat: SeatConfig, ref: Ref | None, base: Ref | None = None, *, named_by: str = "seat"
) -> ModelSpec:
    """What answers in `seat` of a recipe.

    Args:
        seat: Its addresses, ``embedded`` or ``deploy``.
        ref: The model's commit; None where it answers at addresses of its own.
        base: What that is an adapter of.
        named_by: The recipe's key of the seat, for errors.

    Raises:
        RecipeError: An environment variable that it names is not set, or it asks by batch where
            there are no batches.
    """
    if ref is not None and DEPLOY in seat.endpoints:
        return ModelSpec(ref, base, seat.deploy or Deploy())
    if ref is not None and seat.engine_kind:
        return ModelSpec(ref, base, engine=seat.engine_kind, options=seat.engine)
    if ref is not None and EMBEDDED in seat.endpoints:
        return ModelSpec(ref, base)
    if seat.batch:
        batch_api(seat.profile)
    return ModelSpec(ServedModel.of(seat, named_by=named_by))
