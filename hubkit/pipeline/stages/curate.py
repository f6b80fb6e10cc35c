"""4. curate: the dialogues worth keeping become a version, measured against what people say."""

from __future__ import annotations

from dataclasses import replace

from hubkit.data import curation
from hubkit.data.filters import check, needs
from hubkit.hub import Ref
from hubkit.pipeline.inputs import base_model, filter_context, question_inputs
from hubkit.pipeline.stage import RunContext, Stage, StageDirs, parquet, with_funnel
from hubkit.pipeline.stage_cards import card
from hubkit.pipeline.stages import dialogue_stats
from hubkit.progress import Progress
from hubkit.publishing import records
from hubkit.untrusted import JsonObject


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The raw dialogues, and what filters and measures need."""
    block = context.recipe.curate
    check(block.filters)
    refs = {"rollout": context.before("rollout")}
    refs |= question_inputs(context, block.filters, progress)
    if block.measure:
        refs["corpus"] = context.before("corpus")
    if block.measure or "tokenizer" in needs(block.filters):
        refs["tokenizer"] = base_model(context, context.recipe.asker, progress)
    return refs


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """What is kept, what is dropped and why, and the measures of both."""
    raw = parquet(context.hub, refs["rollout"], "raw")
    marks = _turn_marks(context, refs["rollout"])
    report = curation.curate(
        context.recipe.curate,
        raw,
        dirs.out,
        context=replace(filter_context(context, refs), turn_marks=marks),
        progress=dirs.progress,
    )
    if not report.kept:
        raise curation.nothing_kept(report)
    measures = dialogue_stats.measure(context, refs, dirs, raw)
    funnel = with_funnel(report.to_dict(), dirs)
    return funnel | ({"measures": measures} if measures else {})


def _turn_marks(context: RunContext, rollout: Ref) -> tuple[str, ...]:
    """The control tokens that open turns of the templates of a rollout, as its record says."""
    record = records(context.hub, rollout).get("rollout", {})
    marks = record.get("report", {}).get("turn_marks")
    return tuple(map(str, marks)) if isinstance(marks, list) else ()


STAGE = Stage(
    "curate",
    "dialogues",
    "dataset",
    inputs,
    build,
    card("dialogues", "curate", "dialogues"),
    ("data/train-*", "data/dropped-*"),
    tagged=True,
)
