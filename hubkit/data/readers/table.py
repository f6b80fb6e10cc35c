"""What is read and what is not, as Markdown: made from the readers' own entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hubkit.data.readers.containers import FOREIGN, MARKUP
from hubkit.data.readers.explain import KINDS
from hubkit.data.readers.exports import NODE_NOTES
from hubkit.data.readers.files import SUFFIXES
from hubkit.data.readers.layouts import LAYOUTS, PLACES
from hubkit.data.readers.transcripts import STYLES
from hubkit.data.readers.trims import NOTES
from hubkit.data.readers.turns import ROLES

_FOREIGN_TEXT = "named, counted as one unreadable row, not read"


def layout_tables() -> Iterator[str]:
    """Give the lines of the tables: containers, layouts, roles, and changes that are counted."""
    yield "A folder's files are read by their names: " + ", ".join(f"`{s}`" for s in SUFFIXES) + "."
    yield "What a file is, is told by its first bytes."
    yield ""
    yield from _table(("container", "what is read", "what is not"), _containers())
    yield ""
    yield from _table(
        ("layout of a row", "what is read", "what is not (counted by column or key)"),
        ((layout.name, layout.text, layout.not_read) for layout in LAYOUTS),
    )
    yield ""
    yield f"Marks of transcripts: {', '.join(f'`{style}`' for style in STYLES)}."
    yield ""
    yield from _table(
        ("seat", "names of its role, whatever their case"),
        (
            (seat, ", ".join(f"`{name}`" for name, role in ROLES.items() if role == seat))
            for seat in ("user", "assistant", "system", "tool")
        ),
    )
    yield ""
    counted = {**NOTES, **{word: f"{text}: left out" for word, text in NODE_NOTES.items()}}
    yield from _table(("counted as", "what it means"), ((f"`{k}`", v) for k, v in counted.items()))


def _containers() -> Iterator[Sequence[str]]:
    yield from PLACES
    kinds = dict.fromkeys((*FOREIGN.values(), *(kind for _, kind in MARKUP)))
    unknown_kinds = [f"`{kind}`" for kind in kinds if kind not in KINDS]
    for kind in kinds:
        if kind in KINDS:
            yield f"`{kind}`", _FOREIGN_TEXT, KINDS[kind]
    yield ", ".join(unknown_kinds), _FOREIGN_TEXT, ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + " --- |" * len(columns)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
