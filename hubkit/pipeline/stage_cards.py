"""The card that a stage commits: rendered from its record and those that its repo held before."""

from __future__ import annotations

from collections.abc import Sequence

from hubkit import publishing
from hubkit.hub import Ref
from hubkit.pipeline.stage import RenderCard, RunContext
from hubkit.publishing.lineage import StageRecord


def card(kind: publishing.Kind, stage: str, repo: str) -> RenderCard:
    """A function that renders the card of `kind` for `stage`, which commits to the recipe's repo
    `repo`.
    """

    def render(
        context: RunContext,
        inputs: dict[str, Ref],
        record: StageRecord,
        files: Sequence[str],
    ) -> str:
        repo_id = context.hub.qualify(getattr(context.recipe.repos, repo))
        records: dict[str, StageRecord] = {}
        for ref in inputs.values():
            if ref.repo_id == repo_id:
                records |= publishing.records(context.hub, ref)
        records[stage] = record
        results = record["report"] if kind == "results" else None
        return publishing.render(
            publishing.from_records(
                kind, repo_id, context.recipe, records, results=results, files=files
            )
        )

    return render
