"""``hubkit study``: experiments over a recipe, such as what asking is worth to a chat model
(``utility``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubkit.cli import console
from hubkit.cli.options import OutputOptions, RecipeOptions, grouped

if TYPE_CHECKING:
    from hubkit.hub import Hub
    from hubkit.pipeline.stage import StageResult
    from hubkit.recipe import Recipe

EXAMPLE = "Example: hubkit study utility parrot --profile laptop"

app = typer.Typer(
    name="study",
    help="Experiments over a recipe: utility (what asking is worth to a chat model).",
    epilog=EXAMPLE,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def study() -> None:
    """Experiments over a recipe."""


@app.command("utility", epilog=EXAMPLE)
@grouped
def utility(
    recipe: RecipeOptions,
    output: OutputOptions,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write data, plot and card there.")
    ] = None,
) -> None:
    """Train students on a teacher's answers, in arms that differ only in who asked, and compare
    their loss on its answers to real people's follow-ups.

    What is done is skipped; a run that was stopped resumes. Profiles of the study: laptop
    (minutes), desk (hours)."""
    from hubkit.hub import connect
    from hubkit.pipeline import studies
    from hubkit.recipe import load_study

    loaded = load_study(
        "utility", recipe.recipe, profiles=recipe.profile, overrides=recipe.overrides
    )
    hub = connect()
    if output.dry_run:
        _show_plan(loaded, studies.plan(loaded, hub), json=output.json)
        return
    with console.bars(quiet=output.json) as bar_for:
        parts = list(studies.run(loaded, hub, progress_for=bar_for))
    _, result = parts[-1]
    files = studies.write(hub, result.ref, folder) if folder else []
    if output.print(
        {
            "recipe": loaded.name,
            "hub": hub.url,
            "parts": [{"part": about, **part.to_dict()} for about, part in parts],
            "results": result.report,
        }
    ):
        return
    _show(hub, result)
    for file in files:
        console.say(f"wrote {file}")


def _show_plan(recipe: Recipe, parts: list[tuple[str, str]], *, json: bool) -> None:
    study = recipe.study
    assert study is not None
    if json:
        console.data([{"part": part, "state": state} for part, state in parts])
        return
    more = f", more until every arm has {study.at_least} in common" if study.at_least else ""
    title = (
        f"{study.dialogues} openings{more}; {study.turns} answers to each in every arm; "
        f"{len(study.seeds)} students an arm; {study.conversations} held-out conversations"
    )
    console.table(title, ["part", "state"], [list(part) for part in parts])


def _show(hub: Hub, result: StageResult) -> None:
    from hubkit.evaluation.utility import curve_table, table, verdicts

    report = result.report
    if curve := curve_table(report):
        console.table(*curve)
    console.table(*table(report))
    for sentence in verdicts(report):
        console.line(sentence)
    console.say(f"results: {hub.page(result.ref)}")
