"""Walking the stages: skip what is done, run what is not, hand each commit to the later
stages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from hubkit import publishing
from hubkit.errors import HubkitError, StageError
from hubkit.evaluation import questions
from hubkit.hub import Hub, Ref
from hubkit.pipeline.keys import require_keys
from hubkit.pipeline.stage import RunContext, Stage, StageResult, outgoing
from hubkit.pipeline.stage_table import STAGES, stages_of
from hubkit.progress import Lasting, Progress, silent
from hubkit.publishing import Benchmark, Change, PushOptions
from hubkit.recipe import Recipe
from hubkit.training import Launch, require_settings

Execute = Callable[[Stage, RunContext, dict[str, Ref], Progress], StageResult]
_CHECKING = "checking what every stage needs"


def run(
    recipe: Recipe,
    hub: Hub,
    *,
    only: str | None = None,
    launch: Launch | None = None,
    progress_for: Callable[[str], Progress] = lambda _: silent,
    execute: Execute = Stage.run,
    again: Collection[str] = (),
) -> Iterator[StageResult]:
    """Run the stages in order, yielding each result as soon as it exists; with `only`, run
    that stage alone. Stages named in `again` are made anew though they are done.

    `launch` spreads training over processes; what it makes is keyed as if one process had made it.
    `execute` runs a stage that is not done: here and now, or elsewhere
    (`hubkit.pipeline.executors.jobs.OnJobs`). A stage whose commit exists for the same recipe
    values and input commits is skipped, not run. Raises `StageError` when `only` needs a stage that
    has not run, or `again` names none, and what the stages raise; whatever was committed before
    stays, and the next run resumes from there. Before the first stage that is not done, what all
    later ones read is looked for."""
    context = RunContext(recipe, outgoing(hub, recipe), launch=launch)
    stages, looked = stages_until(recipe, only), only is not None
    coming = stages
    settings = SettingsLook(lambda: _refuse_all(coming, context))
    _refuse_unknown(again, recipe)
    for number, stage in enumerate(stages, start=1):
        if only not in (None, stage.name):
            _note_if_done(stage, context)
            continue
        progress = progress_for(stage.name)
        coming = stages[number - 1 :]
        inputs = stage.inputs(context, settings.before(progress))
        result, building = stage.find(context, inputs), context
        if stage.name in again:
            result, building = None, stage.anew(context, inputs)
        if result is None:
            if not looked:
                progress(0, None, _CHECKING)
            settings.require(progress)
            for later in () if looked else stages[number:]:
                _look_ahead(later, context)
            looked = True
            result = execute(stage, building, inputs, progress)
        if stage.settle is not None:
            stage.settle(building, inputs)
        context.commits[stage.name] = result.ref
        if result.answered_by:
            note = f"with the answers of {result.answered_by}; --again {stage.name} asks anew"
            progress(0, None, Lasting(note))
        outcome = "done before" if result.skipped else f"done in {result.seconds:.0f} s"
        progress(1, 1, outcome)
        yield result


class SettingsLook:
    """A look for what will be refused of a recipe alone, taken once: before anything is imported or
    built."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look: Callable[[], None] | None = look

    def require(self, progress: Progress) -> None:
        """Raise what is refused, unless this was asked before. It may take a while: trainers are
        loaded for it."""
        if self._look is not None:
            progress(0, None, _CHECKING)
            self._look()
        self._look = None

    def before(self, progress: Progress) -> Progress:
        """`progress` for work before which the look is taken: who reports progress is about to do
        something."""

        def looking_first(completed: float, total: float | None = None, note: str = "") -> None:
            self.require(progress)
            progress(completed, total, note)

        return looking_first


def _refuse_unknown(again: Collection[str], recipe: Recipe) -> None:
    """Raise `StageError` for a name in `again` that is no stage of `recipe`."""
    for name in again:
        stages_until(recipe, name)


def before(
    recipe: Recipe, hub: Hub, name: str, progress: Progress
) -> tuple[Stage, RunContext, dict[str, Ref]]:
    """Stage `name` as it would be run now: itself, the commits of those before it, and what it
    reads.

    Raises `StageError` when there is no such stage, or one that it needs has not run.
    """
    context = RunContext(recipe, hub)
    *earlier, last = stages_until(recipe, name)
    for stage in earlier:
        _note_if_done(stage, context)
    return last, context, last.inputs(context, progress)


def _refuse_settings(stage: Stage, context: RunContext) -> None:
    """Raise what `stage`, or its trainer, refuses of the recipe alone."""
    require_keys(context.recipe, stage.name)
    if stage.check is not None:
        stage.check(context)
    if stage.trains:
        require_settings(context.recipe, [stage.trains])


def _refuse_all(stages: Sequence[Stage], context: RunContext) -> None:
    for stage in stages:
        _refuse_settings(stage, context)


def _look_ahead(stage: Stage, context: RunContext) -> None:
    """Look for what `stage` reads that no stage makes, so that a misspelt repo, or a base whose
    template cannot be used, is told now and not hours from now.

    Raises what its inputs raise (`RepoMissingError`, `SourceError`), its own look ahead, and
    `RecipeError` for settings that its trainer refuses; what would be imported first is taken to be
    there."""
    _refuse_settings(stage, context)
    yet_to_come = {
        s.name: Ref(s.repo_id(context), s.repo_type, "") for s in stages_of(context.recipe)
    }
    with suppress(WouldImport):
        coming = replace(context, commits=yet_to_come | context.commits)
        inputs = stage.inputs(coming, refuse_import)
        if stage.look_ahead is not None:
            stage.look_ahead(coming, inputs)


def _note_if_done(stage: Stage, context: RunContext) -> None:
    """Note a stage's commit in `context`, where there is one. Nothing is imported only to find that
    there is none.
    """
    with suppress(WouldImport):
        if result := stage.find(context, stage.inputs(context, refuse_import)):
            context.commits[stage.name] = result.ref


def publish(
    recipe: Recipe,
    hub: Hub,
    *,
    target: Hub | None = None,
    public: bool = False,
    allow: Iterable[str] = (),
    dry_run: bool = False,
    progress: Progress = silent,
) -> list[Change]:
    """Make the cards of everything that the stages made final, tie it into a collection, push the
    Spaces and the benchmark's questions.

    With `target`, another Hub, all of it is copied there. Raises `StageError` when a stage has not
    run for this recipe, and what `hubkit.publishing.publish` raises."""
    outputs = {}
    context = RunContext(recipe, hub)
    for stage in stages_of(recipe):
        _note_if_done(stage, context)
        if stage.name not in context.commits:
            raise StageError(
                f"stage {stage.name!r} of recipe {recipe.name!r} has not run for these values; "
                f"run `hubkit run {recipe.name}` first, with the same --profile and --set"
            )
        outputs[stage.name] = context.commits[stage.name]
    return publishing.publish(
        outgoing(target or hub, recipe),
        recipe,
        outputs,
        source=hub,
        options=PushOptions(
            public=public,
            allow=allow,
            benchmark=Benchmark(questions.files(), questions.summary()),
        ),
        dry_run=dry_run,
        progress=progress,
    )


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage in a plan: ``done`` (with its commit), ``to run``, or ``to run`` because a stage
    before it will.
    """

    stage: str
    repo_id: str
    state: str
    commit: str = ""


def plan(
    recipe: Recipe, hub: Hub, *, only: str | None = None, again: Collection[str] = ()
) -> list[Planned]:
    """What `run` would do now, without doing it: nothing is downloaded, built or committed."""
    context = RunContext(recipe, outgoing(hub, recipe))
    _refuse_unknown(again, recipe)
    planned: list[Planned] = []
    for stage in stages_until(recipe, only):
        try:
            result = _existing_result(stage, context)
            result = None if stage.name in again else result
        except HubkitError as error:
            planned.append(Planned(stage.name, stage.repo_id(context), f"cannot run: {error}"))
            continue
        if result:
            context.commits[stage.name] = result.ref
        planned.append(
            Planned(
                stage.name,
                stage.repo_id(context),
                "done" if result else "to run",
                str(result.ref) if result else "",
            )
        )
    return planned


def _existing_result(stage: Stage, context: RunContext) -> StageResult | None:
    """What `stage` has made already. Raises what `_look_ahead` raises when it could not be run."""
    try:
        result = stage.find(context, stage.inputs(context, refuse_import))
    except WouldImport:
        result = None
    except StageError:  # one before it has not run
        _look_ahead(stage, context)
        return None
    if result is None:
        _refuse_settings(stage, context)
    return result


class WouldImport(Exception):
    """A plan met an input that a run would import first."""


def refuse_import(completed: float, total: float | None = None, note: str = "") -> None:
    """A `Progress` for plans: who reports progress is about to do something."""
    raise WouldImport


def stages_until(recipe: Recipe, until: str | None) -> tuple[Stage, ...]:
    """The stages of `recipe` up to and with `until` (None: all). Raises `StageError` when it has no
    such stage.
    """
    stages = stages_of(recipe)
    names = [stage.name for stage in stages]
    if until is None:
        return stages
    if until not in names:
        lacking = next((s.needs for s in STAGES if s.name == until), "")
        why = (
            f": it has no {lacking!r} block; lay one over it with a profile or --set"
            if lacking
            else ""
        )
        raise StageError(
            f"recipe {recipe.name!r} has no stage {until!r}{why}. Its stages are {', '.join(names)}"
        )
    return stages[: names.index(until) + 1]
