"""A whole recipe, from Python."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from hubkit.hub import Hub, connect
from hubkit.pipeline import StageResult
from hubkit.pipeline import run as run_stages
from hubkit.progress import Progress, silent
from hubkit.recipe import Recipe, load, overridden


def run(
    recipe: Recipe | str,
    *,
    profiles: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    only: str | None = None,
    hub: Hub | None = None,
    progress: Progress = silent,
) -> list[StageResult]:
    """Run the stages of a recipe; those whose commit exists for the same values are skipped.

    Args:
        recipe: A recipe, or the name or path of one.
        profiles: Laid over a named one, in order.
        values: Single values by dotted key, laid over those.
        only: Run this stage alone; those before it must have run.
        hub: Where it reads and commits; by default the configured Hub.
        progress: Told how far a stage is.

    Returns:
        What each stage made: its commit, its inputs and its report.

    Raises:
        RecipeError: The recipe or a value is not valid.
        StageError: A stage cannot run; what ran before it stays committed.

    Example:
        >>> from hubkit import run
        >>> results = run(recipe, values={"corpus.test": 2}, only="corpus")
        >>> results[0].stage
        'corpus'
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in (values or {}).items()]
    if isinstance(recipe, str):
        recipe = load(recipe, profiles=profiles, overrides=overrides)
    else:
        recipe = overridden(recipe, overrides)
    return list(run_stages(recipe, hub or connect(), only=only, progress_for=lambda _: progress))
