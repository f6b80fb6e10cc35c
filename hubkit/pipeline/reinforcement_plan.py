"""What reinforcing a chat model would take, before any of it is done: samples, tokens on each side,
hours, memory, and the price of a step. Nothing is built, imported, committed or asked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from hubkit import reinforcement
from hubkit.cloud import hardware
from hubkit.errors import HubkitError
from hubkit.hub import Hub
from hubkit.pipeline.costs import assumptions
from hubkit.pipeline.runner import stages_until
from hubkit.pipeline.stages.reinforce import reinforce_block
from hubkit.pipeline.training_plan import base_shape
from hubkit.recipe import DEPLOY, Deploy, Recipe, Reinforce, SeatConfig
from hubkit.serving.budget import check_prices
from hubkit.training.config import grpo_config, model_options, require_settings
from hubkit.training.estimate import duration, memory_gib, peak_tflops
from hubkit.training.plan import (
    RunPlan,
    TemplatePlan,
    has_tokenizer,
    local_device,
    size_of,
    template_plan,
)
from hubkit.training.trial import check_training
from hubkit.untrusted import JsonObject

_WITHOUT_LIKELIHOOD = {"judges", "length", "format"}  # a plug-in may ask for it
_VERDICT_TOKENS = 150  # of a judge's reply, at most its limit


class Tokens(TypedDict):
    """Of a run: the policy's new ones, those trained on, and what askers and judges read and
    write."""

    policy: int
    trained: int
    asker: tuple[int, int]
    judges: tuple[int, int]


@dataclass
class ReinforcementPlan(RunPlan):
    """One planned run. Tokens are over all steps; of `asker` and `judge` they are (in, out).

    Args:
        base: The chat model's base.
        steps: Optimiser steps.
        conversations: Held in all, the held-out ones before and after included.
        conversations_per_step: Without those.
        openings: Held-out first turns that are trained on.
        tokens: By side: ``policy`` is what the chat model writes, ``trained`` what passes through
            it in training, ``asker`` and ``judges`` what they read and write.
        hours: By part, at `utilisation` of the device's peak; None where no peak is known.
        memory_gib: On the training device, with the asker where a reward may ask for its
            likelihood, and with a vLLM beside the trainer.
        usd_per_step: What a step costs: askers and judges at the prices that the recipe names, and
            by the hour where they are deployed.
        usd: The same of all conversations, the held-out ones included.
        template: How the chat model prints conversations.
        template_seen: False where its base's tokenizer is not at hand.
        notes: What the figures stand on.
        refusals: Why it would not run.
    """

    base: str
    steps: int
    conversations: int
    conversations_per_step: float
    openings: int
    tokens: Tokens
    device: str
    hours: dict[str, float] | None
    memory_gib: dict[str, float]
    usd_per_step: float
    usd: float
    config: JsonObject
    template: TemplatePlan | None = None
    template_seen: bool = True
    notes: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


def plan_reinforcement(
    recipe: Recipe, hub: Hub, *, device: str | None = None, device_gib: float | None = None
) -> ReinforcementPlan:
    """Plan the stage ``reinforce`` of `recipe`, on a device whose name holds `device`.

    Raises `StageError` for a recipe without such a block, `RepoMissingError` where the shape of the
    chat model's base is not known."""
    stages_until(recipe, "reinforce")
    block = reinforce_block(recipe)
    require_settings(recipe, ["reinforce"])
    config, config_notes = grpo_config(block, Path("unused"), seed=recipe.seed)
    refusals, notes = _refusals(block, config), []
    expected = block.expected
    if device is None and expected and expected.device:
        device, device_gib = expected.device, device_gib or expected.device_gib
        notes.append(f"planned for one {device}, as the recipe expects; --device plans for others")
    name = device or local_device()[0]
    here = name in local_device()[0]
    memory_there = device_gib or (None if device else local_device()[1])
    with tempfile.TemporaryDirectory() as scratch:
        base, shape_notes, shape_refusals = base_shape(hub, recipe.chat, Path(scratch))
        adapter = recipe.chat if recipe.chat.lora is not None else block
        size = size_of(base, adapter, reference="adapter" if adapter is recipe.chat else "base")
        findings = check_training(block, base, config, options=model_options(block), here=here)
        template = template_plan(recipe.chat, base, recipe.chat.seat, findings, adapted_by=adapter)
        is_tokenizer_known = has_tokenizer(base)
    steps = reinforcement.steps(config, block.openings) if not refusals else 0
    each = config.generation_batch_size / reinforcement.updates_per_generation(config)
    conversations = round(steps * each) + 2 * block.held_out
    tokens = _tokens(recipe, block, config, conversations)
    config.max_length = block.context
    memory = memory_gib(size, config, config.per_device_train_batch_size, 1, gpu=name != "cpu")
    memory |= _beside(recipe, hub, block, notes, gpu=name != "cpu")
    if config.use_vllm and config.vllm_mode == "colocate" and memory_there:
        memory["vllm"] = round(config.vllm_gpu_memory_utilization * memory_there, 3)
    memory["total"] = round(sum(gib for part, gib in memory.items() if part != "total"), 3)
    if memory_there and memory["total"] > memory_there:
        refusals.append(
            f"about {memory['total']:.0f} GiB are needed and {memory_there:.0f} are there; lower "
            "grpo.per_device_train_batch_size or reinforce.context, or set gradient_checkpointing"
        )
    hours = _hours(config, size, tokens, name)
    usd = _usd(block, tokens, conversations)
    usd += hours["total"] * _hourly_usd(block) if hours else 0.0
    return ReinforcementPlan(
        base=recipe.chat.base,
        steps=steps,
        conversations=conversations,
        conversations_per_step=each,
        openings=block.openings,
        tokens=tokens,
        device=name,
        hours=hours,
        memory_gib=memory,
        usd_per_step=usd / conversations * each if conversations else 0.0,
        usd=usd,
        config=dict(block.grpo),
        template=template,
        template_seen=is_tokenizer_known,
        notes=[*notes, *(config_notes if here else []), *shape_notes, *findings.notes,
               *_price_notes(block, hours)],
        refusals=[*refusals, *shape_refusals, *findings.refusals],
    )  # fmt: skip


def _beside(
    recipe: Recipe, hub: Hub, block: Reinforce, notes: list[str], *, gpu: bool
) -> dict[str, float]:
    """GiB of the asker, which a reward may ask how likely it finds a turn."""
    if {term.name for term in block.rewards} <= _WITHOUT_LIKELIHOOD:
        return {}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            asker = size_of(base_shape(hub, recipe.asker, Path(scratch))[0], recipe.asker)
    except HubkitError as error:
        notes.append(f"the asker's own memory is not in the plan: {error}")
        return {}
    return {"asker": round(asker.total * (2 if gpu else 4) / 2**30, 3)}


def _refusals(block: Reinforce, config: Any) -> list[str]:
    """What would stop the run before anything is asked."""
    refusals = []
    seats = {f"askers.{name}": seat for name, seat in block.askers.items()}
    checks: tuple[Callable[[], None], ...] = (
        lambda: reinforcement.check(block.rewards),
        lambda: reinforcement.check_batches(config, block.openings, block),
        lambda: check_prices(block.budget_usd, seats),
    )
    for check in checks:
        try:
            check()
        except HubkitError as error:
            refusals.append(str(error))
    return refusals


def _tokens(recipe: Recipe, block: Reinforce, config: Any, conversations: int) -> Tokens:
    """Tokens of `held` conversations in which neither side ends early, turns as long as assumed."""
    assumed = assumptions()["turn_tokens"]
    answer = min(config.max_completion_length, assumed["chat"])
    asker_limit = min(seat.reply_tokens for seat in block.askers.values())
    turn = min(asker_limit, assumed["asker"])
    asker_turns = block.answers - 1
    whole = min(block.context, block.answers * (answer + turn))
    read = sum((k + 1) * (answer + turn) for k in range(asker_turns))
    judges = [judge for term in block.rewards for judge in term.judges]
    verdict_tokens = sum(_verdict(judging.judge) for judging in judges)
    return {
        "policy": conversations * block.answers * answer,
        "trained": (conversations - 2 * block.held_out) * whole,
        "asker": (conversations * read, conversations * asker_turns * turn),
        "judges": (conversations * whole * len(judges), conversations * verdict_tokens),
    }


def _hours(config: Any, size: Any, tokens: Tokens, device: str) -> dict[str, float] | None:
    """Generation and training on the device; askers and judges answer elsewhere meanwhile."""
    peak = peak_tflops(device)
    if peak is None:
        return None
    shares = assumptions()["utilisation"]
    generate = 2 * size.total * tokens["policy"] / (peak * 1e12 * shares["decode"]) / 3600
    flops = size.flops_per_token(recompute=config.gradient_checkpointing)
    amounts = {"rows": 1, "tokens": tokens["trained"]}
    config.max_steps, config.num_train_epochs = -1, config.num_iterations
    train = duration(config, amounts, 1, flops, device, 1)["hours"] or 0.0
    return {"generation": generate, "training": train, "total": generate + train}


def _price(seat: SeatConfig, amounts: tuple[int, int]) -> float:
    tokens_in, tokens_out = amounts
    return (tokens_in * seat.usd_per_million_input + tokens_out * seat.usd_per_million_output) / 1e6


def _usd(block: Reinforce, tokens: Tokens, conversations: int) -> float:
    """At the seats' prices per token: each asker asks its share, each judge judges all."""
    judges = [judge.judge for term in block.rewards for judge in term.judges]
    of_askers = sum(_price(seat, tokens["asker"]) for seat in block.askers.values())
    of_judges = sum(
        _price(seat, (tokens["judges"][0] // len(judges), conversations * _verdict(seat)))
        for seat in judges
    )
    return of_askers / len(block.askers) + of_judges


def _verdict(judge: SeatConfig) -> int:
    """Tokens of one of its replies."""
    return min(judge.reply_tokens, _VERDICT_TOKENS)


def _deployed(block: Reinforce) -> list[Deploy]:
    """The terms of every seat that is served on hardware paid by the hour."""
    judges = [judge.judge for term in block.rewards for judge in term.judges]
    return [
        seat.deploy or Deploy()
        for seat in [*block.askers.values(), *judges]
        if DEPLOY in seat.endpoints
    ]


def _hourly_usd(block: Reinforce) -> float:
    """What the hardware of askers and judges costs an hour."""
    return sum(hardware(on.hardware).usd_per_hour * on.replicas for on in _deployed(block))


def _price_notes(block: Reinforce, hours: dict[str, float] | None) -> list[str]:
    notes = [
        "tokens assume that no conversation ends early, and turns as long as assumptions.yaml "
        "says; hours are the training device's: no wait for askers and judges is in them"
    ]
    if deployed := _deployed(block):
        names = ", ".join(str(hardware(on.hardware)) for on in deployed)
        part = "is in the price for these hours" if hours else "is not in the price"
        notes.append(
            f"hardware of askers and judges ({names}), {_hourly_usd(block):.2f} USD an hour, "
            f"{part}; the training device is not: `hubkit run RECIPE --on jobs --dry-run` prices it"
        )
    return notes
