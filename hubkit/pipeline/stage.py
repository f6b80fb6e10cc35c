"""What a stage is, and how one is run: look for its commit; else build a folder, commit it once,
tag it if it wants.

A stage is killed at any instant and nothing is lost or done twice: it works in a folder named by
its key, builds into ``out.part``, renames that to ``out`` when whole, commits, and only then
deletes the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib import metadata, util
from pathlib import Path
from typing import Any, cast

from hubkit import __version__, extras, plugins
from hubkit.data.filters import masked_kinds
from hubkit.errors import RepoMissingError, StageError
from hubkit.hub import Hub, Ref
from hubkit.hub.places import runs
from hubkit.hub.versions import tag_version
from hubkit.locks import FileLock, Timeout
from hubkit.pipeline.stopwatch import Stopwatch
from hubkit.progress import Notice, Progress
from hubkit.publishing.lineage import StageRecord
from hubkit.recipe import Recipe, content_of_stage, digest
from hubkit.serving.budget import CAPS, Caps
from hubkit.training import Launch
from hubkit.untrusted import JsonObject, parse_json

PROVENANCE = "provenance"
WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "huggingface_hub", "xllamacpp")


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every stage can see: the recipe, the Hub, the commits of the stages before it by stage
    name, and how training is spread over processes.

    `supersedes` is set for a stage that is made anew though it is done: the revision of its newest
    commit, empty where it has none."""

    recipe: Recipe
    hub: Hub
    commits: dict[str, Ref] = field(default_factory=dict)
    launch: Launch | None = None
    supersedes: str | None = None

    def before(self, stage: str) -> Ref:
        """The commit of an earlier stage. Raises `StageError` when that stage has not run."""
        if ref := self.commits.get(stage):
            return ref
        verb = f"train {stage}" if stage in ("asker", "chat") else stage
        raise StageError(
            f"stage {stage!r} of recipe {self.recipe.name!r} has not run for these values; "
            f"with the same --profile and --set, run `hubkit {verb} {self.recipe.name}` first, "
            f"or `hubkit run {self.recipe.name}` for all stages"
        )


def outgoing(hub: Hub, recipe: Recipe) -> Hub:
    """`hub` as rows of `recipe` may go to it where it is not local: masked of what its filters of
    generated dialogues mask, and with what its owner allows.
    """
    return hub.allowing(recipe.publish.allow).masking(masked_kinds(recipe.curate.filters))


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage made: its commit, the commits it read (by role), how long it took in all the
    processes that built it, whether it was there.
    """

    stage: str
    ref: Ref
    inputs: dict[str, Ref]
    seconds: float
    skipped: bool
    report: JsonObject
    tag: str | None = None
    answered_by: str = ""
    """Whose answers it holds, where the recipe names other addresses now."""

    def to_dict(self) -> JsonObject:
        """Plain data for ``--json``."""
        return {
            "stage": self.stage,
            **self.ref.to_dict(),
            "tag": self.tag,
            "inputs": {role: ref.to_dict() for role, ref in self.inputs.items()},
            "seconds": self.seconds,
            "skipped": self.skipped,
            "report": self.report,
        }


@dataclass(frozen=True, slots=True)
class StageDirs:
    """Where a stage builds: `out` becomes the commit; `scratch` survives a kill (checkpoints,
    journals, logs).
    """

    out: Path
    scratch: Path
    progress: Progress


RenderCard = Callable[[RunContext, dict[str, Ref], StageRecord, Sequence[str]], str]
"""The README of a commit, from what the stage reads, its record, and the paths that the repo will
hold."""


def with_funnel(report: JsonObject, dirs: StageDirs) -> JsonObject:
    """`report`, after its drop funnel was plotted for the card, where matplotlib is installed; else
    it is said that the card has no picture of it.
    """
    if util.find_spec("matplotlib") is None:
        how = extras.command("eval")
        dirs.progress(
            0, None, Notice(f"no plot of what was dropped, for want of matplotlib: {how}")
        )
        return report
    from hubkit.metrics import plots

    plots.funnel(dirs.out / "funnel.png", report)
    return report


def parquet(hub: Hub, ref: Ref, split: str, *, may_be_empty: bool = False) -> list[Path]:
    """The parquet shards of one split of a dataset commit, downloaded.

    Raises `StageError` where it has no rows, and so no shards, unless it `may_be_empty`."""
    folder = hub.snapshot(ref, allow_patterns=[f"data/{split}-*.parquet"])
    shards = sorted((folder / "data").glob(f"{split}-*.parquet"))
    if not shards and not may_be_empty:
        raise StageError(
            f"{ref} has no rows in the split {split!r}; raise its size in the block of the "
            "stage that makes it"
        )
    return shards


def cap_raised(stopped: str | None, then: Mapping[str, Any], now: Caps | None) -> bool:
    """Whether the cap `stopped` ended what was made under the block `then`, and is higher `now`."""
    if stopped not in CAPS or now is None:
        return False
    before, after = then.get(stopped), getattr(now, stopped)
    return before is not None and (after is None or after > before)


def other_servers(then: object, now: Mapping[str, Any]) -> str:
    """Whose answers were recorded under the block `then`, where `now` names other addresses; empty
    where they are the same.

    Addresses do not decide a result, so a finished stage is not run again for them: this says so.
    """
    parts = []
    for seat, config in now.items():
        before = then.get(seat) if isinstance(then, Mapping) else None
        if not isinstance(config, Mapping) or not isinstance(before, Mapping):
            continue
        former, present = before.get("endpoints"), config.get("endpoints")
        if isinstance(former, list) and isinstance(present, list) and former != present:
            parts.append(f"{seat}: {', '.join(map(str, former))}, not {', '.join(present)}")
    return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. `inputs` resolves what it reads, `build` writes `StageDirs.out` and returns its
    report, `card` its card.

    `outgrown` says of a recipe and a record whether a cap ended it that the recipe has raised
    since: then it is not done. `replace` are the repo paths that belong to this stage alone: those
    not built again are deleted by its commit. `settle` removes what the stage kept for itself while
    it was built; it is called when the commit exists. `check` raises for a recipe that it could
    not be built of, whatever its inputs are. `look_ahead` raises what building it would
    raise, where that is known before the stages ahead of it have run. `trains` is the part of the
    recipe in which its trainings stand. `needs` names the block without which a recipe does not
    have this stage."""

    name: str
    repo: str
    repo_type: str
    inputs: Callable[[RunContext, Progress], dict[str, Ref]]
    build: Callable[[RunContext, dict[str, Ref], StageDirs], JsonObject]
    card: RenderCard | None = None
    replace: tuple[str, ...] = ()
    tagged: bool = False
    settle: Callable[[RunContext, dict[str, Ref]], None] | None = None
    outgrown: Callable[[Recipe, StageRecord], bool] | None = None
    check: Callable[[RunContext], None] | None = None
    look_ahead: Callable[[RunContext, dict[str, Ref]], None] | None = None
    trains: str = ""
    needs: str = ""

    def repo_id(self, context: RunContext) -> str:
        """``namespace/name`` of the repo that this stage commits to."""
        return context.hub.qualify(getattr(context.recipe.repos, self.repo))

    def key(self, context: RunContext, inputs: dict[str, Ref]) -> str:
        """sha256 (hex) over what of the recipe decides this stage's result and the commits of its
        inputs.
        """
        read = {role: ref.to_dict() for role, ref in inputs.items()}
        return _key(context.recipe.content(self.name), read)

    def find(self, context: RunContext, inputs: dict[str, Ref]) -> StageResult | None:
        """This stage's commit for exactly these inputs, or None when it has not been made."""
        match = self._recorded(context, self.key(context, inputs))
        if match is None:
            return None
        ref, record = match
        if self.outgrown is not None and self.outgrown(context.recipe, record):
            return None
        tag = self._tag(context, ref) if self.tagged else None
        other_addresses = other_servers(record.get("block"), context.recipe.read_by(self.name))
        return StageResult(
            self.name, ref, inputs, record["seconds"], True, record["report"], tag, other_addresses
        )

    def _recorded(self, context: RunContext, key: str) -> tuple[Ref, StageRecord] | None:
        """The newest commit of `key`, and its record.

        Its key is in a commit's title. Keys of earlier versions covered more than what decides
        the result, so where no title has `key`, the records of the stage's commits are read and
        their keys worked out anew."""
        repo_id, hub = self.repo_id(context), context.hub
        exact = hub.commits(repo_id, self._mark(key), repo_type=self.repo_type)
        for ref in exact or hub.commits(repo_id, f"[{self.name}:", repo_type=self.repo_type):
            record = self._record(hub, ref)
            if record is not None and key in (record.get("stage_key"), self._key_of(record)):
                return ref, record
        return None

    def _record(self, hub: Hub, ref: Ref) -> StageRecord | None:
        try:
            record = parse_json(hub.read(ref, f"{PROVENANCE}/{self.name}.json"))
        except (RepoMissingError, ValueError):
            return None
        return cast("StageRecord", record) if isinstance(record, dict) else None

    def _key_of(self, record: StageRecord) -> str | None:
        """The key of a record that any version wrote; None for one that is not whole."""
        try:
            plugin_digests: Any = record.get("plugins", [])
            content = content_of_stage(self.name, record["seed"], record["block"], plugin_digests)
            return _key(content, record["inputs"])
        except (KeyError, TypeError, AttributeError):
            return None

    def anew(self, context: RunContext, inputs: dict[str, Ref]) -> RunContext:
        """`context` for making this stage anew, whatever has been made of it."""
        recorded = self._recorded(context, self.key(context, inputs))
        return replace(context, supersedes=recorded[0].revision if recorded else "")

    def run(self, context: RunContext, inputs: dict[str, Ref], progress: Progress) -> StageResult:
        """Build and commit, or resume where a killed run stopped. Raises `StageError` when another
        process builds it.
        """
        key = self.key(context, inputs)
        folder = self.folder(context, key)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StageError(
                f"another process is running stage {self.name!r} in {folder}; wait for it"
            ) from None
        try:
            before = self._recorded(context, key)  # one that a cap ended
            record = self._built(context, inputs, folder, progress)
            progress(0, None, f"committing to {self.repo_id(context)}")
            ref = self._commit(context, folder / "out", key, before[0] if before else None)
            tag = self._tag(context, ref) if self.tagged else None
            shutil.rmtree(folder / "out", ignore_errors=True)
        finally:
            lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        return StageResult(self.name, ref, inputs, record["seconds"], False, record["report"], tag)

    def folder(self, context: RunContext, key: str) -> Path:
        """Where this stage builds what has `key` for the recipe's repos on this Hub."""
        hub = "local" if context.hub.embedded else context.hub.url
        facts = [key, hub, self.repo_id(context), context.recipe.repos.model_dump()]
        if context.supersedes is not None:
            facts.append(context.supersedes)
        return runs() / f"{context.recipe.name}-{self.name}-{digest(facts)[:12]}"

    def _built(
        self,
        context: RunContext,
        inputs: dict[str, Ref],
        folder: Path,
        progress: Progress,
    ) -> StageRecord:
        out, part = folder / "out", folder / "out.part"
        record_path = out / PROVENANCE / f"{self.name}.json"
        with suppress(
            OSError, ValueError
        ):  # not there, or cut short by a machine that went down: built (again) then
            finished: StageRecord = parse_json(record_path.read_text("utf-8"))
            return finished
        for stale in (part, out):
            shutil.rmtree(stale, ignore_errors=True)
        part.mkdir()
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        stopwatch = Stopwatch(folder / "seconds")
        dirs = StageDirs(part, scratch, stopwatch.kept_by(progress))
        try:
            report = self.build(context, inputs, dirs)
        finally:
            stopwatch.keep()
        (part / "report.json").unlink(missing_ok=True)  # it is in the provenance
        record = record_of(self.name, context.recipe, inputs, report, stopwatch.seconds)
        if context.supersedes is not None:
            record["supersedes"] = context.supersedes
        if self.card is not None:
            files = self._files_after(context, part)
            (part / "README.md").write_text(self.card(context, inputs, record, files), "utf-8")
        (part / PROVENANCE).mkdir(exist_ok=True)
        (part / PROVENANCE / record_path.name).write_text(
            json.dumps(record, indent=1, default=str), "utf-8"
        )
        part.rename(out)
        return record

    def _files_after(self, context: RunContext, part: Path) -> list[str]:
        """The paths that the repo holds once what is in `part` is committed, sorted."""
        built = {p.relative_to(part).as_posix() for p in part.rglob("*") if p.is_file()}
        try:
            head = context.hub.files(self.repo_id(context), repo_type=self.repo_type)
        except RepoMissingError:
            head = []
        kept_paths = {path for path in head if not any(fnmatch(path, p) for p in self.replace)}
        return sorted(kept_paths | built)

    def _commit(self, context: RunContext, out: Path, key: str, before: Ref | None) -> Ref:
        repo_id = self.repo_id(context)
        committed = context.hub.find_commit(repo_id, self._mark(key), repo_type=self.repo_type)
        if committed is not None and committed != before:
            return committed
        title = f"{self.name.capitalize()} of recipe {context.recipe.name} {self._mark(key)}"
        return context.hub.commit(
            repo_id, out, title, repo_type=self.repo_type, replace=self.replace
        )

    def _mark(self, key: str) -> str:
        return f"[{self.name}:{key[:12]}]"

    def _tag(self, context: RunContext, ref: Ref) -> str:
        return tag_version(context.hub, ref, f"{self.name} of recipe {context.recipe.name}")[0]


def record_of(
    stage: str, recipe: Recipe, inputs: Mapping[str, Ref], report: JsonObject, seconds: float
) -> StageRecord:
    """What a commit says of itself: recipe, inputs, seed, code, packages, time, and the stage's
    report.
    """
    refs = {role: ref.to_dict() for role, ref in inputs.items()}
    return {
        "stage": stage,
        "stage_key": _key(recipe.content(stage), refs),
        "recipe": {"name": recipe.name, "profile": recipe.profile},
        "digest": recipe.digest(stage),
        "block": recipe.read_by(stage),
        "plugins": plugins.digests(recipe.plugins),
        "inputs": refs,
        "seed": recipe.seed,
        "hubkit": __version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "report": report,
    }


def _key(content: JsonObject, inputs: dict[str, dict[str, str]]) -> str:
    return digest({"content": content, "inputs": inputs})


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
