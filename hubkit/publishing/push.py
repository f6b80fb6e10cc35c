"""The push: final cards, Spaces and the collection, brought to a Hub so that a second push finds
nothing to do.

Takes the commits that the stages made; gives the list of changes. Everything is rendered, linted
and scanned before the first byte leaves. One commit per repo on top of the commit that was looked
at; when another commit comes in between, the repo is looked at again. Files on the Hub are
compared by hash, so an interrupted push resumes where it stopped."""

from __future__ import annotations

import glob
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from hubkit.errors import CommitConflictError, RepoMissingError
from hubkit.hub import Hub, Ref
from hubkit.hub.versions import tag_version
from hubkit.metrics import scorecards
from hubkit.metrics.picture_cache import drawn_once
from hubkit.progress import Progress, silent
from hubkit.publishing import (
    base_models,
    card_data,
    cards,
    collection,
    lineage,
    merge,
    results_table,
    safety_checks,
    samples,
    scorecard,
    spaces,
)
from hubkit.publishing.card_data import Input, Kind
from hubkit.publishing.lineage import StageRecord
from hubkit.publishing.plan import MADE_BY_HUBS, Change, Content, RepoPlan, compare
from hubkit.recipe import Recipe

# The stage whose commit is the newest of each repo, in the order of the lineage: what is read comes
# before its reader.
ARTIFACTS: tuple[tuple[str, Kind, str], ...] = (
    ("corpus", "corpus", "dataset"),
    ("asker", "asker", "model"),
    ("curate", "dialogues", "dataset"),
    ("chat", "chat", "model"),
    ("prefer", "preference", "dataset"),
    ("align", "aligned", "model"),
    ("reinforce", "reinforced", "model"),
    ("eval", "results", "dataset"),
)
BENCHMARK = "mt-bench-8"  # the same whatever the recipe
UNKNOWN = "0" * 40  # stands for a commit that a push will make, while it is only planned
_FORMERLY_WRITTEN = ("croissant.json", "results.csv")  # by earlier versions; a push removes it
_CARD_FILES = (
    "README.md",
    lineage.PICTURE,
    scorecard.PICTURE,
    scorecard.ENTRIES,
    results_table.PATH,
    *_FORMERLY_WRITTEN,
)
_FROM_ELSEWHERE = (
    "data/*",
    "conversations/*",
    "*.safetensors",
    f"{lineage.PROVENANCE}/*",
)  # ours to delete when pushed Hub to Hub
# What stages write, and so all that a push takes from one Hub to another.
_FOLDERS = (".", "data", "conversations", lineage.PROVENANCE)
_SUFFIXES = {".csv", ".jinja", ".json", ".jsonl", ".md", ".model", ".parquet", ".png"}
_SUFFIXES |= {".safetensors", ".txt", ".yaml"}
_ATTEMPTS = 6


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The questions that ship, to be pushed as a dataset of their own: its files by path, and their
    numbers.
    """

    files: Mapping[str, Content]
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What goes to the Hub, and who may see it.

    Args:
        public: New repos are public; else they are private on a real Hub.
        allow: Kinds of secrets and personal data that may go to a real Hub, besides the recipe's.
        with_spaces: Also the Spaces.
        benchmark: Also these questions.
    """

    public: bool = False
    allow: Iterable[str] = ()
    with_spaces: bool = True
    benchmark: Benchmark | None = None


@dataclass
class _Push:
    """One push: where from, where to, and which commit there each commit here has become."""

    source: Hub
    target: Hub
    recipe: Recipe
    outputs: Mapping[str, Ref]
    public: bool
    stack: ExitStack  # keeps the files that are masked on their way until the push is done
    commits_there: dict[tuple[str, str], Ref] = field(default_factory=dict)
    _records: dict[Ref, dict[str, StageRecord]] = field(default_factory=dict)

    def records(self, ref: Ref) -> dict[str, StageRecord]:
        """The records of a commit on the source Hub, asked for once: a commit never changes."""
        if ref not in self._records:
            self._records[ref] = lineage.records(self.source, ref)
        return self._records[ref]

    @property
    def is_copy(self) -> bool:
        """Whether files move from one Hub to another."""
        return self.source.url != self.target.url

    @property
    def private(self) -> bool:
        """Repos made by this push are private on a real Hub unless asked to be public."""
        return not self.public and not self.target.embedded


def publish(
    hub: Hub,
    recipe: Recipe,
    outputs: Mapping[str, Ref],
    *,
    source: Hub | None = None,
    options: PushOptions | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> list[Change]:
    """Bring what `outputs` (stage → commit; those of `ARTIFACTS` that exist) point at to `hub`.

    `source` is the Hub that holds `outputs`; when it is another one, all files move, and versions
    are tagged there. On the same Hub only cards, Spaces, the benchmark and the collection change.
    Returns what was changed, or with `dry_run` what would be, touching nothing; and every file
    that was not taken along (``leave``), because no stage writes its kind. Raises `PublishError`
    when a card or a file must not leave, `CommitConflictError` when others keep committing,
    `HubError` otherwise."""
    options = options or PushOptions()
    with ExitStack() as stack:
        target = hub.allowing(options.allow)
        push = _Push(source or hub, target, recipe, outputs, options.public, stack)
        return _publish(push, options, dry_run, progress)


def _publish(push: _Push, options: PushOptions, dry_run: bool, progress: Progress) -> list[Change]:
    hub, recipe = push.target, push.recipe
    base_steps = list(_base_steps(push))
    steps = [
        *base_steps,
        *_artifact_steps(push),
        *(_space_steps(push) if options.with_spaces else ()),
    ]
    if options.benchmark:
        steps.append(_benchmark_step(push, options.benchmark))
    planned = [_plan_all(push, step, progress, at, len(steps)) for at, step in enumerate(steps)]
    changes = [change for plan in planned for change in plan.changes]
    left_out = [
        Change(plan.repo_id, plan.repo_type, "leave", path)
        for plan in planned
        for path in plan.left_out
    ]
    items = [(step.repo_id, step.repo_type) for step in steps[len(base_steps) :]]
    if dry_run:
        return changes + collection.plan(hub, recipe, items) + left_out
    changes_made: list[Change] = []
    push.commits_there.clear()
    for at, (step, plan) in enumerate(zip(steps, planned, strict=True)):
        progress(at, len(steps), f"repos · pushing {step.repo_id}")
        # Across Hubs a card names commits that this push makes, so it is planned again once they
        # are known.
        changes_made += _carry_out(push, step, None if push.is_copy and step.kind else plan)
    changes_made += collection.push(hub, recipe, items, private=push.private)
    progress(len(steps), len(steps), "repos pushed")
    return changes_made + left_out


@dataclass(frozen=True, slots=True)
class _Step:
    """One repo of a push: how to plan it, and what is to be done once a plan's commit is known. It
    has a card where it has a `kind`."""

    repo_id: str
    repo_type: str
    plan: Callable[[], RepoPlan]
    kind: Kind | None = None
    after: Callable[[str, RepoPlan], list[Change]] = lambda *_: []


def _plan_all(push: _Push, step: _Step, progress: Progress, at: int, total: int) -> RepoPlan:
    progress(at, total, f"repos · checking {step.repo_id}")
    plan = step.plan()
    safety_checks.check(plan, step.kind, push.target)
    if push.is_copy:
        step.after(UNKNOWN, plan)
    return plan


def _carry_out(push: _Push, step: _Step, planned: RepoPlan | None) -> list[Change]:
    """Make one repo's commit as planned; plan it again when it was not, or when others came
    first.
    """
    for attempt in range(_ATTEMPTS):
        plan = planned or step.plan()
        planned = None
        safety_checks.check(plan, step.kind, push.target)
        commit = _commit(push.target, plan, push.recipe)
        if commit is not None:
            changes = [replace(change, commit=commit) for change in plan.changes]
            return changes + step.after(commit, plan)
        time.sleep(random.uniform(0.05, 0.2) * 2**attempt)
    raise CommitConflictError(
        f"{step.repo_type} {step.repo_id}: others committed {_ATTEMPTS} times in between; push "
        f"again later",
        status=412,
    )


def _commit(hub: Hub, plan: RepoPlan, recipe: Recipe) -> str | None:
    """The sha of the one commit that `plan` asks for, its parent when nothing changes; None when
    others came first.
    """
    if plan.parent is None:
        sdk = "gradio" if plan.repo_type == "space" else None
        hub.make(plan.repo_id, repo_type=plan.repo_type, private=plan.private, sdk=sdk)
    elif not plan.write and not plan.delete:
        return plan.parent
    parent = plan.parent or hub.resolve(plan.repo_id, repo_type=plan.repo_type).revision
    with hub.translated(
        f"committing to {plan.repo_type} {plan.repo_id}", conflicts=True
    ) as outcome:
        commit = hub.create_commit(
            plan.repo_id,
            plan.write,
            f"Publish recipe {recipe.name}",
            repo_type=plan.repo_type,
            parent=parent,
            delete=plan.delete,
        )
    return None if outcome.conflict else commit.revision


def _base_steps(push: _Push) -> Iterator[_Step]:
    trained = [
        push.records(push.outputs[stage])
        for stage in ("asker", "chat", "align", "reinforce")
        if stage in push.outputs
    ]
    for base in base_models.needed(push.source, push.target, trained):
        plan = partial(base_models.plan, push.source, push.target, base, private=push.private)
        yield _Step(base.repo_id, base.repo_type, plan, after=partial(_settle_base, push, base))


def _settle_base(push: _Push, base: Ref, revision: str, plan: RepoPlan) -> list[Change]:
    if not plan.is_kept:
        push.commits_there[base.repo_id, base.revision] = replace(base, revision=revision)
    return []


def _artifact_steps(push: _Push) -> Iterator[_Step]:
    for stage, kind, repo_type in ARTIFACTS:
        if ref := push.outputs.get(stage):
            repo_id = push.target.qualify(getattr(push.recipe.repos, kind))
            plan = partial(_plan_artifact, push, kind, ref, repo_id, repo_type)
            yield _Step(repo_id, repo_type, plan, kind, partial(_settle, push, kind, ref, repo_id))


def _plan_artifact(push: _Push, kind: Kind, ref: Ref, repo_id: str, repo_type: str) -> RepoPlan:
    records = push.records(ref)
    source_files = push.source.files(ref.repo_id, repo_type=ref.repo_type, revision=ref.revision)
    files, left_out = _files_of(push, ref, source_files) if push.is_copy else ({}, [])
    results = _results(push)
    table = {results_table.PATH: results_table.render(results)} if results else {}
    contents: dict[str, Content] = {**files, **(table if kind == "results" else {})}
    card_files = [*source_files, *contents, lineage.PICTURE, scorecard.PICTURE]
    facts = card_data.from_records(
        kind, repo_id, push.recipe, records, results=results, files=card_files
    )
    facts = replace(facts, samples=_samples(push, kind))
    facts = replace(facts, inputs=_inputs_there(push, kind, facts.inputs))
    if (
        kind == "preference" and "align" in push.outputs
    ):  # its card also says what training on it had to leave out
        trained = push.records(push.outputs["align"])["align"]["report"]
        facts = replace(facts, reports={**facts.reports, "align": trained})
    card = merge.with_existing(cards.render(facts), _card_there(push.target, repo_id, repo_type))
    tree = lineage.relabelled(
        lineage.trace(ref, push.records), lambda old: _picture_ref(push, kind, ref, old)
    )
    picture = drawn_once(lineage.picture, tree)
    contents |= {"README.md": card.encode(), lineage.PICTURE: picture}
    contents |= _scored(facts)
    owned = (*_FORMERLY_WRITTEN, *(_FROM_ELSEWHERE if push.is_copy else ()))
    plan = compare(push.target, repo_id, repo_type, contents, private=push.private, owned=owned)
    return replace(plan, left_out=left_out)


def _files_of(push: _Push, ref: Ref, names: list[str]) -> tuple[dict[str, Content], list[str]]:
    """The files of a commit that go to another Hub, those that stages write, by folder and kind;
    and the names of the others, which stay where they are.
    """
    allowed = sorted(filter(may_leave, names))
    folder = push.source.snapshot(ref, allow_patterns=[glob.escape(name) for name in allowed])
    left_out = sorted({*names} - {*allowed, *MADE_BY_HUBS})
    files, _ = push.stack.enter_context(
        push.target.masked({name: folder / name for name in allowed})
    )
    return files, left_out


def may_leave(name: str) -> bool:
    """Whether a push takes the file `name` (a path in its repo) to another Hub."""
    path = PurePosixPath(name)
    if name == scorecard.ENTRIES:
        return True
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and str(path.parent) in _FOLDERS and path.suffix in _SUFFIXES


def _samples(push: _Push, kind: Kind) -> list[samples.Sample]:
    """Rows for the card to show: the dataset's own, or for a model those of the dialogues, or of
    its held-out conversations."""
    stages = {"corpus": "corpus", "preference": "prefer", "reinforced": "reinforce"}
    stage = stages.get(kind, "curate")
    ref = push.outputs.get(stage)
    if ref is None or kind in ("results", "aligned"):
        return []
    if kind == "reinforced":
        folder = push.source.snapshot(ref, allow_patterns=["conversations/*.parquet"])
        return samples.of(sorted((folder / "conversations").glob("*.parquet")), group="after")
    folder = push.source.snapshot(ref, allow_patterns=["data/train-*.parquet"])
    return samples.of(sorted((folder / "data").glob("train-*.parquet")))


def _scored(facts: card_data.CardFacts) -> dict[str, Content]:
    """The picture of an asker's scorecard and its entries for the Hub, where the results hold
    one.
    """
    card, data = scorecard.from_results(facts.results), facts.input("corpus")
    if facts.kind != "asker" or card is None or data is None:
        return {}
    return {
        scorecard.PICTURE: drawn_once(scorecards.picture, card),
        scorecard.ENTRIES: scorecard.entries(card, data).encode(),
    }


def _inputs_there(push: _Push, kind: Kind, inputs: Sequence[Input]) -> list[Input]:
    """The inputs as the target Hub knows them; models are also told which conversations they were
    held against.
    """
    inputs_there = []
    for item in inputs:
        old = Ref(item.repo_id, item.repo_type, item.revision)
        new = push.commits_there.get((old.repo_id, old.revision))
        if new is not None:
            inputs_there.append(replace(item, repo_id=new.repo_id, revision=new.revision))
        else:
            inputs_there.append(
                replace(
                    item,
                    is_present=item.is_present and (not push.is_copy or _exists(push.target, old)),
                )
            )
    corpus = push.outputs.get("corpus")
    if (
        kind in ("chat", "aligned", "reinforced")
        and corpus is not None
        and not any(i.role == "held-out" for i in inputs_there)
    ):
        at = push.commits_there.get((corpus.repo_id, corpus.revision), corpus)
        inputs_there.append(Input("held-out", at.repo_id, at.repo_type, at.revision))
    return inputs_there


def _picture_ref(push: _Push, kind: Kind, ref: Ref, old: Ref) -> Ref:
    """What the picture calls a commit. Its own card is drawn before it is committed, so the root
    names the data's.
    """
    if old == ref and push.is_copy:
        return Ref(push.target.qualify(getattr(push.recipe.repos, kind)), ref.repo_type, "")
    return push.commits_there.get((old.repo_id, old.revision), old)


def _settle(
    push: _Push, kind: Kind, ref: Ref, repo_id: str, revision: str, plan: RepoPlan
) -> list[Change]:
    """Remember what `ref` has become on the target, and tag it there when it is a version."""
    if not push.is_copy:
        return []
    commit = Ref(repo_id, ref.repo_type, revision)
    if revision == UNKNOWN:
        push.commits_there[ref.repo_id, ref.revision] = commit
        return []
    data = data_commit(push.target, commit)
    push.commits_there[ref.repo_id, ref.revision] = data
    return _tag(push.target, data) if kind in ("dialogues", "preference") else []


def data_commit(hub: Hub, ref: Ref) -> Ref:
    """The newest commit up to `ref` that touched anything but card and picture: what readers of the
    data depend on.
    """
    with hub.translated(f"reading the history of {ref}"):
        tree = hub.api.list_repo_tree(
            ref.repo_id, recursive=True, expand=True, revision=ref.revision, repo_type=ref.repo_type
        )
        touched = {
            entry.last_commit.oid
            for entry in tree
            if entry.last_commit is not None and entry.path not in (*_CARD_FILES, ".gitattributes")
        }
        history = hub.api.list_repo_commits(
            ref.repo_id, repo_type=ref.repo_type, revision=ref.revision
        )
    return next(
        (replace(ref, revision=c.commit_id) for c in history if c.commit_id in touched), ref
    )


def _tag(hub: Hub, ref: Ref) -> list[Change]:
    """Give the commit the next version tag, when no version points at it yet."""
    name, created = tag_version(hub, ref, "Published version")
    if not created:
        return []
    return [Change(ref.repo_id, ref.repo_type, "tag", name, commit=ref.revision)]


def _results(push: _Push) -> Mapping[str, object] | None:
    ref = push.outputs.get("eval")
    if ref is None:
        return None
    report = push.records(ref).get("eval", {}).get("report")
    return report if isinstance(report, dict) else None


def _card_there(hub: Hub, repo_id: str, repo_type: str) -> str:
    try:
        head = hub.resolve(repo_id, repo_type=repo_type)
        return hub.read(head, "README.md").decode("utf-8", "replace")
    except RepoMissingError:
        return ""


def _exists(hub: Hub, ref: Ref) -> bool:
    try:
        hub.resolve(ref.repo_id, repo_type=ref.repo_type, revision=ref.revision)
    except RepoMissingError:
        return False
    return True


def _space_steps(push: _Push) -> Iterator[_Step]:
    for space in spaces.SPACES:
        if any(stage not in push.outputs for stage in space.needs):
            continue
        repo_id = push.target.qualify(getattr(push.recipe.repos, space.named_after))
        yield _Step(repo_id, "space", partial(_plan_space, push, space, repo_id))


def _plan_space(push: _Push, space: spaces.Space, repo_id: str) -> RepoPlan:
    contents = spaces.files(space, push.recipe, push.target.qualify)
    plan = compare(push.target, repo_id, "space", contents, private=push.private)
    return replace(plan, left_out=spaces.left_out(space))


def _benchmark_step(push: _Push, benchmark: Benchmark) -> _Step:
    repo_id = push.target.qualify(BENCHMARK)
    plan = partial(_plan_benchmark, push, benchmark, repo_id)
    return _Step(repo_id, "dataset", plan, "benchmark")


def _plan_benchmark(push: _Push, benchmark: Benchmark, repo_id: str) -> RepoPlan:
    facts = card_data.CardFacts("benchmark", repo_id, reports={"benchmark": benchmark.report})
    card = merge.with_existing(cards.render(facts), _card_there(push.target, repo_id, "dataset"))
    contents: dict[str, Content] = {**benchmark.files, "README.md": card.encode()}
    return compare(push.target, repo_id, "dataset", contents, private=push.private)
