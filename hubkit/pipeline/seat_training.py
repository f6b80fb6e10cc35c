"""One fine-tuning of a seat as a stage: the same for the asker and the chat model."""

from __future__ import annotations

from contextlib import suppress

from hubkit import training
from hubkit.chat_templates import for_base
from hubkit.errors import SourceError, TemplateError
from hubkit.hub import Ref
from hubkit.pipeline.stage import WEIGHTS, RunContext, StageDirs, parquet
from hubkit.recipe import Training
from hubkit.serving.templates import SMALL_FILES
from hubkit.untrusted import JsonObject


def train_seat(
    context: RunContext, block: Training, base: Ref, data: Ref, dirs: StageDirs
) -> JsonObject:
    """Train `block` from `base` on the training split of `data`; give the report."""
    report = training.train(
        block,
        parquet(context.hub, data, "train"),
        training.Base(
            context.hub.snapshot(base, allow_patterns=WEIGHTS), base.repo_id, base.revision
        ),
        dirs.out,
        seed=context.recipe.seed,
        work=dirs.scratch,
        launch=context.launch,
        progress=dirs.progress,
    )
    return report.to_dict()


def require_template(context: RunContext, block: Training, base: Ref, named_by: str) -> None:
    """Raise `TemplateError` where conversations could not be printed for `block`, the recipe's
    `named_by`; only the base's small files are downloaded."""
    folder = context.hub.snapshot(base, allow_patterns=SMALL_FILES)
    try:
        with suppress(SourceError):  # of a base without a tokenizer, loading it says what is wrong
            templates = for_base(folder, template=block.template, thinking=block.thinking or "off")
            templates.require(block.seat)
    except TemplateError as error:
        raise TemplateError(f"{named_by}.base {base.repo_id}: {error}") from None
