"""A whole recipe: what it is called, where its results go, and its blocks."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, Field

from hubkit.recipe.block import Block
from hubkit.recipe.data import Corpus, Curate
from hubkit.recipe.dialogue import Rollout
from hubkit.recipe.judgement import Evals
from hubkit.recipe.preference import Preference
from hubkit.recipe.training import Training

PREFERENCE_STAGES = ("prefer", "align")
_NOT_READ = {"expected", "published"}  # only shown or planned with
_SAME_ANYWHERE = {
    "corpus",
    "curate",
}  # stages that make the same wherever they run, by their ``on``
# Of a preference block, what ``align`` reads.
_OPTIMISING = {"max_drop_share", "checkpoint_minutes", "lora", "merge_adapter", "dpo"}


class Paper(Block):
    """What a card says about the paper behind a recipe."""

    title: str
    """As on its first page."""
    arxiv: str
    """Its arXiv number."""
    url: str
    """Where to read it."""
    caution: str = ""
    """What is not certain about the paper, as cards say it."""


class Repos(Block):
    """Repo names, without namespace, of what a recipe makes."""

    corpus: str
    """Dataset of human conversations."""
    asker: str
    """Model that asks."""
    dialogues: str
    """Dataset of asker and chat model in conversation."""
    chat: str
    """Chat model trained on them."""
    results: str
    """Dataset of what was measured."""
    preference: str | None = None
    """Dataset of preference pairs; the dialogues' name and ``-preference`` where none is given."""
    aligned: str | None = None
    """Chat model after DPO on them; the chat model's name and ``-aligned`` where none is given."""
    collection: str | None = None
    """Title of the collection that ties them; the system's name where none is given."""


class Names(Block):
    """The paper's names for what a recipe makes, as cards and Spaces print them."""

    system: str
    """The whole."""
    asker: str
    """The model that asks."""
    dialogues: str
    """The dataset of dialogues."""
    chat: str
    """The chat model."""
    aligned: str | None = None
    """The chat model after the preference stage."""


class Publish(Block):
    """What the cards say that no stage can know."""

    license_asker: str = "other"
    """Licence of the asker's repo."""
    license_dialogues: str = "other"
    """Licence of the dialogues."""
    license_chat: str = "other"
    """Licence of the chat model's repo."""
    license_note: str = ""
    """What cards say about them."""
    language: list[str] = Field(default_factory=lambda: ["en"])
    """Languages, as ISO 639-1 codes."""


class Recipe(Block):
    """A whole pipeline as data."""

    name: str
    """Its name."""
    seed: int = 42
    """The one seed from which all others are drawn."""
    paper: Paper | None = None
    """The paper behind it, if there is one."""
    names: Names
    """The paper's names."""
    repos: Repos
    """Where things go."""
    corpus: Corpus
    """Stage 1."""
    asker: Training
    """Stage 2."""
    rollout: Rollout
    """Stage 3."""
    curate: Curate = Curate()
    """Stage 4."""
    chat: Training
    """Stage 5."""
    preference: Preference | None = None
    """Preference pairs and DPO, where the paper has them."""
    eval: Evals = Evals()
    """Stage 6."""
    publish: Publish = Publish()
    """What cards say that no stage can know."""
    ours: list[str] = Field(default_factory=list)
    """Dotted keys that no source states: our own choices, marked in cards."""
    plugins: list[str] = Field(default_factory=list)
    """Modules, or files that end in ``.py`` (relative to the recipe's), that register filters,
    metrics, benchmarks or engines of your own."""
    profile: str = ""
    """The profiles that were laid over it."""

    @property
    def tags(self) -> list[str]:
        """What marks its repos on a Hub: its name, and its paper's number."""
        return [self.name, *([f"arxiv:{self.paper.arxiv}"] if self.paper else [])]

    def read_by(self, stage: str, *, mode: Literal["json", "python"] = "python") -> dict[str, Any]:
        """The block that `stage` reads, as plain data; ``prefer`` and ``align`` each read their
        part of one.

        What changes nothing of what is made is left out. Raises `ValueError` for a stage that the
        recipe does not have."""
        if stage not in PREFERENCE_STAGES:
            block: BaseModel = getattr(self, stage)
            return block.model_dump(
                mode=mode, exclude=_NOT_READ | ({"on"} if stage in _SAME_ANYWHERE else set())
            )
        if self.preference is None:
            raise ValueError(f"a recipe without a preference block has no stage {stage!r}")
        optimising = (
            {"exclude": {*_OPTIMISING, "expected"}}
            if stage == "prefer"
            else {"include": _OPTIMISING}
        )
        return self.preference.model_dump(mode=mode, **optimising)  # type: ignore[arg-type]

    def digest(self, stage: str) -> str:
        """sha256 (hex) over what `stage` reads of this recipe: its own block, the seed and the repo
        names.
        """
        optional = {"preference", "aligned"} if stage not in PREFERENCE_STAGES else set()
        payload = {
            "stage": stage,
            "seed": self.seed,
            "repos": self.repos.model_dump(exclude=optional),
            "block": self.read_by(stage),
        }
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
