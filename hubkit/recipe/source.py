"""The block that says where conversations come from."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from hubkit.recipe.block import Block
from hubkit.recipe.identity import Content, Display


class Source(Block):
    """Where conversations come from: a dataset repo on the Hub at a revision, or a local path."""

    repo_id: Content[str | None] = None
    """Dataset repo on the Hub."""
    revision: Content[str] = "main"
    """Branch, tag or commit."""
    path: Content[str | None] = None
    """A local file or folder instead."""
    files: Content[list[str]] = Field(default_factory=list)
    """Only these files of it."""
    license: Display[str] = "other"
    """Its licence, as the Hub names it."""
    license_note: Display[str] = ""
    """What cards say about the licence."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.repo_id and not self.path:
            raise ValueError("a source needs a repo_id or a path")
        return self
