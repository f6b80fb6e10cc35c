"""Two stages behind the chat model, for recipes with a preference block: pairs, and direct
preference optimisation.

``prefer`` makes a preference dataset out of the curated dialogues, ``align`` goes on training the
chat model on it and commits to a repo of its own: the chat model stays as it was, so that the two
can be held against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubkit import evaluation, preference, training
from hubkit.errors import RecipeError
from hubkit.hub import Ref
from hubkit.judging import turn_values, yes_or_no
from hubkit.pipeline.answering import answering, judge_input, questioner
from hubkit.pipeline.inputs import require
from hubkit.pipeline.stage import WEIGHTS, Context, Work, cap_raised, parquet
from hubkit.progress import Progress
from hubkit.publishing.metadata import is_adapter
from hubkit.recipe import Preference, Recipe

OURS = "chat"  # as `preference.chat.repo`: the chat model that this recipe trained


def prefer_inputs(context: Context, progress: Progress) -> dict[str, Ref]:
    """The curated dialogues, the model that answers without their context (and its base, below an
    adapter), and the judge that chooses questions, where one does."""
    recipe, answers = context.recipe, _block(context).chat.repo
    inputs = {"dialogues": context.before("curate")} | judge_input(
        context, _block(context).judging, progress
    )
    if answers is None:
        raise RecipeError("preference.chat.repo is null: it must be a repo, or chat")
    if answers != OURS:
        return inputs | {"answers": require(context.hub, answers, progress=progress)}
    if is_adapter(recipe.chat):
        inputs["base"] = require(
            context.hub, recipe.chat.base, revision=recipe.chat.base_revision, progress=progress
        )
    return inputs | {"answers": context.before("chat")}


def build_prefer(context: Context, inputs: dict[str, Ref], work: Work) -> dict[str, Any]:
    """The preference dataset; every reply is on disk before it counts, so a killed run asks for
    nothing twice.
    """
    block, answers = _block(context), inputs["answers"]
    dialogues = parquet(context.hub, inputs["dialogues"], "train")
    with answering(
        context.hub, block.chat, answers, inputs.get("base"), work, slots=block.in_flight
    ) as (at, spoken):
        report = preference.build(
            block.model_copy(update={"chat": spoken}),
            dialogues,
            work.out,
            chat_urls=at.urls,
            token=at.token,
            template=at.template,
            journal=work.scratch / "journal",
            seed=context.recipe.seed,
            choose=_choice(context, inputs, work),
            provenance={role: ref.to_dict() for role, ref in inputs.items()},
            progress=work.progress,
        )
    return report.to_dict()


def outgrown(recipe: Recipe, record: Mapping[str, Any]) -> bool:
    """Whether a cap ended the judge's work in `record`, and `recipe` has raised it since."""
    stopped = (record["report"].get("judging") or {}).get("stopped")
    then = record["block"].get("judging") or {}
    return cap_raised(stopped, then, recipe.preference.judging if recipe.preference else None)


def align_inputs(context: Context, progress: Progress) -> dict[str, Ref]:
    """The pairs and the chat model (and its base, below an adapter)."""
    training = context.recipe.chat
    inputs = {"preference": context.before("prefer"), "chat": context.before("chat")}
    if is_adapter(training):
        inputs["base"] = require(
            context.hub, training.base, revision=training.base_revision, progress=progress
        )
    return inputs


def build_align(context: Context, inputs: dict[str, Ref], work: Work) -> dict[str, Any]:
    """The chat model, optimised on the pairs: the same adapter trained on, or what stands on the
    whole model.
    """
    below = inputs.get("base", inputs["chat"])
    report = training.train_dpo(
        _block(context),
        parquet(context.hub, inputs["preference"], "train"),
        context.hub.snapshot(below, allow_patterns=WEIGHTS),
        context.hub.snapshot(inputs["chat"], allow_patterns=WEIGHTS),
        work.out,
        base_repo_id=below.repo_id,
        base_revision=below.revision,
        system=context.recipe.chat.system,
        template=context.recipe.chat.template,
        thinking=context.recipe.chat.thinking or "off",
        seed=context.recipe.seed,
        work=work.scratch,
        launch=context.launch,
        progress=work.progress,
    )
    return report.to_dict()


def eval_inputs(context: Context) -> dict[str, Ref]:
    """What the eval stage reads besides: the optimised model, where the recipe makes one."""
    return {"aligned": context.before("align")} if context.recipe.preference else {}


def candidates(context: Context, inputs: dict[str, Ref]) -> dict[str, evaluation.Candidate]:
    """The optimised model to be judged, beside the chat model that it was."""
    if "aligned" not in inputs:
        return {}
    hub, training = context.hub, context.recipe.chat
    below = inputs["chat base"] if is_adapter(training) else inputs["chat"]
    chat, aligned = (
        hub.snapshot(inputs[name], allow_patterns=WEIGHTS) for name in ("chat", "aligned")
    )
    base = hub.snapshot(below, allow_patterns=WEIGHTS)
    return {"aligned": evaluation.Candidate(training, base, aligned, rivals={"chat": chat})}


def _block(context: Context) -> Preference:
    block = context.recipe.preference
    assert block is not None, "the stages of this file are there only with the block"
    return block


def _choice(context: Context, inputs: dict[str, Ref], work: Work) -> preference.Choose | None:
    """How questions are chosen: by a judge, where the block names one, batch by batch until there
    are enough.
    """
    block = _block(context).judging
    if block is None:
        return None

    def choose(
        questions: list[preference.Question], wanted: int
    ) -> tuple[list[preference.Question], dict[str, Any]]:
        chosen: list[preference.Question] = []
        looked = 0
        with questioner(context, "prefer", block, inputs, work, "context-v1") as judge:
            while (
                len(chosen) < wanted and looked < len(questions) and not judge.stats.get("stopped")
            ):
                batch = questions[looked : looked + max(block.in_flight, wanted - len(chosen))]
                looked += len(batch)
                about = [(f"{q.dialogue}/{q.turn}", turn_values(q.history, q.text)) for q in batch]
                said = judge.ask(about, yes_or_no, work.progress)
                chosen += [q for q in batch if said.get(f"{q.dialogue}/{q.turn}") == "yes"]
            return chosen[:wanted], {
                **judge.stats,
                "looked_at": looked,
                "chosen": min(len(chosen), wanted),
            }

    return choose
