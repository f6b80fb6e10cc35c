"""Driving a recipe's dialogues: the one way to do it, for the rollout stage, its estimate and
the baseline.

A run is known by what decides its dialogues (`rollouts.run_digest`), not by its size, its caps or
its pace: a larger one resumes from what a smaller one made. What is finished goes to a branch of
the dialogues' repo while the run lasts, and stands on ``main`` when the stage is done; so any
machine resumes from the Hub alone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hubkit.rollout as rollouts
from hubkit.conversation import Conversation
from hubkit.errors import RepoMissingError, SourceError, TemplateError
from hubkit.hub import Hub, Ref
from hubkit.hub.branch import Branch
from hubkit.hub.places import runs
from hubkit.pipeline.inputs import require
from hubkit.pipeline.stage import (
    PROVENANCE,
    RunContext,
    StageDirs,
    cap_raised,
    other_servers,
    parquet,
)
from hubkit.pipeline.stages.run_branch import claimed
from hubkit.progress import Lasting, Progress
from hubkit.recipe import EMBEDDED, Recipe, Rollout
from hubkit.recipe import digest as recipe_digest
from hubkit.serving import (
    ModelSpec,
    serve,
    spec_of,
    with_own_template,
    with_people_template,
)
from hubkit.serving.templates import client_template, proven_templates
from hubkit.untrusted import JsonObject, parse_json


def drive(
    context: RunContext,
    inputs: dict[str, Ref],
    dirs: StageDirs,
    block: Rollout,
    *,
    shared: bool = False,
) -> rollouts.RolloutReport:
    """Roll out `block` into ``dirs.out``; raises what `rollouts.run` raises.

    `inputs` are the commits of ``openings`` (a corpus), ``asker`` and ``chat``. `block` need not be
    the recipe's own: a smaller one, or one with another model in a seat, is driven in the same way.
    Its seats' ``repo`` say whether the recipe's asker sits there (``asker``) or the model that
    `inputs` names. The journal is in ``dirs.scratch``; a `shared` run has a folder of its own and a
    branch on the Hub, until `settle` removes both."""
    with _call(context, inputs, dirs, block, shared=shared) as call:
        return rollouts.run(
            block, call.openings, dirs.out, call.seats, call.storage.journal,
            watch=call.storage.watch, earlier_shards=call.storage.earlier_shards,
        )  # fmt: skip


def estimate(
    context: RunContext, inputs: dict[str, Ref], dirs: StageDirs, block: Rollout, *, dialogues: int
) -> rollouts.Estimate:
    """What a shared run will take and cost, from its first `dialogues` dialogues, which it need not
    ask for again.
    """
    with _call(context, inputs, dirs, block, shared=True) as call:
        return rollouts.estimate(
            block, call.openings, call.seats, call.storage.journal, dialogues=dialogues,
            watch=call.storage.watch, earlier_shards=call.storage.earlier_shards,
        )  # fmt: skip


def settle(context: RunContext, inputs: dict[str, Ref]) -> None:
    """Remove the folder and the branch of the recipe's run, which the stage's commit supersedes. A
    run that was made anew supersedes what there was before it too.
    """
    dialogues, is_anew = context.recipe.rollout.dialogues, context.supersedes is not None
    for digest in _digests(context, inputs, context.recipe.rollout):
        for name in dict.fromkeys((digest, _run_name(context, digest))):
            folder = run_folder(name)
            if not folder.is_dir():
                continue
            with rollouts.locked(folder):
                if not is_anew and rollouts.holds_more(folder / "journal", digest, dialogues):
                    continue  # a larger run was interrupted, and resumes from there
                _branch(context, name).delete()
                shutil.rmtree(folder / "journal", ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def outgrown(recipe: Recipe, record: Mapping[str, Any]) -> bool:
    """Whether a cap ended the rollout of `record`, and `recipe` has raised or removed it since."""
    return cap_raised(record["report"].get("stopped"), record["block"], recipe.rollout)


def run_folder(name: str) -> Path:
    """Where a run keeps its journal on this machine. `name` is its digest, unless it is made
    anew.
    """
    return runs() / f"dialogues-{name[:12]}"


def _branch_name(name: str) -> str:
    return f"rollout-{name[:12]}"


def _branch(context: RunContext, name: str) -> Branch:
    return Branch(context.hub, _repo_id(context), _branch_name(name), repo_type="dataset")


def _run_name(context: RunContext, digest: str) -> str:
    """What a run's folder and branch are named after. One that is made anew has others than the run
    that it supersedes, and the same ones when it is resumed.
    """
    if context.supersedes is None:
        return digest
    return recipe_digest([digest, context.supersedes])


def _repo_id(context: RunContext) -> str:
    return context.hub.qualify(context.recipe.repos.dialogues)


def provenance_of(inputs: Mapping[str, Ref], block: Rollout) -> JsonObject:
    """What a run is made from; a model without a repo as the recipe declares it."""
    facts: JsonObject = {
        role: inputs[role].to_dict() for role in ("openings", "asker", "chat") if role in inputs
    }
    if "chat" not in facts:
        facts["chat"] = {
            "repo_id": None, "revision": None, "declared": True, "name": block.chat.name,
            "license": block.chat.license,
        }  # fmt: skip
    return facts


def _digests(context: RunContext, inputs: dict[str, Ref], block: Rollout) -> tuple[str, str]:
    """The digest of the run, and the one that version 0.1 gave it."""
    facts = (block, context.recipe.seed, provenance_of(inputs, block))
    return rollouts.run_digest(*facts), rollouts.run_digest_of_0_1(*facts)


def _digest(context: RunContext, inputs: dict[str, Ref], block: Rollout) -> str:
    """The digest under which the run was begun, on this machine or on the Hub."""
    digest, earlier = _digests(context, inputs, block)
    if context.supersedes is not None:
        return digest
    if run_folder(earlier).is_dir():
        return earlier
    return earlier if _branch(context, earlier).exists() else digest


@dataclass(frozen=True)
class _Storage:
    """Where a run keeps what it has, who is told of it, and what a lost machine left."""

    journal: rollouts.JournalSpec
    watch: rollouts.Watch
    earlier_shards: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Call:
    """What a rollout is called with."""

    openings: Iterator[Conversation]
    seats: rollouts.Seats
    storage: _Storage


@contextmanager
def _call(
    context: RunContext, inputs: dict[str, Ref], dirs: StageDirs, block: Rollout, *, shared: bool
) -> Iterator[_Call]:
    """What a rollout is called with, while its seats are served and the run is this process's."""
    intent_column = context.recipe.asker.intent_column if block.asker.repo == "asker" else None
    shards = parquet(context.hub, inputs["openings"], "openings")
    openings = _openings(shards, intent_column, block.dialogues)
    with (
        _run_storage(context, inputs, dirs, block, shared=shared) as storage,
        serve_seats(context, inputs, dirs, block) as seats,
    ):
        yield _Call(openings, seats, storage)


def seat_model(context: RunContext, repo: str, progress: Progress) -> Ref:
    """A seat's `repo` at a commit: what this recipe trained (``asker``), or a repo on the Hub."""
    if repo == "asker":
        return context.before("asker")
    return require(context.hub, repo, progress=progress)


@contextmanager
def serve_seats(
    context: RunContext, inputs: dict[str, Ref], dirs: StageDirs, block: Rollout
) -> Iterator[rollouts.Seats]:
    """Both seats where they answer, for the length of the block. Seats that share a
    base share one engine: its weights once in memory, each adapter at its own address.
    """
    recipe = context.recipe
    base = None
    is_own_adapter = block.asker.repo == "asker" and recipe.asker.gives_adapter
    if is_own_adapter and (EMBEDDED in block.asker.endpoints or block.asker.engine_kind):
        base = require(context.hub, recipe.asker.base, revision=recipe.asker.base_revision)
    trained = {"asker", context.hub.qualify(recipe.repos.chat)}
    specs: dict[str, ModelSpec] = {}
    marks: dict[str, tuple[str, ...]] = {}
    if base is not None:
        with suppress(TemplateError, SourceError):  # its training said why
            trained_by = proven_templates(context.hub, base, template=recipe.asker.template)
            marks["asker"] = trained_by.turn_marks if trained_by else ()
    for seat in ("asker", "chat"):
        config, ref = getattr(block, seat), inputs.get(seat)
        spec = spec_of(config, ref, base if seat == "asker" else None, named_by=f"rollout.{seat}")
        if ref is not None and trained & {config.repo, ref.repo_id}:
            spec = with_own_template(spec, context.hub, ref)
        elif ref is not None and config.speaks:
            spec = with_people_template(
                spec, context.hub, ref, end_token=config.end_token, template=config.template,
                named_by=f"rollout.{seat}",
            )  # fmt: skip
        elif ref is not None and (spec.needs_serving or config.template):
            proven = proven_templates(
                context.hub, ref, template=config.template, named_by=f"rollout.{seat}"
            )
            marks[seat] = proven.turn_marks if proven else ()
            if proven and (config.template or proven.base is None):
                spec = replace(spec, template=client_template(proven))
        specs[seat] = spec
    with serve(
        context.hub,
        specs,
        log_dir=dirs.scratch,
        progress=dirs.progress,
        slots=block.in_flight,
        tokens=max(block.asker.context, block.chat.context),
        slots_per_model=True,
    ) as models:
        yield rollouts.Seats(
            replace(models["asker"], turn_marks=marks.get("asker", ())),
            replace(models["chat"], turn_marks=marks.get("chat", ())),
        )


def _openings(
    shards: list[Path], intent_column: str | None, dialogues: int
) -> Iterator[Conversation]:
    """Held-out conversations that may open dialogues, in the order of the shards, with what their
    human wanted. Where there are fewer of them than `dialogues`, they come again, for other seeds.
    """
    import pyarrow.parquet as pq

    count = sum(pq.read_metadata(shard).num_rows for shard in shards)
    # Some may be unusable, so there is more than enough; a rollout reads what it needs.
    passes = 1 if count >= dialogues or not count else 2 * math.ceil(dialogues / count)
    for shard in shards * passes:
        for row in pq.read_table(shard).to_pylist():
            meta = {"intent": row.get(intent_column) or ""} if intent_column else {}
            yield Conversation(row["id"], row["messages"], row["source"], meta)


@contextmanager
def _run_storage(
    context: RunContext, inputs: dict[str, Ref], dirs: StageDirs, block: Rollout, *, shared: bool
) -> Iterator[_Storage]:
    """Where the run keeps what it has: on this machine, and when it is shared, on the Hub."""
    seed, provenance = context.recipe.seed, provenance_of(inputs, block)
    if not shared:
        journal = rollouts.JournalSpec(dirs.scratch / "journal", seed, provenance)
        yield _Storage(journal, rollouts.Watch(dirs.progress))
        return
    digests = _digests(context, inputs, block)
    name = _run_name(context, _digest(context, inputs, block))
    folder, repo_id = run_folder(name), _repo_id(context)
    lease_s = block.lease_minutes * 60
    with claimed(context.hub, repo_id, _branch_name(name), folder, lease_s=lease_s) as branch:
        earlier = [] if context.supersedes is not None else _superseded(context, digests, dirs)
        yield _Storage(
            rollouts.JournalSpec(folder / "journal", seed, provenance),
            rollouts.Watch(dirs.progress, branch.check, branch.put_shard),
            (*earlier, *branch.shards()),
        )


def _superseded(context: RunContext, digests: Sequence[str], dirs: StageDirs) -> list[Path]:
    """The shards of the largest commit on ``main`` that holds this run, whatever its size and caps;
    often none. Of those of one size, the newest. Whose answers they are is told where the recipe
    names other addresses now.
    """
    hub, repo_id = context.hub, _repo_id(context)
    with hub.translated(f"reading the history of dataset {repo_id}"):
        commits = hub.api.list_repo_commits(repo_id, repo_type="dataset")
        revisions = [c.commit_id for c in commits if "[rollout:" in c.title]
    records: dict[str, dict[str, Any]] = {}
    for revision in revisions:
        record = _record_of(hub, Ref(repo_id, "dataset", revision))
        if record is None or record["report"]["digest"] not in digests:
            continue
        records[revision] = record
        if "supersedes" in record:
            break  # what is older was made anew
    if not records:
        return []
    largest = max(records, key=lambda revision: records[revision]["report"]["dialogues"])
    record = records[largest]
    if servers := other_servers(record.get("block"), context.recipe.read_by("rollout")):
        count = record["report"]["dialogues"]
        note = f"{count} dialogues have the answers of {servers}; --again rollout asks anew"
        dirs.progress(0, None, Lasting(note))
    folder = dirs.scratch / "earlier"
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for path in parquet(hub, Ref(repo_id, "dataset", largest), "raw"):
        # No name of a shard that is made here.
        copies.append(folder / f"{path.stem}-{largest[:8]}.parquet")
        shutil.copyfile(path, copies[-1])
    return copies


def _record_of(hub: Hub, ref: Ref) -> dict[str, Any] | None:
    """What a rollout's commit says of itself; None where it does not say which run it is."""
    try:
        record = parse_json(hub.read(ref, f"{PROVENANCE}/rollout.json"))
        report = record["report"]
        report["digest"], report["dialogues"] = str(report["digest"]), int(report["dialogues"])
    except (RepoMissingError, ValueError, KeyError, TypeError):
        return None
    return dict(record)
