"""``--on jobs``: what ``hubkit run`` and the stage verbs need to run stages as Hub Jobs, and what
that would cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubkit.cli import console
from hubkit.errors import RecipeError

if TYPE_CHECKING:
    from hubkit.cloud import CleanupResult
    from hubkit.hub import Hub
    from hubkit.pipeline import OnJobs
    from hubkit.pipeline.runner import Planned
    from hubkit.recipe import Recipe

On = Annotated[
    str, typer.Option("--on", metavar="WHERE", help="Where stages run: here, or jobs (Hub Jobs).")
]
Flavors = Annotated[
    list[str],
    typer.Option(
        "--flavor",
        metavar="[STAGE=]FLAVOR",
        help="A job's hardware, e.g. asker=a100x8; repeatable.",
    ),
]
Requirement = Annotated[
    str, typer.Option("--requirement", help="What jobs install for hubkit; default: this version.")
]
Image = Annotated[
    str, typer.Option("--image", help="Run jobs in this image instead, which has hubkit in it.")
]
Cancel = Annotated[
    bool,
    typer.Option(
        "--cancel-on-interrupt", help="Ctrl-C cancels the job; otherwise it keeps running."
    ),
]


@dataclass(frozen=True)
class JobOptions:
    """Where stages run, and what jobs need."""

    on: On = "here"
    flavor: Flavors = field(default_factory=list)
    requirement: Requirement = ""
    image: Image = ""
    cancel_on_interrupt: Cancel = False

    def executor(self, recipe: Recipe) -> OnJobs | None:
        """How stages run as jobs, or None for here. Raises `RecipeError` for a place or flavor that
        is not known.
        """
        if self.on == "here":
            return None
        if self.on != "jobs":
            raise RecipeError(f"--on {self.on!r} is neither here nor jobs")
        from hubkit import cloud
        from hubkit.pipeline import OnJobs, costs
        from hubkit.recipe import STAGES

        named = costs.flavors(recipe)
        for text in self.flavor:
            stage, _, name = text.rpartition("=")
            if stage and stage not in STAGES:
                raise RecipeError(
                    f"--flavor {text!r}: no stage {stage!r}; stages are {', '.join(STAGES)}"
                )
            if not stage:
                named = {}
            named[stage] = cloud.flavor(name).name
        options: dict[str, Any] = {"requirement": self.requirement} if self.requirement else {}
        return OnJobs(
            flavors=named,
            image=self.image or None,
            cancel_on_interrupt=self.cancel_on_interrupt,
            on_line=lambda stage, line: (
                None if line.startswith("{") else console.say(f"{stage} | {line}")
            ),
            **options,
        )


def show_costs(
    recipe: Recipe,
    hub: Hub,
    on_jobs: OnJobs,
    planned: Sequence[Planned],
    *,
    json: bool,
) -> None:
    """Every stage with its hours and price, as a table or as JSON."""
    from hubkit.cloud import prices
    from hubkit.pipeline import costs

    stage_costs = costs.costs(recipe, hub, on_jobs, planned=planned)
    hours, usd, whole = costs.total(stage_costs)
    if json:
        console.data({
            "stages": [cost.to_dict() for cost in stage_costs], "hours": hours, "usd": usd,
            "complete": whole, "prices": prices.date(), "assumptions": costs.assumptions(),
        })  # fmt: skip
        return
    rows = [
        [
            c.stage,
            c.state.partition(":")[0],
            c.where,
            _number(c.hours, "{:,.1f}"),
            _number(c.usd, "{:,.2f}"),
            c.note,
        ]
        for c in stage_costs
    ]
    rows.append(
        ["all", "", "", f"{hours:,.1f}", f"{usd:,.2f}" + ("" if whole else " and more"), ""]
    )
    console.table(
        f"{recipe.name} as jobs on {hub.url}",
        ["stage", "state", "where", "hours", "USD", "what"],
        rows,
    )
    for cost in stage_costs:
        if ":" in cost.state:
            console.say(f"{cost.stage}: {cost.state}")
    console.say(costs.priced_on() + ("; the embedded Hub costs nothing" if hub.embedded else ""))


def end_what_was_left(hub: Hub) -> None:
    """End the endpoints of killed runs, which cost money until the next command does."""
    from hubkit import cloud

    show_cleanup(cloud.reap(hub))


def say_endpoints(recipe: Recipe, hub: Hub) -> None:
    """Before a rollout whose seats are deployed: on what, at which price, and what becomes of the
    endpoints.
    """
    from hubkit.cloud import hardware, prices
    from hubkit.recipe import DEPLOY, Deploy

    for seat, config in (("asker", recipe.rollout.asker), ("chat", recipe.rollout.chat)):
        if DEPLOY in config.endpoints:
            terms = config.deploy or Deploy()
            machine = hardware(terms.hardware)
            many = f"{terms.replicas} x " if terms.replicas > 1 else ""
            local_note = "; the embedded Hub costs nothing" if hub.embedded else ""
            console.say(
                f"{seat}: an endpoint ({terms.engine}) on {many}{machine} while the rollout runs, "
                f"then {terms.after}d; ${machine.usd_per_hour * terms.replicas:,.2f} an hour at "
                f"most (prices of {prices.date()}{local_note})"
            )


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else form.format(value)


def show_cleanup(results: Iterable[CleanupResult]) -> None:
    """What lost runs left, and what became of it."""
    for result in results:
        console.say(f"{result.endpoint}: its run is gone; {result.outcome}")
