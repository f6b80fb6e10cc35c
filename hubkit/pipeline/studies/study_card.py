"""The card of what a study commits."""

from __future__ import annotations

from collections.abc import Sequence

from hubkit import publishing
from hubkit.evaluation import utility
from hubkit.hub import Ref
from hubkit.pipeline.stage import RenderCard, RunContext
from hubkit.publishing.lineage import StageRecord
from hubkit.recipe.study import RESULT


def card(stage: str, kind: str = "dataset") -> RenderCard:
    """A function that renders the card of a part of a study."""

    def render(
        context: RunContext,
        inputs: dict[str, Ref],
        record: StageRecord,
        files: Sequence[str],
    ) -> str:
        report = record["report"]
        result = (
            publishing.StudyResult(
                *utility.table(report), utility.verdicts(report), utility.curve_table(report)
            )
            if stage == RESULT
            else None
        )
        return publishing.study_card(
            stage, context.recipe, inputs, record, kind=kind, files=files, result=result
        )

    return render
