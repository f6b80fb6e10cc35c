"""What training one model of a recipe would take, before any of it is done: nothing is built,
imported or committed.

The data is a sample of what the stage before committed, or what the recipe expects; the base's
shape is read off the Hub, or off the table that ships."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hubkit import training
from hubkit.data.wheel_assets import IMPORTS
from hubkit.errors import HubkitError, HubUnreachableError, RepoMissingError
from hubkit.hub import Hub
from hubkit.pipeline.costs import assumptions
from hubkit.pipeline.runner import Planned, WouldImport, refuse_import, stages_until
from hubkit.pipeline.stage import WEIGHTS, RunContext, parquet
from hubkit.pipeline.stage_table import stages_of
from hubkit.pipeline.stages.people_preference import preference_of
from hubkit.recipe import Expected, Preference, Recipe, Training
from hubkit.tokenization import likely_tokens

_BEFORE = {"asker": "corpus", "chat": "curate", "align": "prefer"}


def plan_training(
    recipe: Recipe,
    hub: Hub,
    stage: str,
    *,
    launch: training.Launch | None = None,
    device: str | None = None,
    device_gib: float | None = None,
) -> training.TrainPlan:
    """Plan the stage ``asker``, ``chat`` or ``align`` of `recipe`, as `hubkit.training.plan` does.

    Where neither `launch` nor `device` is given and this machine has no GPU, it is planned for the
    devices that the recipe expects. Raises `RepoMissingError` when the base is neither on the Hub
    nor in the table that ships, and `StageError` for a stage that the recipe does not have."""
    stages_until(recipe, stage)
    seat = recipe.asker if stage == "asker" else recipe.chat
    block = recipe.preference if stage == "align" and recipe.preference else seat
    training.require_settings(recipe, ["preference" if stage == "align" else stage])
    with tempfile.TemporaryDirectory() as scratch:
        base, notes, refusals = base_shape(hub, seat, Path(scratch))
        data = _data(recipe, hub, stage) if (base / "tokenizer.json").exists() else []
        if not data:
            notes.append(_without_data(block, recipe, stage))
        if launch is None and device is None:
            launch, device, device_gib = _elsewhere(block, device_gib, notes)
        training_plan = training.plan(
            block,
            data,
            training.Base(base, seat.base),
            seed=recipe.seed,
            chat=recipe.chat,
            launch=launch,
            device=device,
            device_gib=device_gib,
        )
        if stage == "asker" and recipe.asker.preference:
            _add_preference(training_plan, recipe, base, launch, device, device_gib)
    training_plan.notes = [*notes, *training_plan.notes]
    training_plan.refusals = [*refusals, *training_plan.refusals]
    return training_plan


def _add_preference(
    plan: training.TrainPlan,
    recipe: Recipe,
    base: Path,
    launch: training.Launch | None,
    device: str | None,
    device_gib: float | None,
) -> None:
    """Add the preference training of `asker.preference` to the asker's `plan`: its hours, the
    larger memory, and why it would not run."""
    pairs, asker = recipe.asker.preference, recipe.asker
    assert pairs is not None
    shares, turns = assumptions()["utilisation"], assumptions()["turn_tokens"]
    turn = min(pairs.sampling.max_tokens or recipe.rollout.asker.context, turns["asker"])
    each = 2 * (likely_tokens(pairs.context_chars) + turn)
    block = preference_of(asker, pairs).model_copy(
        update={"expected": Expected(conversations=pairs.contexts, tokens=each)}
    )
    dpo = training.plan(
        block, [], training.Base(base, asker.base), seed=recipe.seed, chat=asker, launch=launch,
        device=device, device_gib=device_gib,
    )  # fmt: skip
    sampled = pairs.contexts * pairs.samples
    note = f"asker.preference: {sampled:,} turns sampled, then at most {pairs.contexts:,} pairs"
    if plan.hours is not None and dpo.hours is not None and plan.peak_tflops:
        flops = 2 * plan.parameters * sampled * turn
        hours = dpo.hours + flops / (plan.peak_tflops * 1e12 * shares["decode"]) / 3600
        plan.hours += hours
        note += f", {hours:.2f} of the hours"
    plan.notes.append(note + "; scorecards before and after are not in the hours")
    plan.memory_gib = max(plan.memory_gib, dpo.memory_gib, key=lambda parts: parts["total"])
    plan.refusals += [f"asker.preference: {reason}" for reason in dpo.refusals]


def plan_trainings(
    recipe: Recipe, hub: Hub, planned: Sequence[Planned]
) -> dict[str, training.TrainPlan | str]:
    """Plan every training that a run would do.

    Args:
        recipe: The recipe.
        hub: Where its inputs are.
        planned: What the run would do, as `hubkit.pipeline.plan` says.

    Returns:
        Stage to its plan, or to the sentence that says why it cannot be planned.
    """
    plans: dict[str, training.TrainPlan | str] = {}
    for stage in planned:
        if stage.stage in _BEFORE and stage.state == "to run":
            try:
                plans[stage.stage] = plan_training(recipe, hub, stage.stage)
            except HubkitError as error:
                plans[stage.stage] = str(error)
    return plans


def base_shape(hub: Hub, block: Training, scratch: Path) -> tuple[Path, list[str], list[str]]:
    """A folder with the base's configuration (and tokenizer, off the Hub), notes, and refusals."""
    refusals: list[str] = []
    try:
        with hub.translated(f"looking up {block.base}"):
            info = hub.api.model_info(block.base, revision=block.base_revision)
        ref = hub.resolve(block.base, revision=block.base_revision)
        try:
            return hub.snapshot(ref, allow_patterns=WEIGHTS[1:]), [], []
        except RepoMissingError:
            if not info.gated:
                raise
            refusals.append(_gated(hub, block))
        where = f"{hub.url} does not show it"
    except RepoMissingError:
        made_here = hub.embedded and block.base in IMPORTS
        where = f"{hub.url} has none; " + (
            "the first run imports it"
            if made_here
            else "push it there, or set HUBKIT_HUB, before you train"
        )
    except HubUnreachableError:
        where = f"{hub.url} does not answer"
    if not training.write_shape(block.base, scratch):
        why = refusals[0] if refusals else where
        raise RepoMissingError(f"the shape of base {block.base} is not known: {why}", status=404)
    return (
        scratch,
        [f"the shape of {block.base} is taken from the table that ships: {where}"],
        refusals,
    )


def _gated(hub: Hub, block: Training) -> str:
    page = f"{hub.url}/{block.base}"
    if hub.token is None:
        return (
            f"base {block.base} is gated and there is no token: "
            f"accept its terms at {page}, then `hf auth login`"
        )
    return f"base {block.base} is gated and this token was not let in: ask for access at {page}"


def _data(recipe: Recipe, hub: Hub, name: str) -> list[Path]:
    """The training split that the stage before has committed for these values, or nothing."""
    context = RunContext(recipe, hub)
    for stage in stages_of(recipe):
        try:
            result = stage.find(context, stage.inputs(context, refuse_import))
        except (HubkitError, WouldImport):
            return []
        if result is None:
            return []
        context.commits[stage.name] = result.ref
        if stage.name == _BEFORE[name]:
            return parquet(hub, result.ref, "train")
    return []


def _without_data(block: Training | Preference, recipe: Recipe, stage: str) -> str:
    missing = (
        f"stage {_BEFORE[stage]!r} of recipe {recipe.name!r} has not run, "
        "or the base's tokenizer is not at hand"
    )
    key = "preference" if stage == "align" else stage
    if block.expected is None:
        return (
            f"{missing}: tokens and hours are not known, and {key}.expected does not estimate them"
        )
    return f"{missing}: rows and tokens are what {key}.expected says"


def _elsewhere(
    block: Training | Preference, device_gib: float | None, notes: list[str]
) -> tuple[training.Launch | None, str | None, float | None]:
    """The devices that the recipe expects, where this machine has no GPU."""
    import torch

    expected = block.expected
    if expected is None or expected.device is None or torch.cuda.is_available():
        return None, None, device_gib
    memory = device_gib or expected.device_gib
    notes.append(
        f"planned for {expected.processes} x {expected.device}"
        + (f" of {memory:g} GiB" if memory else "")
        + ", as the recipe expects; --launch, --processes and --device plan for others"
    )
    launch = training.Launch(expected.launch, expected.processes) if expected.launch else None
    return launch, expected.device, memory
