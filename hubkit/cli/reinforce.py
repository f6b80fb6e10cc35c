"""``hubkit reinforce``: the chat model of a recipe against its frozen asker; or what that would
take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from hubkit.cli import console
from hubkit.cli.options import OutputOptions, RecipeOptions, grouped
from hubkit.cli.run import walk
from hubkit.cli.train import DeviceOptions, template_rows

if TYPE_CHECKING:
    from hubkit.pipeline.reinforcement_plan import ReinforcementPlan


@grouped
def reinforce(recipe: RecipeOptions, device: DeviceOptions, output: OutputOptions) -> None:
    """Reinforce the chat model in conversation with the frozen asker (GRPO); push it next to the
    chat model.

    With --dry-run: conversations, tokens on each side, memory, hours, the price of a step, and what
    would make it fail (then the exit status is 1)."""
    if not output.dry_run:
        walk(recipe, output, "reinforce")
        return
    from hubkit.hub import connect
    from hubkit.pipeline.reinforcement_plan import plan_reinforcement

    loaded = recipe.load()
    plan = plan_reinforcement(
        loaded, connect(), device=device.device or None, device_gib=device.device_gib
    )
    console.data(plan.to_dict()) if output.json else _show(loaded.name, plan)
    if plan.refusals:
        raise typer.Exit(1)


def _show(name: str, plan: ReinforcementPlan) -> None:
    tokens, hours = plan.tokens, plan.hours
    memory = ", ".join(f"{k} {v:.1f}" for k, v in plan.memory_gib.items() if v and k != "total")
    rows = [
        ["chat model on", plan.base],
        ["steps", f"{plan.steps:,} of {plan.conversations_per_step:g} conversations"],
        ["conversations", f"{plan.conversations:,}, the held-out ones included"],
        ["openings", f"{plan.openings:,}"],
        [
            "tokens of the chat model",
            f"{tokens['policy']:,} written, {tokens['trained']:,} trained on",
        ],
        ["tokens of askers", _both(tokens["asker"])],
        ["tokens of judges", _both(tokens["judges"])],
        ["device", plan.device],
        ["memory, GiB", f"{plan.memory_gib['total']:.1f} ({memory})"],
        [
            "hours",
            "not known"
            if hours is None
            else f"{hours['total']:,.2f}: {hours['generation']:,.2f} generation, "
            f"{hours['training']:,.2f} training",
        ],
        *template_rows(plan),
        ["US dollars a step", f"{plan.usd_per_step:,.4f}, {plan.usd:,.2f} in all"],
        *([f"grpo.{key}", str(value)] for key, value in plan.config.items()),
    ]
    console.table(f"{name}: reinforcing the chat model", ["what", "planned"], rows)
    for note in plan.notes:
        console.say(f"note: {note}")
    for refusal in plan.refusals:
        console.say(f"would not run: {refusal}")


def _both(amounts: tuple[int, int]) -> str:
    return f"{amounts[0]:,} in, {amounts[1]:,} out"
