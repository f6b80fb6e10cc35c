"""What a card says about dialogues compared with people's: the table that curation measured, its
plots, and one verdict.

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
    """A table of measures (first column: what; then one a dataset), and its notes."""

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
    """What each step of a chain left, next to what the paper published of its own."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    source: str = ""
    caution: str = ""


def steps(report: Mapping[str, Any], recipe: str) -> Steps | None:
    """The step table of a corpus report, or None where it has no steps."""
    ledger = report.get("steps")
    if not isinstance(ledger, list) or not all("conversations_out" in step for step in ledger):
        return None
    paper_steps = published()["steps"].get(recipe, {})
    return Steps(
        *step_table(report, recipe), paper_steps.get("source", ""), paper_steps.get("caution", "")
    )


def of(report: Mapping[str, Any]) -> Measures | None:
    """The measures in a curate stage's report, or None where nothing was measured."""
    measures = report.get("measures")
    if not isinstance(measures, Mapping) or not measures.get("rows"):
        return None
    unit = str(measures.get("unit", "words"))
    row_names = {str(row[0]) for row in measures["rows"]}
    formulas = [
        (title, definition.formula.replace("{unit}", unit), definition.source)
        for definition in definitions().values()
        if (title := definition.title.replace("{unit}", unit)) in row_names
    ]
    files = measures.get("files") or []
    return Measures(
        columns=measures["columns"],
        rows=measures["rows"],
        formulas=formulas,
        missing=_missing(measures),
        plots=[(name, text) for name, text in PLOTS.items() if name in files],
        verdict=_verdict(measures),
        published=published()["measures"],
        caution=published()["caution"],
    )


def _missing(measures: Mapping[str, Any]) -> list[str]:
    """What is not in the table, or not for every dataset: one sentence a reason."""
    titles = {
        name: definition.title.replace("{unit}", str(measures.get("unit")))
        for name, definition in definitions().items()
    }
    names: dict[tuple[str, str], list[str]] = {}
    for name, gaps in (measures.get("missing") or {}).items():
        for measure, why in gaps.items():
            names.setdefault((titles.get(measure, measure), why), []).append(name)
    together: dict[tuple[str, str], list[str]] = {}
    for (title, why), of in names.items():
        together.setdefault(("; ".join(of), why), []).append(title)
    sentences = [
        f"{'; '.join(listed)}: not measured of {of} ({why})"
        for (of, why), listed in together.items()
    ]
    if why := measures.get("without_topics"):
        sentences.append(f"topics: not measured ({why})")
    return sentences


def _verdict(measures: Mapping[str, Any]) -> str:
    """What the intervals of the human-likeness AUC allow one to say about training an asker."""
    roles = measures.get("roles") or {}
    likeness = measures.get("likeness") or {}
    asker, alone = likeness.get(roles.get("asker")), likeness.get(roles.get("baseline"))
    if not asker or not alone:
        return "This run does not test it: one of the two was not measured."
    if asker[2] < alone[1]:
        return (
            "In this run it holds: the trained asker's turns are harder to tell from "
            "people's; the intervals part."
        )
    if asker[1] > alone[2]:
        return (
            "In this run it does not hold: the trained asker's turns are easier to tell from "
            "people's."
        )
    return "This run does not show a difference: the two intervals overlap."
