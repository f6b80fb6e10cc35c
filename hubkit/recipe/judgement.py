"""Blocks about evaluation: held-out losses, judges, what the papers published."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hubkit.recipe.block import Block
from hubkit.recipe.dialogue import Sampling, SeatConfig
from hubkit.recipe.identity import Content, Display, Execution


class Scorecard(Block):
    """How like people an asker plays: its next turns at real held-out contexts, compared with what
    people said there.
    """

    contexts: Content[Annotated[int, Field(ge=2)]] = 400
    """Conversations, each stopped once before a human turn."""
    openings: Content[Annotated[int, Field(ge=0)]] = 100
    """First turns, asked for with the system message alone."""
    context_chars: Content[Annotated[int, Field(ge=100)]] = 6000
    """Most characters of context before the turn that is asked for."""
    sampling: Content[Sampling] = Sampling()
    """How turns are sampled."""
    base_endpoints: Execution[list[str]] = Field(default_factory=lambda: ["embedded"])
    """Addresses of the base that is only asked to play the user; the asker is served as in the
    rollout.
    """
    in_flight: Execution[Annotated[int, Field(ge=1)]] = 16
    """Most requests at once."""
    request_timeout_s: Execution[Annotated[float, Field(gt=0)]] = 300.0
    """Longest wait for one answer."""
    resamples: Content[Annotated[int, Field(ge=10)]] = 500
    """Bootstrap resamples for the intervals."""
    embedder: Content[str | None] = None
    """Sentence encoder for the measures in an embedding space; null: they are not taken."""


class Published(Block):
    """A table as a paper published it, shown next to results of the same benchmarks, never computed
    with.
    """

    title: Display[str]
    """What the table shows."""
    benchmarks: Display[list[str]]
    """Names of the benchmarks whose results may be compared with it."""
    judge: Display[str]
    """Who judged."""
    source: Display[str]
    """Where it stands."""
    caution: Display[str]
    """What is not certain about it."""
    columns: Display[list[str]]
    """Their heads."""
    rows: Display[dict[str, list[float | None]]]
    """One value per column for each model; null where none is known."""


class Judging(Block):
    """A judge, and what it may take; the caps hold over all sessions of a run."""

    judge: Content[SeatConfig]
    """Who judges. A first attempt goes at its sampling's temperature."""
    attempts: Content[Annotated[int, Field(ge=1)]] = 3
    """How often an unusable verdict is asked for, the first time included."""
    retry_temperature: Content[Annotated[float, Field(ge=0)]] = 0.7
    """Temperature of further attempts: asked again at 0, a judge says the same again."""
    json_schema: Content[bool | None] = None
    """Whether grades and winners are asked for as JSON of a schema that the server enforces; null:
    as marks, ``[[7]]``."""
    in_flight: Execution[Annotated[int, Field(ge=1)]] = 8
    """Most requests at once."""
    timeout_s: Execution[Annotated[float, Field(gt=0)]] = 300.0
    """Bounds one attempt while the judge answers others."""
    patience_s: Execution[Annotated[float, Field(gt=0)]] = 900.0
    """How long to wait while none of its addresses answers."""
    budget_usd: Execution[Annotated[float, Field(ge=0)] | None] = None
    """Cap on money."""
    budget_tokens: Execution[Annotated[int, Field(ge=1)] | None] = None
    """Cap on tokens, in and out."""
    max_hours: Execution[Annotated[float, Field(ge=0)] | None] = None
    """Cap on hours."""
