"""The block that says where conversations come from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from hubkit.recipe.block import Block
from hubkit.recipe.identity import Content, Display
from hubkit.untrusted import is_inside


class Columns(Block):
    """Names of a source's own columns and keys, for a layout that is not known, or paths of keys
    (``thread.posts``); null: as known."""

    turns: Content[str | None] = None
    """The column that holds the list of turns."""
    role: Content[str | None] = None
    """The key of a turn that says who speaks."""
    text: Content[str | None] = None
    """The key of a turn that holds its text."""
    system: Content[str | None] = None
    """The column that holds the system message."""
    conversation: Content[str | None] = None
    """Where each row is one turn: the column that says to which conversation it belongs."""
    order: Content[str | None] = None
    """The column that such rows are ordered by; null: as they stand in the file."""
    person: Content[str | None] = None
    """The column that says whose conversation it is: all of one person's go to one split."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.turns and self.conversation:
            raise ValueError(
                "turns and conversation exclude each other: a row holds a list of turns, or is one"
            )
        if self.order and not self.conversation:
            raise ValueError("order needs conversation: only rows of one turn each are ordered")
        return self


class Source(Block):
    """Where conversations come from: a dataset repo on the Hub at a revision, or a local path."""

    repo_id: Content[str | None] = None
    """Dataset repo on the Hub."""
    revision: Content[str] = "main"
    """Branch, tag or commit."""
    path: Content[str | None] = None
    """A local file or folder instead."""
    files: Content[list[str]] = Field(default_factory=list)
    """Only these files of it, by their paths in it."""
    columns: Content[Columns] = Columns()
    """Its own names of columns and keys."""
    roles: Content[dict[str, Literal["user", "assistant", "system", "tool"]]] = Field(
        default_factory=dict
    )
    """Its own names of roles, whatever their case, and what they are."""
    encoding: Content[str | None] = None
    """The encoding of its text files, as Python names it, where that is not UTF-8."""
    license: Display[str] = "other"
    """Its licence, as the Hub names it."""
    license_note: Display[str] = ""
    """What cards say about the licence."""

    @field_validator("files")
    @classmethod
    def _inside(cls, files: list[str]) -> list[str]:
        for name in files:
            if not is_inside(name):
                raise ValueError(f"{name!r} lies outside of the source; name files inside it")
        return files

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.repo_id and not self.path:
            raise ValueError("a source needs a repo_id or a path")
        return self

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                "".encode(encoding)
            except LookupError:
                raise ValueError(
                    f"Python has no text encoding {encoding!r}; gb18030, cp1252, shift_jis and "
                    "utf-16-le are some"
                ) from None
        return encoding
