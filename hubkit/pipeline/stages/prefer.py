"""6. prefer, for recipes with a preference block: pairs of a dialogue's own answer and one that
loses the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubkit import preference
from hubkit.errors import RecipeError
from hubkit.hub import Ref
from hubkit.judging import turn_values, yes_or_no
from hubkit.pipeline.inputs import base_model, require
from hubkit.pipeline.judges import judge_input, prompted_judge
from hubkit.pipeline.stage import RunContext, Stage, StageDirs, cap_raised, parquet
from hubkit.pipeline.stage_cards import card
from hubkit.progress import Progress
from hubkit.recipe import Preference, Recipe
from hubkit.serving import serve, spec_of
from hubkit.serving.reply_journal import JournalSpec
from hubkit.untrusted import JsonObject

THIS_CHAT_MODEL = "chat"  # as `preference.chat.repo`: the chat model that this recipe trained


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The curated dialogues, the model that answers without their context (and its base, below an
    adapter), and the judge that chooses questions, where one does."""
    recipe, block = context.recipe, preference_block(context.recipe)
    refs = {"dialogues": context.before("curate")}
    refs |= judge_input(context, block.judging, progress)
    if block.chat.repo is None:
        raise RecipeError("preference.chat.repo is null: it must be a repo, or chat")
    if block.chat.repo != THIS_CHAT_MODEL:
        return refs | {"answers": require(context.hub, block.chat.repo, progress=progress)}
    if recipe.chat.gives_adapter:
        refs["base"] = base_model(context, recipe.chat, progress)
    return refs | {"answers": context.before("chat")}


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """The preference dataset; every reply is on disk before it counts, so a killed run asks for
    nothing twice.
    """
    block = preference_block(context.recipe)
    spec = spec_of(block.chat, refs["answers"], refs.get("base"), named_by="preference.chat")
    with serve(
        context.hub,
        {"answers": spec},
        log_dir=dirs.scratch,
        progress=dirs.progress,
        slots=block.in_flight,
        tokens=block.chat.context,
    ) as models:
        report = preference.build(
            block,
            parquet(context.hub, refs["dialogues"], "train"),
            dirs.out,
            models["answers"],
            JournalSpec(
                dirs.scratch / "journal",
                context.recipe.seed,
                {role: ref.to_dict() for role, ref in refs.items()},
            ),
            choose=_choice(context, refs, dirs),
            progress=dirs.progress,
        )
    preference.require_pairs(report.pairs, report.dropped, "preference")
    return report.to_dict()


def outgrown(recipe: Recipe, record: Mapping[str, Any]) -> bool:
    """Whether a cap ended the judge's work in `record`, and `recipe` has raised it since."""
    stopped = (record["report"].get("judging") or {}).get("stopped")
    then = record["block"].get("judging") or {}
    return cap_raised(stopped, then, recipe.preference.judging if recipe.preference else None)


def preference_block(recipe: Recipe) -> Preference:
    """The block, which recipes with this stage have."""
    assert recipe.preference is not None
    return recipe.preference


def _choice(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> preference.Choose | None:
    """How questions are chosen: by a judge, where the block names one, batch by batch until there
    are enough.
    """
    block = preference_block(context.recipe).judging
    if block is None:
        return None

    def choose(
        questions: list[preference.Question], count: int
    ) -> tuple[list[preference.Question], JsonObject]:
        chosen: list[preference.Question] = []
        looked_at = 0
        with prompted_judge(context, "prefer", block, refs, dirs, "context-v1") as judge:
            while (
                len(chosen) < count
                and looked_at < len(questions)
                and not judge.stats.get("stopped")
            ):
                batch = questions[looked_at : looked_at + max(block.in_flight, count - len(chosen))]
                looked_at += len(batch)
                about = [(f"{q.dialogue}/{q.turn}", turn_values(q.history, q.text)) for q in batch]
                answers = judge.ask(about, yes_or_no, dirs.progress)
                chosen += [q for q in batch if answers.get(f"{q.dialogue}/{q.turn}") == "yes"]
            facts = {"looked_at": looked_at, "chosen": min(len(chosen), count)}
            return chosen[:count], {**judge.stats, **facts}

    return choose


STAGE = Stage(
    "prefer",
    "preference",
    "dataset",
    inputs,
    build,
    card("preference", "prefer", "preference"),
    ("data/train-*",),
    tagged=True,
    needs="preference",
    outgrown=outgrown,
)
