"""Blocks about conversations: where they come from, what is kept, how they are measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from hubkit.conversation import FieldPolicy
from hubkit.recipe.block import Block
from hubkit.recipe.identity import Content, Execution
from hubkit.recipe.judgement import Judging
from hubkit.recipe.source import Source


class Filter(Block):
    """One filter of a chain."""

    name: Content[str]
    """One of the filters that `hubkit.data.filters` knows."""
    args: Content[dict[str, Any]] = Field(default_factory=dict)
    """Its arguments."""


class Intents(Block):
    """The column ``intent``: a line that says what a conversation's human wants, as the sources
    have it, as a judge model words it, or by a heuristic over the person's own words. A row without
    one stays in the dataset, is counted, and is no row to train such an asker on."""

    column: Content[str | None] = None
    """The sources' own column of that meaning."""
    judging: Content[Judging | None] = None
    """The model that is asked instead, and what it may take."""
    heuristic: Content[Literal["keywords", "first_sentence"] | None] = None
    """What replaces a judge where none can be asked. ``keywords``: eight content words out of
    all the person's turns, as a list that is no turn itself. ``first_sentence`` of the person's
    first turn, at most 24 words: what opened the conversation, not what it came to; an asker tends
    to repeat it."""
    max_missing_share: Execution[Annotated[float, Field(ge=0, le=1)]] = 0.5
    """A corpus with more rows than that without an intent is refused."""

    @model_validator(mode="after")
    def _one_source(self) -> Intents:
        if sum(source is not None for source in (self.column, self.judging, self.heuristic)) != 1:
            raise ValueError(
                "intents come from a column, from judging or from a heuristic: name one of them"
            )
        return self


class Corpus(Block):
    """Human conversations: sources, the cleaning chain in order, the splits."""

    sources: Content[Annotated[list[Source], Field(min_length=1)]]
    """Where the conversations come from, read in this order."""
    questions: Content[Annotated[dict[str, Source], BeforeValidator(lambda value: value or {})]] = (
        Field(default_factory=dict)
    )
    """Files of benchmark questions, one file a source, for the filter ``decontaminate``, here and
    in curation; null: none."""
    join_parts: Content[bool] = False
    """Join the parts of pre-split ShareGPT exports, where their contents prove that they are
    parts."""
    repeated_turns: Content[Literal["merge", "drop"]] = "merge"
    """Two turns of one seat in a row: become one, or the row is not read."""
    second_system: Content[Literal["merge", "drop"]] = "merge"
    """A system message after the first: joins it, or the row is not read."""
    tools: Content[FieldPolicy] = "keep"
    """Tool calls and results: keep them, drop them (what an answer says around them becomes one
    turn), or keep only an answer's text after its last result."""
    thinking: Content[FieldPolicy] = "keep"
    """Thinking: keep it, drop it, or keep only that of turns after the last human turn."""
    filters: Content[list[Filter]] = Field(default_factory=list)
    """The cleaning chain, in order."""
    intents: Content[Intents | None] = None
    """What each conversation's human wants, for an asker with ``intent_column: intent``; null: not
    said.
    """
    openings: Content[Annotated[int, Field(ge=1)]] = 1000
    """Conversations set aside to open dialogues."""
    test: Content[Annotated[int, Field(ge=1)]] = 500
    """Conversations held out for evaluation."""
    limit: Content[Annotated[int, Field(ge=1)] | None] = None
    """At most this many rows are read."""
    on: Execution[Literal["here", "ray"]] = "here"
    """Whether filters run on this machine, or as tasks of a Ray cluster
    (``hubkit-simulators[ray]``); what they keep is the same."""


class Measure(Block):
    """How dialogues are measured and compared with real people's."""

    sample: Content[Annotated[int, Field(ge=1)]] = 1000
    """At most so many dialogues of each dataset."""
    topics: Content[bool] = True
    """Also embed turns, with an encoder of 84 MB; where that cannot be had, the card says that
    topics are missing.
    """


class Curate(Block):
    """Which dialogues are kept, and how what came of it is measured."""

    filters: Content[list[Filter]] = Field(default_factory=list)
    """The chain, in order."""
    measure: Content[Measure | None] = Measure()
    """How the dialogues are measured; null: not."""
    on: Execution[Literal["here", "ray"]] = "here"
    """Whether filters run on this machine, or as tasks of a Ray cluster; what they keep is the
    same.
    """
