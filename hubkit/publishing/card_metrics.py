"""What a card says about dialogues beside people's: the table that curation measured, its plots,
and one verdict.

Takes the curate stage's report; gives rows that a template prints. The verdict follows from
intervals alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hubkit.metrics import definitions, published, step_table

PLOTS = {
    "turns.png": "Human turns per dialogue, as shares",
    "lengths.png": "Lengths of human turns, as shares",
    "topics.png": "Map of human turns: one dot a follow-up turn, near when alike",
}


@dataclass(frozen=True, slots=True)
class Measures:
    """A table of measures (first column: what; then one a dataset), and what belongs beside it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    formulas: Sequence[tuple[str, str, str]]
    missing: Sequence[str]
    plots: Sequence[tuple[str, str]]
    verdict: str
    published: Sequence[Mapping[str, Any]] = field(default_factory=list)
    caution: str = ""


@dataclass(frozen=True, slots=True)
class Steps:
    """What each step of a chain left, and beside it what the paper published of its own."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    source: str = ""
    caution: str = ""


def steps(report: Mapping[str, Any], recipe: str) -> Steps | None:
    """The step table of a corpus report, or None where it has no steps."""
    ledger = report.get("steps")
    if not isinstance(ledger, list) or not all("conversations_out" in step for step in ledger):
        return None
    theirs = published()["steps"].get(recipe, {})
    return Steps(*step_table(report, recipe), theirs.get("source", ""), theirs.get("caution", ""))


def of(report: Mapping[str, Any]) -> Measures | None:
    """The measures in a curate stage's report, or None where nothing was measured."""
    found = report.get("measures")
    if not isinstance(found, Mapping) or not found.get("rows"):
        return None
    unit = str(found.get("unit", "words"))
    shown = {str(row[0]) for row in found["rows"]}
    formulas = [
        (title, one.formula, one.source)
        for one in definitions().values()
        if (title := one.title.replace("{unit}", unit)) in shown
    ]
    files = found.get("files") or []
    return Measures(
        columns=found["columns"],
        rows=found["rows"],
        formulas=formulas,
        missing=_missing(found),
        plots=[(name, text) for name, text in PLOTS.items() if name in files],
        verdict=_verdict(found),
        published=published()["measures"],
        caution=published()["caution"],
    )


def _missing(found: Mapping[str, Any]) -> list[str]:
    """One sentence a measure that is not in the table, or not for every dataset."""
    titles = {
        name: one.title.replace("{unit}", str(found.get("unit")))
        for name, one in definitions().items()
    }
    sentences = [
        f"{titles.get(measure, measure)}: not measured of {name} ({why})"
        for name, gaps in (found.get("missing") or {}).items()
        for measure, why in gaps.items()
    ]
    if why := found.get("without_topics"):
        sentences.append(f"topics: not measured ({why})")
    return sentences


def _verdict(found: Mapping[str, Any]) -> str:
    """What the intervals of the human-likeness AUC allow one to say about training an asker."""
    roles = found.get("roles") or {}
    likeness = found.get("likeness") or {}
    asker, alone = likeness.get(roles.get("asker")), likeness.get(roles.get("baseline"))
    if not asker or not alone:
        return "This run does not test it: one of the two was not measured."
    if asker[2] < alone[1]:
        return "In this run it holds: the trained asker's turns are harder to tell from people's; the intervals part."
    if asker[1] > alone[2]:
        return "In this run it does not hold: the trained asker's turns are easier to tell from people's."
    return "This run does not show a difference: the two intervals overlap."
