"""An asker's scorecard as the world sees it: a section of a card, and entries that the Hub reads.

Takes the scorecard in a results file; gives what the template prints, ``model-index`` entries, and
the content of an ``.eval_results`` file. The Hub shows the latter on model pages where the dataset
is registered as a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from hubkit.metrics import scorecards
from hubkit.metrics.definitions import card_definitions
from hubkit.publishing import assets, markdown
from hubkit.publishing.card_data import Input

PICTURE = "scorecard.png"
ENTRIES = ".eval_results/scorecard.yaml"
_PLAYER = "asker"  # the row that is the repo's own model


@dataclass(frozen=True, slots=True)
class ScorecardView:
    """What the template prints: the table, what is missing and why, each measure's definition, and
    how it was asked.
    """

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    definitions: list[tuple[str, str, str]]
    settings: Mapping[str, Any]


def from_results(results: Mapping[str, Any] | None) -> scorecards.Scorecard | None:
    """The scorecard in a results file, or None where there is none, or none that can be read."""
    try:
        return scorecards.of(results["scorecard"]) if results and results.get("scorecard") else None
    except (KeyError, TypeError):
        return None


def view_of(card: scorecards.Scorecard) -> ScorecardView:
    """`card` as text for a template."""
    columns, rows = scorecards.table(card)
    defined = [(e.title, e.formula, e.source) for e in scorecards.measured(card).values()]
    return ScorecardView(columns, rows, scorecards.notes(card), defined, card.settings)


def section(card: scorecards.Scorecard, *, picture: bool = True) -> str:
    """The section of a model card, as Markdown."""
    env = markdown.environment(assets.folder("cards"))
    template = env.from_string(
        '{% import "_scorecard.md.jinja" as part with context %}{{ part.scorecard(s, picture) }}'
    )
    return template.render(s=view_of(card), picture=PICTURE if picture else None).strip() + "\n"


def model_index(card: scorecards.Scorecard, data: Input, player: str = _PLAYER) -> list[EvalResult]:
    """One entry a measure of `player`, for the ``model-index`` of its card; `data` is what it was
    held against.
    """
    titles = card_definitions()
    values = _values(card, player).items()
    return [
        held_out_result(data, name, titles[name].title, value["value"]) for name, value in values
    ]


def held_out_result(data: Input, metric: str, title: str, value: float) -> EvalResult:
    """What one measure came to on the held-out conversations of the corpus `data`."""
    return EvalResult(
        task_type="text-generation",
        dataset_type=data.repo_id,
        dataset_name="Held-out human conversations",
        dataset_split="test",
        dataset_revision=data.revision,
        metric_type=metric,
        metric_name=title,
        metric_value=round(value, 6),
    )


def model_index_yaml(card: scorecards.Scorecard, data: Input, player: str = _PLAYER) -> str:
    """The same as the ``model-index`` of a card's front matter."""
    index = eval_results_to_model_index(player, model_index(card, data, player))
    return yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True, width=120)


def entries(card: scorecards.Scorecard, data: Input, player: str = _PLAYER) -> str:
    """The content of `ENTRIES`: the same values as a list of entries, each with its number of turns
    and interval.
    """
    results = [
        EvalResultEntry(
            dataset_id=data.repo_id,
            task_id=name,
            value=round(value["value"], 6),
            dataset_revision=data.revision,
            notes=_note(card, name, value),
        )
        for name, value in _values(card, player).items()
    ]
    return yaml.safe_dump(
        eval_result_entries_to_yaml(results), sort_keys=False, allow_unicode=True, width=120
    )


def _values(card: scorecards.Scorecard, player: str) -> Mapping[str, Mapping[str, Any]]:
    row = next((row for row in card.rows if row.name == player), None)
    return (
        {name: row.values[name] for name in card_definitions() if name in row.values} if row else {}
    )


def _note(card: scorecards.Scorecard, name: str, value: Mapping[str, Any]) -> str:
    parts = [card_definitions()[name].title, f"n = {value['n']}"]
    if value.get("low") is not None and value.get("high") is not None:
        parts.append(f"95% interval {value['low']:.3f} to {value['high']:.3f}")
    people = next(
        (row.values.get(name) for row in card.rows if row.name == scorecards.PEOPLE), None
    )
    if people:
        parts.append(f"people {people['value']:.3f}")
    return "; ".join(parts)
