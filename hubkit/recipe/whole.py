"""A whole recipe: what it is called, where its results go, and its blocks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, model_validator

from hubkit import plugins
from hubkit.recipe.block import Block
from hubkit.recipe.block import block_of as block_type
from hubkit.recipe.data import Corpus, Curate
from hubkit.recipe.dialogue import Rollout, SeatConfig
from hubkit.recipe.evals import Evals
from hubkit.recipe.identity import (
    Content,
    Decides,
    Display,
    Execution,
    content_of,
    decides,
    digest,
    readers,
)
from hubkit.recipe.preference import Preference
from hubkit.recipe.reinforcement import Reinforce
from hubkit.recipe.study import STUDY_STAGES, Study
from hubkit.recipe.training import Training
from hubkit.untrusted import JsonObject

PREFERENCE_STAGES = ("prefer", "align")
_REPO_NAME = re.compile(r"([\w-][\w.-]*/)?\w[\w.-]{0,94}\w|\w", re.ASCII)
DISPLAY = Decides.DISPLAY
_BLOCK_OF_STAGE = {stage: "preference" for stage in PREFERENCE_STAGES} | {
    stage: "study" for stage in STUDY_STAGES
}
_USES_PLUGINS = ("corpus", "curate", "reinforce", "eval")


class Paper(Block):
    """What a card says about the paper that a recipe follows."""

    title: Display[str]
    """As on its first page."""
    arxiv: Display[str]
    """Its arXiv number."""
    url: Display[str]
    """Where to read it."""
    authors: Display[list[str]] = Field(default_factory=list)
    """Its authors, in its order."""
    year: Display[int | None] = None
    """The year of its first version."""
    caution: Display[str] = ""
    """What is not certain about the paper, as cards say it."""


class Repos(Block):
    """Repo names, without namespace, of what a recipe makes."""

    corpus: Execution[str]
    """Dataset of human conversations."""
    asker: Execution[str]
    """Model that asks."""
    dialogues: Execution[str]
    """Dataset of asker and chat model in conversation."""
    chat: Execution[str]
    """Chat model trained on them."""
    results: Execution[str]
    """Dataset of what was measured."""
    preference: Execution[str | None] = None
    """Dataset of preference pairs; the dialogues' name and ``-preference`` where none is given."""
    aligned: Execution[str | None] = None
    """Chat model after DPO on them; the chat model's name and ``-aligned`` where none is given."""
    reinforced: Execution[str | None] = None
    """Chat model after GRPO against the asker; the chat model's name and ``-reinforced`` where none
    is given."""
    collection: Execution[str | None] = None
    """Title of the collection that ties them; the system's name where none is given."""

    @model_validator(mode="after")
    def _names(self) -> Repos:
        for keys in (
            ("asker", "chat", "aligned", "reinforced"),
            ("corpus", "dialogues", "results", "preference"),
        ):
            used: dict[str, str] = {}
            for key in keys:
                name = getattr(self, key)
                if name is None:
                    continue
                if not _REPO_NAME.fullmatch(name) or "--" in name or ".." in name:
                    raise ValueError(
                        f"{key} {name!r} is no name of a repo: letters, digits, '-', '_' and '.', "
                        "at most 96 of them, with or without 'namespace/' before it"
                    )
                if name in used:
                    raise ValueError(
                        f"{key} and {used[name]} are both {name!r}: one would overwrite the other; "
                        "give each a name of its own"
                    )
                used[name] = key
        return self


class Names(Block):
    """The paper's names for what a recipe makes, as cards and Spaces print them."""

    system: Display[str]
    """The whole."""
    asker: Display[str]
    """The model that asks."""
    dialogues: Display[str]
    """The dataset of dialogues."""
    chat: Display[str]
    """The chat model."""
    aligned: Display[str | None] = None
    """The chat model after the preference stage."""
    reinforced: Display[str | None] = None
    """The chat model after GRPO against the asker."""


class Publish(Block):
    """What the cards say that no stage can know."""

    license_asker: Display[str] = "other"
    """Licence of the asker's repo."""
    license_dialogues: Display[str] = "other"
    """Licence of the dialogues."""
    license_chat: Display[str] = "other"
    """Licence of the chat model's repo."""
    license_note: Display[str] = ""
    """What cards say about them."""
    language: Display[list[str]] = Field(default_factory=lambda: ["en"])
    """Languages, as ISO 639-1 codes."""
    allow: Execution[list[str]] = Field(default_factory=list)
    """Kinds of secrets and personal data that may go to a Hub that is not local, such as
    ``email``, or ``personal_data`` for all of them; each commit says what passed."""


class Recipe(Block):
    """A whole pipeline as data."""

    name: Display[str]
    """Its name."""
    seed: Content[int] = 42
    """The one seed from which all others are drawn."""
    paper: Display[Paper | None] = None
    """The paper that it follows, if there is one."""
    names: Display[Names]
    """The paper's names."""
    repos: Execution[Repos]
    """Where things go."""
    corpus: Content[Corpus]
    """Stage 1."""
    asker: Content[Training]
    """Stage 2."""
    rollout: Content[Rollout]
    """Stage 3."""
    curate: Content[Curate] = Curate()
    """Stage 4."""
    chat: Content[Training]
    """Stage 5."""
    preference: Content[Preference | None] = None
    """Preference pairs and DPO, where the paper has them."""
    reinforce: Content[Reinforce | None] = None
    """GRPO of the chat model against the asker."""
    eval: Content[Evals] = Evals()
    """Stage 6."""
    study: Content[Study | None] = None
    """A study of what asking is good for, apart from the stages (`hubkit study utility`)."""
    publish: Display[Publish] = Publish()
    """What cards say that no stage can know."""
    ours: Display[list[str]] = Field(default_factory=list)
    """Dotted keys that no source states: our own choices, marked in cards."""
    plugins: Content[list[str]] = Field(default_factory=list)
    """Modules, or files that end in ``.py`` (relative to the recipe's), that register filters,
    metrics, benchmarks or engines of your own."""
    profile: Display[str] = ""
    """The profiles that were laid over it."""

    @model_validator(mode="after")
    def _seats(self) -> Recipe:
        for name, seat in (("asker", "user"), ("chat", "assistant")):
            actual = getattr(self, name).seat
            if actual != seat:
                raise ValueError(
                    f"{name}.seat is {actual}: the {name} model is trained as {seat}; leave it so"
                )
        return self

    @model_validator(mode="after")
    def _intents_are_there(self) -> Recipe:
        column = self.asker.intent_column
        if column is not None and (column != "intent" or self.corpus.intents is None):
            raise ValueError(
                f"asker.intent_column is {column!r}: the corpus has the column intent alone, and "
                "has it where corpus.intents says what people want"
            )
        return self

    @model_validator(mode="after")
    def _splits_fit(self) -> Recipe:
        corpus = self.corpus
        if corpus.limit is not None and corpus.limit <= corpus.openings + corpus.test:
            raise ValueError(
                f"corpus.limit reads {corpus.limit:,} rows at most, and corpus.openings and "
                f"corpus.test set {corpus.openings + corpus.test:,} aside: nothing is left to "
                "train on"
            )
        return self

    @model_validator(mode="after")
    def _people_are_the_asker(self) -> Recipe:
        if self.chat.preference is not None:
            raise ValueError(
                "chat.preference: pairs with people's next turns are for the asker; the chat model "
                "has the block preference"
            )
        return self

    @property
    def tags(self) -> list[str]:
        """What marks its repos on a Hub: its name, and its paper's number."""
        return [self.name, *([f"arxiv:{self.paper.arxiv}"] if self.paper else [])]

    def block_of(self, stage: str) -> BaseModel:
        """The block that `stage` reads. Raises `ValueError` for a stage that the recipe does not
        have.
        """
        block: BaseModel | None = getattr(self, _BLOCK_OF_STAGE.get(stage, stage))
        if block is None:
            name = _BLOCK_OF_STAGE.get(stage, stage)
            raise ValueError(f"a recipe without a {name} block has no stage {stage!r}")
        return block

    def read_by(self, stage: str) -> JsonObject:
        """What `stage` reads of its block, as JSON; ``prefer`` and ``align`` share one."""
        block = self.block_of(stage)
        unread = _read_by_others(type(block), stage)
        display_keys = {
            name for name, field in type(block).model_fields.items() if decides(field) is DISPLAY
        }
        return block.model_dump(mode="json", exclude=unread | display_keys)

    def seats_of(self, stage: str) -> dict[str, SeatConfig]:
        """Every seat that `stage` asks, judges included, by its dotted key."""
        block, name = self.block_of(stage), _BLOCK_OF_STAGE.get(stage, stage)
        seats = _seats_in(block, name, without=_read_by_others(type(block), stage))
        asker = self.rollout.asker
        if stage == "eval" and asker.repo == "asker" and (self.eval.scorecard or self.eval.against):
            seats["rollout.asker"] = asker
        return seats

    def content(self, stage: str) -> JsonObject:
        """What decides the result of `stage`: its seed, the content of its block, and the code of
        plug-ins.
        """
        return content_of_stage(
            stage, self.seed, self.read_by(stage), plugins.digests(self.plugins)
        )

    def digest(self, stage: str) -> str:
        """sha256 (hex) over all that decides the result of `stage`, inputs excepted."""
        return digest(self.content(stage))


def content_of_stage(
    stage: str, seed: int, block: Mapping[str, Any], plugin_digests: Sequence[str] = ()
) -> JsonObject:
    """As `Recipe.content`, from what a stage's record holds.

    Args:
        stage: Its name.
        seed: The recipe's.
        block: The JSON of the block that it read, perhaps of an older version.
        plugin_digests: Those of the recipe's plug-ins; a training uses none.
    """
    kind = block_type(Recipe.model_fields[_BLOCK_OF_STAGE.get(stage, stage)].annotation)
    assert kind is not None
    content = content_of(kind, block, without=_read_by_others(kind, stage))
    used = list(plugin_digests) if stage in _USES_PLUGINS else []
    identity: JsonObject = {"stage": stage, "seed": seed, "block": content}
    return identity | ({"plugins": used} if used else {})


def _seats_in(value: Any, at: str, *, without: Collection[str] = ()) -> dict[str, SeatConfig]:
    if isinstance(value, SeatConfig):
        return {at: value}
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, BaseModel):
        parts = ((name, part) for name, part in value if name not in without)
    elif isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    return {k: seat for name, part in parts for k, seat in _seats_in(part, f"{at}.{name}").items()}


def _read_by_others(block: type[BaseModel], stage: str) -> set[str]:
    """The keys of a block that stages share which `stage` does not read."""
    fields = block.model_fields.items()
    shared = any(readers(field) for _, field in fields)
    if not shared:
        return set()
    special = {name for name, field in fields if stage in readers(field)}
    if special:
        return set(block.model_fields) - special
    return {name for name, field in fields if readers(field)}
