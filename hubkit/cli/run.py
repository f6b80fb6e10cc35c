"""``hubkit run``, and stages as verbs (``train``, ``rollout`` and ``eval`` have files of their
own).
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubkit.cli import console, job_options
from hubkit.cli.job_options import JobOptions
from hubkit.cli.options import OutputOptions, RecipeOptions, grouped
from hubkit.untrusted import JsonObject, number_in, object_in

if TYPE_CHECKING:
    from hubkit.hub import Hub
    from hubkit.pipeline import StageResult
    from hubkit.pipeline.reinforcement_plan import ReinforcementPlan
    from hubkit.pipeline.runner import Planned
    from hubkit.publishing import Change
    from hubkit.recipe import Recipe
    from hubkit.training import Launch, TrainPlan

_ROW_CHARS = 600
Again = Annotated[
    list[str],
    typer.Option(
        "--again", metavar="STAGE", help="Make this stage anew though it is done; repeatable."
    ),
]


@dataclass(frozen=True)
class AgainOptions:
    """Which stages are made though they are done."""

    again: Again = field(default_factory=list)


FiltersOn = Annotated[
    str | None,
    typer.Option("--on", metavar="WHERE", help="Where filters run: here, or ray (a cluster)."),
]
VERBS = {
    "corpus": ("corpus", "Read, clean and split human conversations; commit them as a dataset."),
    "curate": ("curate", "Filter the raw dialogues; commit what is kept, tag it as a version."),
    "prefer": (
        "prefer",
        "Make preference pairs of questions that need their context; commit them as a dataset.",
    ),
}


def register(app: typer.Typer) -> None:
    """Add ``run``, ``recipes`` and a command for most stages to `app`."""
    app.command(
        "run", epilog="Example: hubkit run parrot --profile laptop --set rollout.dialogues=48"
    )(grouped(run))
    for verb, (stage, help_text) in VERBS.items():
        profiles = " --profile capo-laptop" if stage == "prefer" else ""
        epilog = f"Example: hubkit {verb} parrot --profile laptop{profiles}"
        app.command(verb, help=help_text, epilog=epilog)(stage_verb(stage))
    app.command("recipes", epilog="Example: hubkit recipes")(recipes)


def run(
    recipe: RecipeOptions, jobs: JobOptions, output: OutputOptions, stages: AgainOptions
) -> None:
    """Walk all stages of a recipe: corpus, asker, rollout, curate, chat, (prefer, align,
    reinforce,) eval, publish.

    What is done is skipped, also where another server or model answers at the recipe's addresses
    now: the run says whose answers it reuses, and --again makes a stage anew.
    """
    walk(recipe, output, jobs=jobs, again=stages.again)


def stage_verb(stage: str) -> Callable[..., None]:
    """The command that walks to one stage of a recipe."""

    def command(recipe: RecipeOptions, output: OutputOptions) -> None:
        walk(recipe, output, stage)

    def filtering(recipe: RecipeOptions, output: OutputOptions, on: FiltersOn = None) -> None:
        walk(recipe, output, stage, values=[f"{stage}.on={on}"] if on else [])

    return grouped(filtering if stage in ("corpus", "curate") else command)


def recipes() -> None:
    """List the recipes and profiles that ship."""
    from hubkit.recipe import available, summary

    rows = [
        [kind.removesuffix("s"), name, summary(name)]
        for kind, names in available().items()
        for name in names
    ]
    console.table("Shipped", ["kind", "name", "what it is"], rows)
    console.line("hubkit run RECIPE --profile PROFILE --dry-run says what it would do.")


def walk(
    options: RecipeOptions,
    output: OutputOptions,
    stage: str | None = None,
    *,
    values: Sequence[str] = (),
    launch: Launch | None = None,
    jobs: JobOptions | None = None,
    again: Sequence[str] = (),
) -> None:
    """Run the stages of a recipe, or `stage` alone, or say what would run, and print the result.

    Args:
        options: The recipe.
        output: Whether anything is done, and how it is printed.
        stage: Only this one.
        values: Further values, laid over the recipe as ``key=value``.
        launch: How training is spread over processes.
        jobs: Where stages run.
        again: Stages that are made anew though they are done.
    """
    from hubkit import pipeline
    from hubkit.hub import connect
    from hubkit.pipeline.executors.jobs import check, secrets_of

    recipe, dry_run, json = options.load(*values), output.dry_run, output.json
    on_jobs = jobs.executor(recipe) if jobs else None
    hub = connect()
    if on_jobs:
        planned = pipeline.plan(recipe, hub, only=stage, again=again)
        planned = [p for p in planned if stage in (None, p.stage)]
        for step in planned:
            if step.state != "done":
                secrets_of(hub, recipe, step.stage)
        if dry_run or not json:
            job_options.show_costs(recipe, hub, on_jobs, planned, json=json)
        if dry_run:
            return
        check(hub, on_jobs)
    if dry_run:
        _show_plan(recipe, hub, stage, again, json=json)
        return
    job_options.end_what_was_left(hub)
    if stage in (None, "rollout"):
        job_options.say_endpoints(recipe, hub)
    with console.bars(quiet=json) as bar_for:
        execute = on_jobs or pipeline.Stage.run
        results = list(
            pipeline.run(
                recipe,
                hub,
                only=stage,
                launch=launch,
                progress_for=bar_for,
                execute=execute,
                again=again,
            )
        )
        changes = [] if stage else pipeline.publish(recipe, hub, progress=bar_for("publish"))
    if json:
        stages = [m.to_dict() for m in results]
        console.data(
            {
                "recipe": recipe.name,
                "hub": hub.url,
                "stages": stages,
                "published": [c.to_dict() for c in changes],
            }
        )
        return
    _show(recipe, hub, results)
    if stage is None:
        _show_next(recipe, hub, results, changes)


def _show_plan(
    recipe: Recipe, hub: Hub, stage: str | None, again: Sequence[str], *, json: bool
) -> None:
    """What would run, with hours and memory of trainings;
    exit status 1 where something cannot run."""
    from hubkit import pipeline

    planned = pipeline.plan(recipe, hub, only=stage, again=again)
    if stage is not None:
        planned = [p for p in planned if p.stage == stage]
    trainings: dict[str, TrainPlan | ReinforcementPlan | str] = {
        **pipeline.plan_trainings(recipe, hub, planned)
    }
    if any(p.stage == "reinforce" and p.state == "to run" for p in planned):
        trainings["reinforce"] = _plan_reinforcement(recipe, hub)
    refusals = {
        name: [training] if isinstance(training, str) else training.refusals
        for name, training in trainings.items()
    }
    seats = pipeline.plan_seats(recipe, hub, planned)
    if unanswered := [reason for seat in seats for reason in seat.refusals]:
        refusals["rollout"] = [*refusals.get("rollout", []), *unanswered]
    if json:
        console.data(
            [
                asdict(p)
                | {key: _planned(trainings.get(p.stage), key) for key in ("hours", "memory_gib")}
                | {"refusals": refusals.get(p.stage, [])}
                | ({"seats": [s.to_dict() for s in seats]} if p.stage == "rollout" else {})
                for p in planned
            ]
        )
    else:
        for seat in seats:
            console.say(f"{seat.seat}: {seat.model}, engine {seat.engine}: {seat.reason}")
        rows = [
            [
                p.stage,
                p.repo_id,
                p.state.partition(":")[0],
                p.commit.rpartition("@")[2][:8],
                _rounded(_planned(trainings.get(p.stage), "hours")),
                _rounded(_planned(trainings.get(p.stage), "memory_gib")),
            ]
            for p in planned
        ]
        title = f"{recipe.name}: what would run on {hub.url}"
        console.table(title, ["stage", "repo", "state", "commit", "hours", "GiB"], rows)
        rows_said: set[str] = set()
        for name, training in trainings.items():
            if isinstance(training, str):
                continue
            if training.unseen_template:
                console.say(f"train {name}: chat template: {training.unseen_template}")
            if template := training.template:
                _say_template(f"train {name}", template.words, template.row, rows_said)
        for seat in seats:
            _say_template(seat.seat, seat.template, seat.row, rows_said)
        for sentence, names in _reasons(planned, refusals).items():
            console.say(f"{', '.join(names)} cannot run: {sentence}")
        if stage in (None, "rollout"):
            job_options.say_endpoints(recipe, hub)
    if any(refusals.values()) or any(p.state.startswith("cannot run") for p in planned):
        raise typer.Exit(1)


def _say_template(name: str, description: str, row: str | None, said: set[str]) -> None:
    """Where a chat template comes from, and a row with the parts marked that carry loss or that the
    seat writes; a row that was `said` before is not repeated."""
    console.say(f"{name}: chat template: {description}")
    if row and row not in said:
        said.add(row)
        console.say(row[:_ROW_CHARS])


def _reasons(
    planned: Sequence[Planned], refusals: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Each sentence once, with the stages that it keeps from running."""
    reasons: dict[str, list[str]] = {}
    for stage in planned:
        _, _, sentence = stage.state.partition("cannot run: ")
        for reason in dict.fromkeys([sentence, *refusals.get(stage.stage, [])]):
            if reason:
                reasons.setdefault(reason, []).append(stage.stage)
    return reasons


def _plan_reinforcement(recipe: Recipe, hub: Hub) -> ReinforcementPlan | str:
    from hubkit.errors import HubkitError
    from hubkit.pipeline.reinforcement_plan import plan_reinforcement

    try:
        return plan_reinforcement(recipe, hub)
    except HubkitError as error:
        return str(error)


def _planned(plan: TrainPlan | ReinforcementPlan | str | None, key: str) -> float | None:
    """Hours, or GiB on each device, of a training."""
    if plan is None or isinstance(plan, str):
        return None
    if key != "hours":
        return plan.memory_gib["total"]
    return plan.hours["total"] if isinstance(plan.hours, dict) else plan.hours


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def _show(recipe: Recipe, hub: Hub, results: list[StageResult]) -> None:
    console.table(
        f"{recipe.name}: what was made on {hub.url}",
        ["stage", "repo", "commit", "from", "seconds"],
        [
            [
                m.stage,
                m.ref.repo_id + (f" ({m.tag})" if m.tag else ""),
                m.ref.revision[:8],
                ", ".join(f"{role} {ref.revision[:8]}" for role, ref in m.inputs.items()),
                "done before" if m.skipped else f"{m.seconds:.0f}",
            ]
            for m in results
        ],
    )


def _show_next(recipe: Recipe, hub: Hub, results: list[StageResult], changes: list[Change]) -> None:
    """What the held-out losses say, what was published, and three lines to paste."""
    by_stage = {m.stage: m for m in results}
    for seat, turns in (("asker", "human"), ("chat", "assistant"), ("aligned", "assistant")):
        if seat in by_stage["eval"].report:
            console.line(f"{seat:<6} {_verdict(object_in(by_stage['eval'].report, seat), turns)}")
    if recipe.asker.end_mark:
        from hubkit.publishing.card_data import endings

        reports = {name: outcome.report for name, outcome in by_stage.items()}
        for sentence in endings(reports, by_stage["eval"].report):
            console.line(f"ends   {sentence}")
    if "reinforce" in by_stage:
        reinforcement = object_in(by_stage["reinforce"].report, "reinforcement")
        console.line(f"reward {_reward_verdict(reinforcement)}")
    changes = [change for change in changes if change.action != "leave"]
    pages = len({change.repo_id for change in changes})
    console.line(
        f"cards  {len(changes)} changes in {pages} repos"
        if changes
        else "cards  all final, nothing to change"
    )
    dialogues, tag = by_stage["curate"], by_stage["curate"].tag
    python, command = _runnable()
    load = (
        f"from hubkit import load_dataset; print(load_dataset('{recipe.repos.dialogues}', "
        f"revision='{tag}'))"
    )
    path = hub.page(dialogues.ref).removeprefix(hub.url)
    address = f'"$({command} hub start){path}"' if hub.embedded else f"{hub.url}{path}"
    console.line("")
    console.line("Use it:")
    console.line(f'  {python} -c "{load}"')
    console.line(
        f"  {command} serve {by_stage['asker'].ref.repo_id}        # then ask "
        "it at /v1/chat/completions"
    )
    console.line(f"  {python} -m webbrowser {address}")


def _runnable() -> tuple[str, str]:
    """The words that call this Python and this hubkit from the person's shell."""
    folder, python = Path.cwd(), Path(sys.executable)
    command = python.with_name("hubkit")

    def word(program: Path, name: str) -> str:
        on_path = shutil.which(name)
        if on_path is not None and Path(on_path).absolute() == program:
            return name
        return shlex.quote(
            str(program.relative_to(folder) if folder in program.parents else program)
        )

    python_word = word(python, "python")
    return python_word, word(command, "hubkit") if command.exists() else f"{python_word} -m hubkit"


def _reward_verdict(reinforcement: JsonObject) -> str:
    from hubkit.statistics import noise

    difference = object_in(reinforcement, "difference")
    if difference.get("difference") is None:
        return "not measured before and after"
    ends = ""
    if difference["low"] is not None:
        low, high = number_in(difference, "low"), number_in(difference, "high")
        ends = f" [{low:+.3f}, {high:+.3f}]"
    before, after = (
        number_in(object_in(reinforcement, when), "reward") for when in ("before", "after")
    )
    return (
        f"on {difference['clusters']} held-out openings {before:.3f} before, "
        f"{after:.3f} after: {number_in(difference, 'difference'):+.3f}{ends}, "
        f"{noise(bool(difference['outside_noise']))}"
    )


def _verdict(seat: JsonObject, turns: str) -> str:
    from hubkit.statistics import noise

    arms = object_in(seat, "arms")
    losses = {arm: number_in(object_in(arms, arm), "loss") for arm in arms}
    rival = "chat" if "chat" in losses else "base"
    against = object_in(object_in(seat, "against"), rival)
    words = noise(bool(against["outside_noise"]))
    gap, low, high = (number_in(against, key) for key in ("difference", "low", "high"))
    return (
        f"{losses['trained']:.3f} nats per {turns}-turn token on held-out conversations, "
        f"{rival} {losses[rival]:.3f}: {gap:+.3f} [{low:+.3f}, "
        f"{high:+.3f}] over {against['conversations']} conversations, {words}"
    )
