"""The asker after its training, preferred towards people: pairs, DPO, and a scorecard before and
after.

It is a part of the asker's stage and ends in the same commit. What was trained first stays in the
stage's scratch folder, so that a killed run resumes at the step that it was at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hubkit import training
from hubkit.conversation import Message
from hubkit.evaluation.scorecard import HeldOutFiles, Player, scorecard
from hubkit.hub import Ref
from hubkit.pipeline.stage import RunContext, StageDirs, parquet
from hubkit.preference import people_pairs, require_pairs
from hubkit.recipe import PeoplePairs, Preference, SeatConfig, Training
from hubkit.serving import ModelSpec, serve
from hubkit.serving.reply_journal import JournalSpec
from hubkit.training.rows import seat_view
from hubkit.untrusted import JsonObject

BEFORE, AFTER = "before", "after"


def prefer_people(
    context: RunContext, block: PeoplePairs, base: Path, inputs: dict[str, Ref], dirs: StageDirs
) -> JsonObject:
    """Train the asker in ``dirs.scratch / "supervised"`` on pairs into ``dirs.out``.

    Returns:
        What became of the pairs, the DPO run's report, and the scorecard of both askers where the
        recipe has one.
    """
    recipe = context.recipe
    supervised, asker = dirs.scratch / "supervised", recipe.asker
    model = ModelSpec(supervised, base if asker.gives_adapter else None)

    def view(turns: Sequence[Message], intent: str | None) -> list[Message]:
        return seat_view(turns, "user", asker.system, intent=intent)

    with serve(
        context.hub,
        {"asker": model},
        log_dir=dirs.scratch,
        progress=dirs.progress,
        slots=block.in_flight,
        tokens=recipe.rollout.asker.context,
    ) as models:
        pairs = people_pairs.build(
            block,
            parquet(context.hub, inputs["corpus"], "train"),
            dirs.scratch / "people-pairs",
            people_pairs.AskerSeat(models["asker"], view, asker.intent_column, asker.end_mark),
            JournalSpec(
                dirs.scratch / "people-replies",
                recipe.seed,
                {name: ref.to_dict() for name, ref in inputs.items()},
            ),
            progress=dirs.progress,
        )
    require_pairs(pairs.pairs, pairs.dropped, "asker.preference")
    report = training.train_dpo(
        preference_of(asker, block),
        sorted((dirs.scratch / "people-pairs" / "data").glob("train-*.parquet")),
        training.Policy(
            training.Base(base, inputs["base"].repo_id, inputs["base"].revision),
            supervised,
            system=asker.system,
            template=asker.template,
            thinking=asker.thinking or "off",
            seat="user",
        ),
        dirs.out,
        seed=recipe.seed,
        work=dirs.scratch,
        launch=context.launch,
        progress=dirs.progress,
    )
    facts = {"pairs": pairs.to_dict(), "dpo": report.to_dict()}
    return facts | _compared(context, model, base, inputs["corpus"], dirs)


def preference_of(asker: Training, block: PeoplePairs) -> Preference:
    """The DPO run over the pairs of `block`, which trains the adapter of `asker` further."""
    return Preference(
        chat=SeatConfig(repo="asker"),
        dpo=block.dpo,
        lora=None if asker.merge_adapter else asker.lora,
        merge_adapter=asker.merge_adapter,
        max_drop_share=block.max_drop_share,
        checkpoint_minutes=block.checkpoint_minutes,
    )


def _compared(
    context: RunContext, before: ModelSpec, base: Path, corpus: Ref, dirs: StageDirs
) -> JsonObject:
    """The scorecard of the asker before and after, on the same held-out contexts."""
    recipe, block = context.recipe, context.recipe.eval.scorecard
    if block is None:
        return {}
    after = ModelSpec(dirs.out, base if before.base else None)
    with serve(
        context.hub,
        {BEFORE: before, AFTER: after},
        log_dir=dirs.scratch,
        progress=dirs.progress,
        slots=block.in_flight,
        tokens=recipe.rollout.asker.context,
    ) as models:
        asker = recipe.asker
        players = [
            Player(name, models[name], asker.system, asker.end_mark, {"asker": name})
            for name in (BEFORE, AFTER)
        ]
        result = scorecard(
            block,
            HeldOutFiles(
                parquet(context.hub, corpus, "test"),
                asker.intent_column,
                {**corpus.to_dict(), "split": "test"},
            ),
            players,
            seed=recipe.seed,
            journal=dirs.scratch / "people-scorecard",
            progress=dirs.progress,
        )
    return {"scorecard": result.to_dict()}
