"""Who answers in the seats of a rollout, how it is prompted and what computes it: known, or
refused, before anything is served.

A model that hubkit serves is prompted by its base's own chat template, which must be proven; one
that answers at an address is prompted as that server does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hubkit.chat_templates import SeatTemplates
from hubkit.conversation import Seat
from hubkit.errors import HubkitError
from hubkit.hub import Hub, Ref
from hubkit.hub.adapters import base_of
from hubkit.hub.places import cache
from hubkit.pipeline.inputs import require
from hubkit.pipeline.runner import Planned, WouldImport, refuse_import
from hubkit.recipe import DEPLOY, Recipe, SeatConfig
from hubkit.serving.engines.choice import EngineChoice, engine_for
from hubkit.serving.engines.launcher import EMBEDDED, EngineOptions, choose
from hubkit.serving.templates import SMALL_FILES, proven_templates
from hubkit.training.plan import sample_row
from hubkit.untrusted import JsonObject

_PUBLISHED = "the one that it was trained with"


@dataclass
class SeatPlan:
    """Who will answer in a seat.

    Attributes:
        seat: ``asker`` or ``chat``.
        model: Its repo, or the addresses where it answers.
        template: Where its chat template comes from and how that was proven.
        row: A conversation as it is printed, what the seat writes between « and »; None: not known.
        engine: What computes it.
        reason: Why it is that engine.
        refusals: Why it could not answer."""

    seat: str
    model: str
    template: str = "not known before the model is at hand"
    row: str | None = None
    engine: str = "not known"
    reason: str = "the model is not at hand"
    refusals: list[str] = field(default_factory=list)

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return asdict(self)


def plan_seats(recipe: Recipe, hub: Hub, planned: Sequence[Planned] = ()) -> list[SeatPlan]:
    """Plan both seats of the rollout of `recipe`: nothing is imported, built or served.

    Args:
        recipe: The recipe.
        hub: Where its models are; their small files are downloaded.
        planned: What a run would do, as `hubkit.pipeline.plan` says; no seats where the rollout is
            done, or not part of it.
    """
    if not any(p.stage == "rollout" and p.state == "to run" for p in planned):
        return []
    block = recipe.rollout
    return [_asker(recipe, hub, block.asker), _seat(recipe, hub, block.chat, "chat")]


def _asker(recipe: Recipe, hub: Hub, config: SeatConfig) -> SeatPlan:
    """The model that the recipe trains is computed as its base is, with its adapter."""
    if config.repo != "asker" or config.is_elsewhere:
        return _seat(recipe, hub, config, "asker")
    model = hub.qualify(recipe.repos.asker)
    plan = SeatPlan("asker", model, _PUBLISHED)
    block = recipe.asker
    try:
        _note_server(plan, config)
        base = require(hub, block.base, revision=block.base_revision, progress=refuse_import)
        lora = None if block.merge_adapter else block.lora
        _note_engine(plan, hub, config, base, adapter=lora)
    except WouldImport:
        pass
    except HubkitError as error:
        plan.refusals.append(f"rollout.asker: {error}")
    return plan


def _seat(recipe: Recipe, hub: Hub, config: SeatConfig, seat: str) -> SeatPlan:
    if config.repo is None or config.is_elsewhere:
        where = ", ".join(config.endpoints)
        name = config.repo or config.name or config.model
        return SeatPlan(
            seat, name, "that of its server", None, config.profile, f"it answers at {where}"
        )
    plan = SeatPlan(seat, config.repo)
    prints: Seat = "user" if config.speaks else "assistant"
    try:
        _note_server(plan, config)
        ref = require(hub, config.repo, progress=refuse_import)
        is_trained = ref.repo_id == hub.qualify(recipe.repos.chat)
        templates = None
        if not is_trained:
            templates = proven_templates(
                hub, ref, template=config.template, named_by=f"rollout.{seat}", seat=prints
            )
        plan.template = _description(templates, prints, is_trained=is_trained)
        plan.row = sample_row(templates, config.system, prints) if templates else None
        base = base_of(hub, ref)
        _note_engine(plan, hub, config, base or ref, adapter=ref if base else None)
    except WouldImport:
        plan.template = (
            f"that of {config.repo} was not looked at: the model is not at hand. It is proven, or "
            "refused, before anything is served"
        )
    except HubkitError as error:
        plan.refusals.append(str(error))
    return plan


def _description(templates: SeatTemplates | None, prints: Seat, *, is_trained: bool) -> str:
    if templates:
        return templates.describe(prints)
    return _PUBLISHED if is_trained else "the one in its GGUF file"


def _note_engine(
    plan: SeatPlan, hub: Hub, config: SeatConfig, base: Ref, *, adapter: Any = None
) -> None:
    if not _note_server(plan, config):
        plan.engine, plan.reason = engine_of(hub, base, adapter=adapter, context=config.context)


def _note_server(plan: SeatPlan, config: SeatConfig) -> bool:
    """Note the server that is not the embedded one, where the recipe wants one; its model need not
    be at hand.

    Raises:
        EngineError: It is not installed."""
    if DEPLOY in config.endpoints:
        terms = config.deploy
        plan.engine, plan.reason = terms.engine if terms else "tgi", "on an Inference Endpoint"
        return True
    if not config.engine_kind:
        return False
    command = tuple(config.engine.command) if config.engine else ()
    engine, reason = choose(config.engine_kind, EngineOptions(command))
    if engine == EMBEDDED:
        return False
    plan.engine, plan.reason = engine, reason
    return True


def engine_of(
    hub: Hub, base: Ref, *, adapter: Ref | JsonObject | None = None, context: int | None = None
) -> EngineChoice:
    """Which engine the embedded server takes for a model on `hub`, and why.

    Args:
        hub: Where it is; only its small files are downloaded.
        base: The model's commit, or its adapter's base.
        adapter: The adapter's commit, or the ``lora`` block of one that is yet to be trained.
        context: Tokens per sequence.

    Raises:
        EngineError: There is no readable configuration."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = []
        if isinstance(adapter, Ref):
            folders.append(hub.snapshot(adapter, allow_patterns=SMALL_FILES))
        elif adapter is not None:
            folders.append(Path(scratch))
            settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, **adapter}
            (Path(scratch) / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
        with hub.translated(f"listing {base}"):
            files = hub.api.list_repo_files(base.repo_id, revision=base.revision)
        if "config.json" not in files and any(name.endswith(".gguf") for name in files):
            return EngineChoice("llamacpp", "a GGUF file is llama.cpp's own format")
        folder = hub.snapshot(base, allow_patterns=SMALL_FILES)
        return engine_for(folder, folders, context=context, cache_dir=cache("engine"))
