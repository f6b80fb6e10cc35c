"""Driving a recipe's dialogues: the one way to do it, for the rollout stage, its estimate and
rollouts beside it.

A run is known by what decides its dialogues (`rollout.run_digest`), not by its size, its caps or
its pace: a larger one goes on from what a smaller one made. What is finished goes to a branch of
the dialogues' repo while the run lasts, and stands on ``main`` when the stage is done; so any
machine goes on from the Hub alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubkit import rollout
from hubkit.errors import RepoMissingError
from hubkit.hub import Hub, Ref
from hubkit.hub.branch import Branch
from hubkit.hub.places import runs
from hubkit.pipeline import seats
from hubkit.pipeline.deployed import as_deployed, templates
from hubkit.pipeline.stage import PROVENANCE, Context, Work, cap_raised, parquet
from hubkit.pipeline.stages.run_branch import claimed
from hubkit.recipe import Recipe, Rollout


def drive(
    context: Context, inputs: dict[str, Ref], work: Work, block: Rollout, *, shared: bool = False
) -> rollout.RolloutReport:
    """Roll out `block` into ``work.out``; raises what `rollout.run` raises.

    `inputs` are the commits of ``openings`` (a corpus), ``asker`` and ``chat``. `block` need not be
    the recipe's own: a smaller one, or one with another model in a seat, is driven in the same way.
    Its seats' ``repo`` say whether the recipe's asker sits there (``asker``) or the model that
    `inputs` names. The journal is in ``work.scratch``; a `shared` run has a folder of its own and a
    branch on the Hub, until `settle` removes both."""
    block = as_deployed(context, inputs, block)
    with _call(context, inputs, work, block, shared=shared) as (openings, options):
        return rollout.run(block, openings, work.out, **options)


def estimate(
    context: Context, inputs: dict[str, Ref], work: Work, block: Rollout, *, dialogues: int
) -> rollout.Estimate:
    """What a shared run will take and cost, from its first `dialogues` dialogues, which it need not
    ask for again.
    """
    block = as_deployed(context, inputs, block)
    with _call(context, inputs, work, block, shared=True) as (openings, options):
        return rollout.estimate(block, openings, dialogues=dialogues, **options)


def settle(context: Context, inputs: dict[str, Ref]) -> None:
    """Remove the folder and the branch of the recipe's run, which the stage's commit supersedes."""
    for digest in _digests(context, inputs, as_deployed(context, inputs, context.recipe.rollout)):
        folder = run_folder(digest)
        if not folder.is_dir():
            continue
        with rollout.locked(folder):
            if rollout.holds_more(folder / "journal", digest, context.recipe.rollout.dialogues):
                continue  # a larger run was interrupted, and resumes from there
            Branch(
                context.hub, _repo_id(context), _branch_name(digest), repo_type="dataset"
            ).delete()
            shutil.rmtree(folder / "journal", ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def outgrown(recipe: Recipe, record: Mapping[str, Any]) -> bool:
    """Whether a cap ended the rollout of `record`, and `recipe` has raised or removed it since."""
    return cap_raised(record["report"].get("stopped"), record["block"], recipe.rollout)


def run_folder(digest: str) -> Path:
    """Where a run keeps its journal on this machine."""
    return runs() / f"dialogues-{digest[:12]}"


def _branch_name(digest: str) -> str:
    return f"rollout-{digest[:12]}"


def _repo_id(context: Context) -> str:
    return context.hub.qualify(context.recipe.repos.dialogues)


def provenance_of(inputs: Mapping[str, Ref], block: Rollout) -> dict[str, Any]:
    """What a run is made from; a model without a repo as the recipe declares it."""
    facts: dict[str, Any] = {
        role: inputs[role].to_dict() for role in ("openings", "asker", "chat") if role in inputs
    }
    if "chat" not in facts:
        facts["chat"] = {
            "repo_id": None, "revision": None, "declared": True, "name": block.chat.name,
            "license": block.chat.license,
        }  # fmt: skip
    return facts


def _digests(context: Context, inputs: dict[str, Ref], block: Rollout) -> tuple[str, str]:
    """The digest of the run, and the one that version 0.1 gave it."""
    facts = (block, context.recipe.seed, provenance_of(inputs, block))
    return rollout.run_digest(*facts), rollout.run_digest_of_0_1(*facts)


def _digest(context: Context, inputs: dict[str, Ref], block: Rollout) -> str:
    """The digest under which the run was begun, on this machine or on the Hub."""
    digest, earlier = _digests(context, inputs, block)
    if run_folder(earlier).is_dir():
        return earlier
    branch = Branch(context.hub, _repo_id(context), _branch_name(earlier), repo_type="dataset")
    return earlier if branch.exists() else digest


@contextmanager
def _call(
    context: Context, inputs: dict[str, Ref], work: Work, block: Rollout, *, shared: bool
) -> Iterator[tuple[Iterator[Any], dict[str, Any]]]:
    """What a rollout is called with: its openings and its options, while its seats are served and
    the run is ours.
    """
    wants = context.recipe.asker.intent_column if block.asker.repo == "asker" else None
    openings = seats.openings(parquet(context.hub, inputs["openings"], "openings"), wants)
    options: dict[str, Any] = {
        "seed": context.recipe.seed,
        "provenance": provenance_of(inputs, block),
        "progress": work.progress,
        **templates(context, inputs, block),
    }
    with (
        _kept(context, inputs, work, block, shared=shared) as where,
        seats.served(context, inputs, work, block) as (asker_urls, chat_urls),
    ):
        yield openings, {**options, **where, "asker_urls": asker_urls, "chat_urls": chat_urls}


@contextmanager
def _kept(
    context: Context, inputs: dict[str, Ref], work: Work, block: Rollout, *, shared: bool
) -> Iterator[dict[str, Any]]:
    """Where the run keeps what it has: on this machine, and when it is shared, on the Hub."""
    if not shared:
        yield {"journal": work.scratch / "journal"}
        return
    digest = _digest(context, inputs, block)
    folder, repo_id = run_folder(digest), _repo_id(context)
    lease_s = block.lease_minutes * 60
    with claimed(context.hub, repo_id, _branch_name(digest), folder, lease_s=lease_s) as branch:
        yield {
            "journal": folder / "journal",
            "earlier_shards": [
                *_superseded(context.hub, repo_id, _digests(context, inputs, block), work.scratch),
                *branch.shards(),
            ],
            "on_shard": branch.put,
            "on_status": branch.check,
        }


def _superseded(hub: Hub, repo_id: str, digests: Sequence[str], scratch: Path) -> list[Path]:
    """The shards of the largest commit on ``main`` that holds this run, whatever its size and caps;
    often none. Of those of one size, the newest.
    """
    with hub.translated(f"reading the history of dataset {repo_id}"):
        commits = hub.api.list_repo_commits(repo_id, repo_type="dataset")
        revisions = [c.commit_id for c in commits if "[rollout:" in c.title]
    sizes = {}
    for revision in revisions:
        digest, dialogues = _report_of(hub, Ref(repo_id, "dataset", revision))
        if digest in digests:
            sizes[revision] = dialogues
    if not sizes:
        return []
    largest = max(sizes, key=lambda revision: sizes[revision])
    folder = scratch / "earlier"
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for path in parquet(hub, Ref(repo_id, "dataset", largest), "raw"):
        # No name of a shard that is made here.
        copies.append(folder / f"{path.stem}-{largest[:8]}.parquet")
        shutil.copyfile(path, copies[-1])
    return copies


def _report_of(hub: Hub, ref: Ref) -> tuple[str, int]:
    """The (digest, dialogues) of the run in a commit; empty where it does not say."""
    try:
        report = json.loads(hub.read(ref, f"{PROVENANCE}/rollout.json"))["report"]
        return str(report["digest"]), int(report["dialogues"])
    except (RepoMissingError, ValueError, KeyError, TypeError):
        return "", 0
