"""Two stages behind the chat model, for recipes with a preference block: pairs, and direct preference optimisation.

``prefer`` makes a preference dataset out of the curated dialogues, ``align`` goes on training the chat model on it and
commits to a repo of its own: the chat model stays as it was, so that the two can be held against each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hubkit import endpoint, evals, preference, train
from hubkit.hub import Ref, environment
from hubkit.hub.places import cache
from hubkit.pipeline.imports import require
from hubkit.pipeline.seats import EMBEDDED
from hubkit.pipeline.stage import WEIGHTS, Context, Work, parquet
from hubkit.progress import Progress
from hubkit.publish.metadata import is_adapter
from hubkit.recipe import Preference

OURS = "chat"  # as `preference.chat.repo`: the chat model that this recipe trained


def prefer_inputs(context: Context, progress: Progress) -> dict[str, Ref]:
    """The curated dialogues, and the model that answers without their context (and its base, below an adapter)."""
    recipe, answers = context.recipe, _block(context).chat.repo
    inputs = {"dialogues": context.before("curate")}
    if answers != OURS:
        return inputs | {"answers": require(context.hub, answers, progress=progress)}
    if is_adapter(recipe.chat):
        inputs["base"] = require(context.hub, recipe.chat.base, revision=recipe.chat.base_revision, progress=progress)
    return inputs | {"answers": context.before("chat")}


def build_prefer(context: Context, inputs: dict[str, Ref], work: Work) -> dict[str, Any]:
    """The preference dataset; every reply is on disk before it counts, so a killed run asks for nothing twice."""
    dialogues = parquet(context.hub, inputs["dialogues"], "train")
    with _served(context, inputs, work) as urls:
        report = preference.build(
            _block(context),
            dialogues,
            work.out,
            chat_urls=urls,
            journal=work.scratch / "journal",
            seed=context.recipe.seed,
            provenance={role: ref.to_dict() for role, ref in inputs.items()},
            progress=work.progress,
        )
    return report.to_dict()


def align_inputs(context: Context, progress: Progress) -> dict[str, Ref]:
    """The pairs and the chat model (and its base, below an adapter)."""
    training = context.recipe.chat
    inputs = {"preference": context.before("prefer"), "chat": context.before("chat")}
    if is_adapter(training):
        inputs["base"] = require(context.hub, training.base, revision=training.base_revision, progress=progress)
    return inputs


def build_align(context: Context, inputs: dict[str, Ref], work: Work) -> dict[str, Any]:
    """The chat model, optimised on the pairs: the same adapter trained on, or what stands on the whole model."""
    below = inputs.get("base", inputs["chat"])
    report = train.prefer(
        _block(context),
        parquet(context.hub, inputs["preference"], "train"),
        context.hub.snapshot(below, allow_patterns=WEIGHTS),
        context.hub.snapshot(inputs["chat"], allow_patterns=WEIGHTS),
        work.out,
        base_repo_id=below.repo_id,
        base_revision=below.revision,
        system=context.recipe.chat.system,
        seed=context.recipe.seed,
        work=work.scratch,
        launch=context.launch,
        progress=work.progress,
    )
    return report.to_dict()


def eval_inputs(context: Context) -> dict[str, Ref]:
    """What the eval stage reads besides: the optimised model, where the recipe makes one."""
    return {"aligned": context.before("align")} if context.recipe.preference else {}


def candidates(context: Context, inputs: dict[str, Ref]) -> dict[str, evals.Candidate]:
    """The optimised model to be judged, beside the chat model that it was."""
    if "aligned" not in inputs:
        return {}
    hub, training = context.hub, context.recipe.chat
    below = inputs["chat base"] if is_adapter(training) else inputs["chat"]
    chat, aligned = (hub.snapshot(inputs[name], allow_patterns=WEIGHTS) for name in ("chat", "aligned"))
    base = hub.snapshot(below, allow_patterns=WEIGHTS)
    return {"aligned": evals.Candidate(training, base, aligned, rivals={"chat": chat})}


def _block(context: Context) -> Preference:
    block = context.recipe.preference
    assert block is not None, "the stages of this file are there only with the block"
    return block


@contextmanager
def _served(context: Context, inputs: dict[str, Ref], work: Work) -> Iterator[list[str]]:
    """The addresses of the model that answers, an embedded engine started for the length of the block."""
    block, answers = _block(context), inputs["answers"]
    if EMBEDDED not in block.chat.endpoints:
        yield list(block.chat.endpoints)
        return
    below = inputs.get("base", answers)
    name = "base" if below == answers else "chat"
    work.progress(0, None, f"starting the engine: {answers}")
    with endpoint.start_engine(
        _at(below),
        {} if below == answers else {name: _at(answers)},
        listen=[name],
        env=environment(),
        log_path=work.scratch / "engine-answers.log",
        cache_dir=cache("engine"),
        context=block.chat.context,
        slots=block.in_flight,
    ) as engine:
        yield [engine.addresses[name]]


def _at(ref: Ref) -> str:
    return f"{ref.repo_id}@{ref.revision}"
