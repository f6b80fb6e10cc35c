"""``hubkit train`` and ``hubkit align``: a model of a recipe, here or over processes; or what that
would take.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubkit.cli import console
from hubkit.cli.options import OutputOptions, RecipeOptions, grouped
from hubkit.cli.run import walk
from hubkit.settings import HOME

if TYPE_CHECKING:
    from hubkit.pipeline.reinforcement_plan import ReinforcementPlan
    from hubkit.training import Launch, TrainPlan

Seat = Annotated[str, typer.Argument(metavar="SEAT", help="Who to train: asker or chat.")]
Strategy = Annotated[
    str, typer.Option("--launch", metavar="HOW", help="Over processes: ddp, fsdp2 or deepspeed.")
]
Processes = Annotated[
    int | None,
    typer.Option("--processes", min=1, help="How many on each node; one per GPU by default."),
]
Nodes = Annotated[
    int, typer.Option("--nodes", min=1, help="How many nodes, inside a Slurm allocation.")
]
Slurm = Annotated[
    str, typer.Option("--slurm", metavar="FILE", help="Only write a batch script that does this.")
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="With --dry-run: plan for this GPU, e.g. A100."),
]
DeviceGib = Annotated[
    float | None, typer.Option("--device-gib", min=0.1, help="With --dry-run: its memory in GiB.")
]


@dataclass(frozen=True)
class LaunchOptions:
    """How a training is spread over processes, and whether only a batch script is written."""

    launch: Strategy = ""
    processes: Processes = None
    nodes: Nodes = 1
    slurm: Slurm = ""

    def resolve(self) -> Launch | None:
        """The launch that is asked for, if any. Raises `typer.BadParameter`."""
        if not self.launch:
            if self.processes or self.nodes > 1:
                raise typer.BadParameter(
                    "name a strategy too: --launch ddp, fsdp2 or deepspeed",
                    param_hint="--processes",
                )
            return None
        if self.launch not in ("ddp", "fsdp2", "deepspeed"):
            raise typer.BadParameter(
                f"{self.launch!r} is none of ddp, fsdp2, deepspeed", param_hint="--launch"
            )
        from hubkit.training import Launch

        return Launch(self.launch, self.processes, self.nodes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DeviceOptions:
    """The device that a training is planned for."""

    device: Device = ""
    device_gib: DeviceGib = None


@grouped
def train(
    seat: Seat,
    recipe: RecipeOptions,
    launch: LaunchOptions,
    device: DeviceOptions,
    output: OutputOptions,
) -> None:
    """Train the asker (on human turns) or the chat model (on assistant turns); push it with its
    card.

    With --dry-run: steps, tokens, memory, hours, and what would make it fail (then the exit status
    is 1)."""
    if seat not in ("asker", "chat"):
        raise typer.BadParameter(f"{seat!r} is neither asker nor chat", param_hint="SEAT")
    _run(seat, recipe, launch, device, output)


@grouped
def align(
    recipe: RecipeOptions, launch: LaunchOptions, device: DeviceOptions, output: OutputOptions
) -> None:
    """Optimise the chat model on the preference pairs (DPO); push it next to the chat model.

    With --dry-run: steps, tokens, memory, hours, and what would make it fail (then the exit status
    is 1)."""
    _run("align", recipe, launch, device, output)


def _run(
    stage: str,
    recipe: RecipeOptions,
    options: LaunchOptions,
    device: DeviceOptions,
    output: OutputOptions,
) -> None:
    """Run a stage that trains, write a batch script that does, or plan it."""
    launch = options.resolve()
    if options.slurm:
        _write_job(options.slurm, launch, stage, recipe)
    elif output.dry_run:
        _plan(stage, recipe, launch, device, json=output.json)
    else:
        walk(recipe, output, stage, launch=launch)


def _write_job(file: str, launch: Launch | None, stage: str, options: RecipeOptions) -> None:
    import os
    import sys

    from hubkit.hub import home
    from hubkit.training.slurm import script

    if launch is None:
        raise typer.BadParameter("--slurm needs --launch and --processes", param_hint="--slurm")
    name = options.load().name  # a mistake is reported now, not in the queue
    command = [
        sys.executable,
        "-m",
        "hubkit",
        *(["align"] if stage == "align" else ["train", stage]),
        options.recipe,
    ]
    for option, values in (("--profile", options.profile), ("--set", options.overrides)):
        command += [part for value in values for part in (option, value)]
    command += [
        "--launch",
        launch.strategy,
        "--processes",
        str(launch.processes),
        "--nodes",
        str(launch.nodes),
    ]
    environment = {
        key: os.environ[key]
        for key in ("HUBKIT_HUB", "HUBKIT_NAMESPACE", "HF_HOME")
        if key in os.environ
    }
    environment[HOME] = str(home())
    text = script(
        command, launch, name=f"hubkit-{name}-{stage}", home=str(home()), environment=environment
    )
    Path(file).write_text(text, "utf-8")
    console.say(f"wrote {file}; submit it with: sbatch {file}")


def _plan(
    stage: str,
    options: RecipeOptions,
    launch: Launch | None,
    device: DeviceOptions,
    *,
    json: bool,
) -> None:
    from hubkit.hub import connect
    from hubkit.pipeline import plan_training

    recipe = options.load()
    plan = plan_training(
        recipe,
        connect(),
        stage,
        launch=launch,
        device=device.device or None,
        device_gib=device.device_gib,
    )
    title = "optimising the chat model" if stage == "align" else f"training the {stage}"
    console.data(plan.to_dict()) if json else _show(f"{recipe.name}: {title}", plan)
    if plan.refusals:
        raise typer.Exit(1)


def template_rows(plan: TrainPlan | ReinforcementPlan) -> list[list[str]]:
    """How conversations are printed, and how that is known."""
    template = plan.template
    if template is None:
        return [["template", plan.unseen_template or "refused, see below"]]
    rows = [
        ["template", template.description],
        ["ends of the seat's turns", ", ".join(repr(text) for text in template.stop_texts)],
    ]
    if template.rows_compared:
        equal_rows = template.rows_compared - template.rows_differing
        rows.append(
            ["rows that the base prints the same", f"{equal_rows} of {template.rows_compared}"]
        )
    if template.examples_per_row > 1:
        rows.append(["examples of each row", f"{template.examples_per_row:.1f}, one an answer"])
    return rows


def _show(title: str, plan: TrainPlan) -> None:
    def count(value: float | None) -> str:
        return "not known yet" if value is None else f"{value:,.0f}"

    tokens, rows_are = count(plan.tokens), "rows" if plan.kind == "sft" else "pairs"
    devices = f"{plan.processes} x {plan.device}" + (
        f", {plan.device_gib:g} GiB" if plan.device_gib else ""
    )
    memory = ", ".join(
        f"{part} {gib:.1f}" for part, gib in plan.memory_gib.items() if gib and part != "total"
    )
    hours = (
        "not known"
        if plan.hours is None
        else f"{plan.hours:,.2f}, at {plan.utilisation:.0%} of its peak"
    )
    rows = [
        [
            "base",
            f"{plan.base}, {plan.parameters:,} parameters, "
            f"{plan.trainable_parameters:,} of them trained",
        ],
        [
            "data",
            f"{count(plan.rows)} {rows_are}, {tokens} tokens an epoch, "
            f"{count(plan.loss_tokens)} with loss",
        ],
        ["steps", f"{count(plan.steps)} of {plan.batch} {rows_are}, {plan.epochs or '?'} epochs"],
        ["devices", devices + (f", {plan.launch}" if plan.launch else "")],
        ["memory, GiB a device", f"{plan.memory_gib['total']:.1f} ({memory})"],
        ["hours", hours],
        *template_rows(plan),
        *([f"{plan.kind}.{key}", str(value)] for key, value in plan.config.items()),
    ]
    console.table(title, ["what", "planned"], rows)
    if plan.template and plan.template.row:
        console.say("one row as it is trained on, what carries loss between « and »:")
        console.say(plan.template.row[:2000])
    for note in [*(plan.template.notes if plan.template else []), *plan.notes]:
        console.say(f"note: {note}")
    for refusal in plan.refusals:
        console.say(f"would not run: {refusal}")
