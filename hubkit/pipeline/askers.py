"""Scorecards outside a recipe: any askers of a Hub, side by side, on held-out conversations.

Takes repos; what each is (base, system message, end mark, the conversations it was held out from)
is read from the record that its training left in it, or given by hand for a repo without one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hubkit.conversation import Seat
from hubkit.errors import RecipeError, SourceError
from hubkit.evaluation import heldout_loss
from hubkit.evaluation.scorecard import contexts, requests, scorecard
from hubkit.hub import Hub, Ref
from hubkit.hub.places import runs
from hubkit.metrics.scorecards import Scorecard as Result
from hubkit.pipeline import deployed
from hubkit.pipeline.inputs import require
from hubkit.pipeline.seated import BASE, Asker, served
from hubkit.pipeline.serving import Model, deployed_of
from hubkit.pipeline.stage import WEIGHTS
from hubkit.progress import Progress, silent
from hubkit.publishing import records
from hubkit.recipe import Evals, Scorecard, Training, content_of, digest
from hubkit.untrusted import repo_name

ENGINE_TOKENS = 4096


def find(hub: Hub, name: str, *, system: str | None = None, progress: Progress = silent) -> Asker:
    """The asker in ``REPO[@REVISION]``. `system` is for repos that no asker stage made (a record
    says it otherwise).

    Raises `RepoMissingError`, and `SourceError` where an adapter does not say of what.
    """
    repo, _, revision = name.partition("@")
    ref = hub.resolve(hub.qualify(repo), revision=revision or "main")
    if record := records(hub, ref).get("asker"):
        training, read = Training.model_validate(record["block"]), record["inputs"]
        base = (
            Ref(**read["base"])
            if training.lora is not None and not training.merge_adapter
            else None
        )
        return Asker(
            name,
            ref,
            base,
            training.system,
            training.end_mark,
            training.intent_column,
            Ref(**read["corpus"]),
        )
    return Asker(name, ref, base_of(hub, ref, progress), system, prompted=system is not None)


def base_of(hub: Hub, ref: Ref, progress: Progress) -> Ref | None:
    """What an adapter is an adapter of; None for whole weights."""
    with hub.translated(f"listing {ref}"):
        files = hub.api.list_repo_files(ref.repo_id, revision=ref.revision)
    if "adapter_config.json" not in files:
        return None
    try:
        config = json.loads(hub.read(ref, "adapter_config.json"))
        base = repo_name(config["base_model_name_or_path"])
        revision = str(config.get("revision") or "main")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"adapter_config.json of {ref} does not name its base ({error}); "
            f"write the base's repo id into it, or train it again"
        ) from None
    return require(hub, base, revision=revision, progress=progress)


def with_base(askers: Sequence[Asker]) -> list[Asker]:
    """`askers`, and behind them the first one's base, told by that one's system message to play the
    user. It is served here, but a deployed asker's is deployed too, where the service can, on one
    endpoint with it. An asker with whole weights, or no system message, has no such base; one that
    plays already, told the same, is not added again."""
    first = askers[0]
    plays = any(
        one.prompted and (one.ref, one.system) == (first.base, first.system) for one in askers[1:]
    )
    if first.base is None or not first.system or plays:
        return list(askers)
    return [
        *askers,
        replace(first, name=BASE, ref=first.base, base=None, end_mark=None, urls=(), prompted=True),
    ]


def endpoints(hub: Hub, askers: Sequence[Asker]) -> list[dict[str, Any]]:
    """The endpoints that `compare` would make, and what each costs an hour."""
    models = {
        asker.name: Model(asker.ref, asker.base, asker.deploy) for asker in askers if not asker.urls
    }
    return deployed.prices(hub, deployed_of(models, ENGINE_TOKENS))


def plan(
    block: Scorecard, askers: Sequence[Asker], data: Sequence[Path], *, seed: int
) -> list[dict[str, Any]]:
    """What `compare` would ask of each: its repo, base, requests, and at most how many new
    tokens.
    """
    found = contexts(block, data, seed=seed, intent_column=askers[0].intent_column)
    rows = []
    for asker in askers:
        number = requests(block, asker.player(), found)
        served = ", ".join(asker.urls) or (
            "an endpoint made for it" if asker.deploy else "embedded engine"
        )
        base = str(asker.base) if asker.base else None
        rows.append(
            {"name": asker.name, "model": str(asker.ref), "base": base, "served": served, "requests": number,
             "tokens_at_most": number * (block.sampling.max_tokens or 0)}
        )  # fmt: skip
    return rows


def compare(
    hub: Hub,
    block: Scorecard,
    askers: Sequence[Asker],
    data: Sequence[Path],
    *,
    seed: int,
    losses: Evals | None,
    source: Mapping[str, Any] | None = None,
    work: Path | None = None,
    progress: Progress = silent,
) -> Result:
    """The scorecard of `askers` on `data`; with `losses`, the perplexity of people's turns under
    each as well.

    `work` is a folder for replies and logs that survives a kill: the same call goes on from there.
    Raises `RecipeError` for two askers of one name, and what engines, endpoints and data raise."""
    names = [asker.name for asker in askers]
    if len(set(names)) < len(names):
        raise RecipeError(
            f"{', '.join(names)}: each asker needs a name of its own; give every repo once"
        )
    work = work or workplace(block, askers, data, seed)
    work.mkdir(parents=True, exist_ok=True)
    perplexities = _perplexities(hub, losses, askers, data, progress) if losses else {}
    with served(hub, askers, work, progress, slots=block.in_flight, tokens=ENGINE_TOKENS) as seated:
        players = [asker.player(perplexities.get(asker.name)) for asker in seated]
        return scorecard(
            block, data, players, seed=seed, journal=work, intent_column=askers[0].intent_column, source=source,
            progress=progress,
        )  # fmt: skip


def workplace(block: Scorecard, askers: Sequence[Asker], data: Sequence[Path], seed: int) -> Path:
    """The folder of exactly this comparison."""
    content = content_of(Scorecard, block.model_dump(mode="json"))
    facts = [content, [f"{a.name}={a.ref}" for a in askers], [str(path) for path in data], seed]
    return runs() / f"scorecard-{digest(facts)[:12]}"


def _perplexities(
    hub: Hub, losses: Evals, askers: Sequence[Asker], data: Sequence[Path], progress: Progress
) -> dict[str, float]:
    found = {}
    for asker in askers:
        own = hub.snapshot(asker.ref, allow_patterns=WEIGHTS)
        base = hub.snapshot(asker.base, allow_patterns=WEIGHTS) if asker.base else own
        printed: Seat | None = "assistant" if asker.prompted else None
        adapter = own if asker.base else None
        measured = heldout_loss(
            losses,
            base,
            adapter,
            data,
            seat="user",
            system=asker.system,
            printed_as=printed,
            progress=progress,
        )
        found[asker.name] = measured.perplexity
    return found
