"""8. reinforce, for recipes with such a block: GRPO of the chat model against the frozen asker.

It commits to a repo of its own, with the conversations and their rewards: the chat model stays as
it was, so the two can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubkit import reinforcement
from hubkit.conversation import fault
from hubkit.errors import SourceError, StageError
from hubkit.hub import Ref
from hubkit.pipeline.inputs import base_model, require
from hubkit.pipeline.stage import WEIGHTS, RunContext, Stage, StageDirs, cap_raised, parquet
from hubkit.pipeline.stage_cards import card
from hubkit.progress import Progress
from hubkit.recipe import Recipe, Reinforce, SeatConfig
from hubkit.reinforcement import (
    AskerLikelihood,
    AskerSeat,
    GRPOTask,
    Opening,
    RewardContext,
)
from hubkit.serving import ModelSpec, ServedModel, serve, spec_of, with_people_template
from hubkit.serving.budget import check_prices
from hubkit.serving.templates import with_own_template
from hubkit.training import Base
from hubkit.untrusted import JsonObject, object_in

OWN_ASKER = "asker"  # as a seat's repo: the asker that this recipe trained


def inputs(context: RunContext, progress: Progress) -> dict[str, Ref]:
    """The openings, the chat model and the askers (and their bases, below adapters), and judges."""
    recipe, block = context.recipe, reinforce_block(context.recipe)
    reinforcement.check(block.rewards)
    check_prices(block.budget_usd, {f"askers.{n}": seat for n, seat in block.askers.items()})
    refs = {
        "openings": context.before("corpus"),
        "asker": context.before("asker"),
        "chat": context.before("chat"),
    }
    if recipe.chat.gives_adapter:
        refs["base"] = base_model(context, recipe.chat, progress)
    if recipe.asker.gives_adapter:
        refs["asker base"] = base_model(context, recipe.asker, progress)
    for role, seat in _seats(block).items():
        if seat.repo != OWN_ASKER and (seat.speaks or not seat.is_elsewhere):
            refs[role] = require(context.hub, seat.repo or "", progress=progress)
    return refs


def build(context: RunContext, refs: dict[str, Ref], dirs: StageDirs) -> JsonObject:
    """The chat model, reinforced: the same adapter trained further, or a new one on the whole
    model; and the conversations that it held."""
    if context.launch is not None:
        raise StageError(
            "reinforce runs in one process: conversations end at different times, so processes "
            "would wait for each other; run it without --launch, with grpo.use_vllm where there "
            "is a GPU"
        )
    recipe, block, hub = context.recipe, reinforce_block(context.recipe), context.hub
    shards = parquet(hub, refs["openings"], "openings")
    held_out, training, passed_over = openings_of(recipe, shards)
    base = refs.get("base", refs["chat"])
    asker_base = refs.get("asker base", refs["asker"])
    provenance = {role: ref.to_dict() for role, ref in sorted(refs.items())}
    run = hashlib.sha256(json.dumps([recipe.name, provenance]).encode()).hexdigest()
    with _served(context, refs, dirs) as models:
        task = GRPOTask(
            block,
            hub.snapshot(base, allow_patterns=WEIGHTS),
            hub.snapshot(refs["chat"], allow_patterns=WEIGHTS),
            [AskerSeat(n, models[f"asker {n}"], seat) for n, seat in block.askers.items()],
            RewardContext(
                dirs.scratch / "rewards",
                run,
                _judges(block, refs, models),
                AskerLikelihood(
                    recipe.asker,
                    hub.snapshot(asker_base, allow_patterns=WEIGHTS),
                    hub.snapshot(refs["asker"], allow_patterns=WEIGHTS),
                ),
            ),
            training,
            held_out,
            dirs.scratch / "journal",
            provenance,
            recipe.chat.system,
            recipe.chat.template,
            recipe.chat.thinking or "off",
        )
        report = reinforcement.reinforce(
            task,
            shards,
            Base(task.base, base.repo_id, base.revision),
            dirs.out,
            seed=recipe.seed,
            work=dirs.scratch,
            progress=dirs.progress,
        )
    return {
        **report,
        "passed_over": passed_over,
        "stopped": object_in(report, "reinforcement").get("stopped"),
    }


def reinforce_block(recipe: Recipe) -> Reinforce:
    """The block, which recipes with this stage have."""
    assert recipe.reinforce is not None
    return recipe.reinforce


def openings_of(
    recipe: Recipe, shards: Sequence[Path]
) -> tuple[list[Opening], list[Opening], dict[str, int]]:
    """(held-out openings, those to train on, how many were passed over by reason).

    They are the last of the split, as rollouts begin with the first: the chat model was trained on
    dialogues over those. Raises `SourceError` where too few are usable."""
    import pyarrow.parquet as pq

    block = reinforce_block(recipe)
    column = recipe.asker.intent_column
    needs_turn = any(
        term.name == "next_turn" and term.args.get("of", "turn") == "turn" for term in block.rewards
    )
    usable: list[Opening] = []
    passed_over: dict[str, int] = {}
    opening_ids: set[str] = set()
    for row in (row for shard in shards for row in pq.read_table(shard).to_pylist()):
        turns = [m for m in row["messages"] if m["role"] != "system"]
        opening = _opening(row, turns, column)
        reason = _unusable(opening, turns, block, needs_turn, column)
        if reason is None and opening.id in opening_ids:
            reason = "repeated_id"
        if reason is not None:
            passed_over[reason] = passed_over.get(reason, 0) + 1
            continue
        opening_ids.add(opening.id)
        usable.append(opening)
    usable.reverse()
    count = block.held_out + block.openings
    if len(usable) <= block.held_out:
        raise SourceError(
            f"{len(usable)} openings can be used ({passed_over or 'none passed over'}), and "
            f"reinforce.held_out is {block.held_out}; raise corpus.openings, or lower it"
        )
    return usable[: block.held_out], usable[block.held_out : count], passed_over


def _opening(row: Mapping[str, Any], turns: Sequence[Any], column: str | None) -> Opening:
    following = turns[2]["content"] if len(turns) > 2 and turns[2]["role"] == "user" else None
    first = turns[0]["content"] if turns else ""
    return Opening(row["id"], first, str(row.get(column) or "") if column else "", following)


def _unusable(
    opening: Opening, turns: Sequence[Any], block: Reinforce, needs_turn: bool, column: str | None
) -> str | None:
    if reason := fault(turns[:1]):
        return reason
    if len(opening.text) > block.max_opening_chars:
        return "opening_too_long"
    if column and not opening.intent.strip():
        return "no_intent"
    return "no_next_turn" if needs_turn and not (opening.next_turn or "").strip() else None


def _seats(block: Reinforce) -> dict[str, SeatConfig]:
    """Every seat that something must answer in, by its role."""
    seats = {f"asker {name}": seat for name, seat in block.askers.items()}
    for number, term in enumerate(block.rewards):
        for judge_number, judge in enumerate(term.judges):
            seats[f"judge {number}.{judge_number}"] = judge.judge
    return seats


@contextmanager
def _served(
    context: RunContext, refs: dict[str, Ref], dirs: StageDirs
) -> Iterator[dict[str, ServedModel]]:
    """Askers and judges where they answer, by role. Those that share a base share an engine."""
    block = reinforce_block(context.recipe)
    specs: dict[str, ModelSpec] = {}
    for role, seat in _seats(block).items():
        is_own_asker = seat.repo == OWN_ASKER
        ref = refs["asker"] if is_own_asker else refs.get(role)
        base = refs.get("asker base") if is_own_asker else None
        key = f"reinforce.{'askers.' if role.startswith('asker') else ''}{role.split(' ')[-1]}"
        spec = spec_of(seat, ref, base, named_by=key)
        if is_own_asker:
            spec = with_own_template(spec, context.hub, refs["asker"])
        elif seat.speaks:
            spec = with_people_template(
                spec, context.hub, refs[role], end_token=seat.end_token, template=seat.template,
                named_by=key,
            )  # fmt: skip
        specs[role] = spec
    with serve(
        context.hub,
        specs,
        log_dir=dirs.scratch,
        progress=dirs.progress,
        slots=min(block.in_flight, 16),
        tokens=max(seat.context for seat in _seats(block).values()),
    ) as models:
        yield models


def _judges(
    block: Reinforce, refs: Mapping[str, Ref], models: Mapping[str, ServedModel]
) -> dict[int, list[tuple[ServedModel, str]]]:
    """The judges of each term, and who each is."""
    judges: dict[int, list[tuple[ServedModel, str]]] = {}
    for number, term in enumerate(block.rewards):
        for judge_number, judge in enumerate(term.judges):
            role = f"judge {number}.{judge_number}"
            ref = refs.get(role)
            where = " ".join([*sorted(judge.judge.endpoints), judge.judge.model])
            identity = f"{ref.repo_id}@{ref.revision}" if ref else where
            judges.setdefault(number, []).append((models[role], identity))
    return judges


def outgrown(recipe: Recipe, record: Mapping[str, Any]) -> bool:
    """Whether a cap ended the run of `record`, and `recipe` has raised or removed it since."""
    return cap_raised(record["report"].get("stopped") or None, record["block"], recipe.reinforce)


STAGE = Stage(
    "reinforce",
    "reinforced",
    "model",
    inputs,
    build,
    card("reinforced", "reinforce", "reinforced"),
    ("*.safetensors", "conversations/*"),
    needs="reinforce",
    outgrown=outgrown,
    trains="reinforce",
)
