"""Blocks about conversations: where they come from, what is kept, how they are measured."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from hubkit.recipe.block import Block


class Source(Block):
    """Where conversations come from: a dataset repo on the Hub at a revision, or a local path."""

    repo_id: str | None = None
    """Dataset repo on the Hub."""
    revision: str = "main"
    """Branch, tag or commit."""
    path: str | None = None
    """A local file or folder instead."""
    files: list[str] = Field(default_factory=list)
    """Only these files of it."""
    license: str = "other"
    """Its licence, as the Hub names it."""
    license_note: str = ""
    """What cards say about the licence."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.repo_id and not self.path:
            raise ValueError("a source needs a repo_id or a path")
        return self


class Filter(Block):
    """One filter of a chain."""

    name: str
    """One of the filters that `hubkit.filters` knows."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Its arguments."""


class Corpus(Block):
    """Human conversations: sources, the cleaning chain in order, the splits."""

    sources: list[Source]
    """Where the conversations come from, read in this order."""
    questions: Annotated[dict[str, Source], BeforeValidator(lambda given: given or {})] = Field(default_factory=dict)
    """Files of benchmark questions, one file a source, for the filter ``decontaminate``, here and in curation; null:
    none."""
    join_parts: bool = False
    """Put the parts that pre-split ShareGPT exports hold together again."""
    filters: list[Filter] = Field(default_factory=list)
    """The cleaning chain, in order."""
    openings: Annotated[int, Field(ge=1)] = 1000
    """Conversations set aside to open dialogues."""
    test: Annotated[int, Field(ge=1)] = 500
    """Conversations held out for evaluation."""
    limit: int | None = None
    """At most this many rows are read."""


class Measure(Block):
    """How dialogues are measured beside real people's."""

    sample: Annotated[int, Field(ge=1)] = 1000
    """At most so many dialogues of each dataset."""
    topics: bool = True
    """Also embed turns, with an encoder of 84 MB; where that cannot be had, the card says that topics are missing."""


class Curate(Block):
    """Which dialogues are kept, and how what came of it is measured."""

    filters: list[Filter] = Field(default_factory=list)
    """The chain, in order."""
    measure: Measure | None = Measure()
    """How the dialogues are measured; null: not."""
