"""The scorecard of a Hub's askers, from Python: who is compared, on which held-out conversations,
what it would ask, the comparison itself, and its files.

``hubkit eval asker`` is argument parsing and printing over this module."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hubkit.data.overlap import HeldOutIndex
from hubkit.data.parquet import write_files
from hubkit.errors import RecipeError, RepoMissingError, SourceError
from hubkit.evaluation.chat import JudgeChoice
from hubkit.evaluation.scorecard import HeldOutFiles
from hubkit.hub import Hub
from hubkit.metrics.scorecards import Scorecard as Result
from hubkit.metrics.scorecards import picture
from hubkit.pipeline import askers
from hubkit.pipeline.askers import AskerSpec
from hubkit.pipeline.judges import turing_test
from hubkit.pipeline.stage import parquet
from hubkit.pipeline.studies.openings import conversations
from hubkit.progress import Progress, silent
from hubkit.publishing import scorecard as shown
from hubkit.publishing.card_data import Input
from hubkit.recipe import Deploy, Evals, Scorecard
from hubkit.serving import ModelSpec
from hubkit.untrusted import JsonObject

DEPLOY, BASE = "deploy", "base"
_NEAR_DUPLICATE = 0.5  # of a held-out human side's runs of five words
Locate = Callable[[str], tuple[list[Path], str | None]]
"""``REPO[@REV]:SPLIT`` → parquet files here, and the commit they are of."""


@dataclass(frozen=True)
class AskerComparison:
    """Askers that are to be compared.

    Attributes:
        repos: ``REPO[@REVISION]`` of each; the first one's base joins them, with `with_base`.
        system: Tells repos that no asker stage made to play; None: as the first asker is told.
        speaks_user: Repos that write people's turns under their own user header, each with the
            token with which it ends a conversation, if it has one.
        served_at: Repo, or ``base``, → addresses, or ``[deploy]``.
        data: ``REPO[@REV][:SPLIT]`` of held-out conversations; empty: what the first was held out
            from.
        perplexity: Whether people's turns are also scored under each (loads the weights).
        judge: Who tells turns from people's; None: no judge is asked.
        judge_pairs: At most so many pairs a player are shown, each in both orders."""

    repos: Sequence[str]
    block: Scorecard
    data: str = ""
    system: str | None = None
    speaks_user: Mapping[str, str | None] = field(default_factory=dict)
    served_at: Mapping[str, list[str]] = field(default_factory=dict)
    deploy: Deploy = field(default_factory=Deploy)
    with_base: bool = True
    perplexity: bool = True
    judge: JudgeChoice | None = None
    judge_pairs: int = 50
    seed: int = 42


@dataclass(frozen=True)
class Prepared:
    """A comparison whose askers and conversations were looked up."""

    comparison: AskerComparison
    askers: list[AskerSpec]
    files: list[Path]
    source: JsonObject

    def held_out(self, hub: Hub, progress: Progress = silent) -> HeldOutFiles:
        """The conversations, and which of them an asker was trained on."""
        trained_on = _trained_on(hub, self.askers, self.files, self.source, progress)
        return HeldOutFiles(self.files, source=self.source, trained_on=trained_on)

    def plan(self, hub: Hub) -> JsonObject:
        """Say what would be asked of whom, and which endpoints would be made."""
        block, seed = self.comparison.block, self.comparison.seed
        return {
            "data": self.source,
            "players": askers.plan(block, self.askers, self.held_out(hub), seed=seed),
            "endpoints": askers.endpoints(hub, self.askers),
            "judgments": 2 * self.comparison.judge_pairs * len(self.askers)
            if self.comparison.judge
            else 0,
        }

    def run(
        self, hub: Hub, folder: Path | None = None, *, progress: Progress = silent
    ) -> tuple[Result, list[Path]]:
        """Compare the askers, or resume, and write the scorecard in every form into `folder`."""
        comparison = self.comparison
        work = askers.workplace(comparison.block, self.askers, self.files, comparison.seed)
        turing = (
            turing_test(
                hub, comparison.judge, pairs=comparison.judge_pairs, log=work, progress=progress
            )
            if comparison.judge
            else None
        )
        card = askers.compare(
            hub,
            comparison.block,
            self.askers,
            self.held_out(hub, progress),
            seed=comparison.seed,
            losses=Evals(conversations=comparison.block.contexts)
            if comparison.perplexity
            else None,
            turing=turing,
            progress=progress,
        )
        files = write(folder, card, self.source, work, self.askers[0].name) if folder else []
        shutil.rmtree(work, ignore_errors=True)  # all of it is in the card
        return card, files


def addresses(repos: Sequence[str], pairs: Sequence[str]) -> dict[str, list[str]]:
    """Read ``NAME=URL`` pairs. Raises `RecipeError` for a name that is none of `repos` or base."""
    served_at: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, url = pair.partition("=")
        if not equals or name not in (*repos, BASE):
            raise RecipeError(
                f"--endpoint {pair!r} must be NAME=URL, with a NAME out of "
                f"{', '.join([*repos, BASE])}"
            )
        served_at.setdefault(name, []).append(url)
    return served_at


def prepare(
    hub: Hub, comparison: AskerComparison, locate: Locate, *, progress: Progress = silent
) -> Prepared:
    """Look up the askers and the held-out conversations.

    Raises:
        SourceError: The first asker does not say what it was held out from, and no data is
            named.
        RecipeError: A repo of `speaks_user` is none of the askers."""
    if strangers := comparison.speaks_user.keys() - {*comparison.repos}:
        raise RecipeError(
            f"--speaks-user names {', '.join(sorted(strangers))}, which is none of the askers "
            f"{', '.join(comparison.repos)}"
        )

    def find(name: str, system: str | None) -> AskerSpec:
        speaks_user = comparison.speaks_user
        return askers.find(hub, name, system=system, speaks_user=speaks_user, progress=progress)

    first = find(comparison.repos[0], comparison.system)
    system = comparison.system or first.system
    other_askers = [find(name, system) for name in comparison.repos[1:]]
    specs = [
        _at(asker, comparison.served_at.get(asker.name), comparison)
        for asker in (first, *other_askers)
    ]
    files, source = _held_out(comparison.data, specs, locate)
    if comparison.with_base:
        added = askers.with_base(specs)[len(specs) :]
        specs += [_at(asker, comparison.served_at.get(BASE), comparison) for asker in added]
    return Prepared(comparison, specs, files, source)


def _trained_on(
    hub: Hub,
    specs: Sequence[AskerSpec],
    files: Sequence[Path],
    source: Mapping[str, Any],
    progress: Progress,
) -> dict[str, set[str] | None]:
    """Asker → ids of held-out conversations that it was trained on, itself or as near-duplicates;
    None of one that does not say. One whose own corpus they were held out from was trained on
    none, and a base that is only told to play is not looked at."""
    trained_on: dict[str, set[str] | None] = {}
    index = None
    for spec in specs:
        if spec.prompted:
            continue
        if spec.data is None:
            trained_on[spec.name] = None
            continue
        split = (spec.data.repo_id, spec.data.revision, "test")
        if split == (source["repo_id"], source["revision"], source["split"]):
            continue
        progress(0, None, f"looking for held-out conversations in what {spec.name} was trained on")
        try:
            shards = parquet(hub, spec.data, "train")
        except RepoMissingError:  # it is not on this Hub, or not for this user
            trained_on[spec.name] = None
            continue
        if index is None:
            index = HeldOutIndex(conversations(list(files)), near_duplicate=_NEAR_DUPLICATE)
        overlaps = index.overlaps(spec.name, conversations(shards))
        trained_on[spec.name] = {overlap.held_out for overlap in overlaps}
    return trained_on


def _at(asker: AskerSpec, urls: list[str] | None, comparison: AskerComparison) -> AskerSpec:
    """`asker` at these addresses, or at an endpoint that is made for it."""
    if not urls:
        return asker
    if urls == [DEPLOY]:
        return replace(asker, model=ModelSpec(asker.ref, asker.base, comparison.deploy))
    return replace(asker, model=ModelSpec(askers.addressed(urls)))


def _held_out(
    name: str, specs: Sequence[AskerSpec], locate: Locate
) -> tuple[list[Path], JsonObject]:
    if name:
        files, revision = locate(name)
        repo, _, split = name.partition(":")
        source = {"repo_id": repo.partition("@")[0], "revision": revision}
        return files, {**source, "split": split or "test"}
    ref = next((asker.data for asker in specs if asker.data), None)
    if ref is None:
        raise SourceError(
            f"{specs[0].name} does not say what it was held out from; give conversations with "
            "--data REPO:SPLIT"
        )
    files, _ = locate(f"{ref.repo_id}@{ref.revision}:test")
    return files, {**ref.to_dict(), "split": "test"}


def write(
    folder: Path, card: Result, source: Mapping[str, Any], work: Path, player: str
) -> list[Path]:
    """Write a scorecard in every form: data, picture, card section, the Hub's entries for `player`,
    the turns themselves."""
    data = Input("held-out", source["repo_id"], "dataset", source["revision"] or "")
    contents = {
        "scorecard.json": (
            json.dumps(card.to_dict(), indent=1, ensure_ascii=False) + "\n"
        ).encode(),
        shown.PICTURE: picture(card),
        "scorecard.md": shown.section(card).encode(),
        shown.ENTRIES: shown.entries(card, data, player).encode(),
        "model-index.yaml": shown.model_index_yaml(card, data, player).encode(),
    }
    contents["turns.jsonl"] = (work / "turns.jsonl").read_bytes()
    return write_files(folder, contents)
