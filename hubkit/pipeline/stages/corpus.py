"""1. corpus: people's conversations, cleaned and split."""

from __future__ import annotations

from hubkit.data import corpus
from hubkit.data.filters import check, needs
from hubkit.hub import Ref
from hubkit.pipeline.inputs import base_model, files_of, filter_context, locate, question_inputs
from hubkit.pipeline.judges import judge_input
from hubkit.pipeline.stage import RunContext, Stage, StageDirs, with_funnel
from hubkit.pipeline.stage_cards import card
from hubkit.pipeline.stages import intents
from hubkit.progress import Progress
from hubkit.untrusted import JsonObject


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The sources, and what filters and intents need."""
    block = context.recipe.corpus
    check(block.filters)
    refs = {
        f"source {number}": locate(context.hub, source, progress=progress)
        for number, source in enumerate(block.sources, start=1)
    }
    refs |= question_inputs(context, block.filters, progress)
    if "tokenizer" in needs(block.filters):
        refs["tokenizer"] = base_model(context, context.recipe.asker, progress)
    return refs | (judge_input(context, block.intents.judging, progress) if block.intents else {})


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """The cleaned corpus in its splits, with intents where the recipe wants them."""
    block = context.recipe.corpus
    files = [
        corpus.SourceFile(path, source)
        for number, source in enumerate(block.sources, start=1)
        for path in files_of(context.hub, source, refs[f"source {number}"])
    ]
    report = corpus.build(
        block,
        files,
        dirs.out,
        seed=context.recipe.seed,
        context=filter_context(context, refs),
        progress=dirs.progress,
    )
    return with_funnel(intents.add(context, refs, dirs, report.to_dict()), dirs)


STAGE = Stage(
    "corpus",
    "corpus",
    "dataset",
    inputs,
    build,
    card("corpus", "corpus", "corpus"),
    ("data/*",),
    outgrown=intents.outgrown,
)
