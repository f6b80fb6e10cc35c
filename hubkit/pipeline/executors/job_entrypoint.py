"""`python -m hubkit.pipeline.executors.job_entrypoint STAGE [--anew]`: one stage of a recipe, in a
Hub Job; with ``--anew``, though it is done.

The recipe comes as JSON in the environment (`RECIPE`), with the Hub and the namespace; everything
else is on the Hub. Each line of the log that is JSON with the key ``hubkit`` is for the driver:
``done`` with the stage's commit, or ``failed`` with the sentence that says why. A job that ends
without either was failed by the place it ran at."""

from __future__ import annotations

import json
import os
import sys
from functools import partial

from hubkit import plugins
from hubkit.errors import DiskFullError, HubkitError, HubUnreachableError
from hubkit.hub import connect
from hubkit.pipeline.runner import run
from hubkit.progress import Log, Progress
from hubkit.recipe import Recipe
from hubkit.settings import PLUGINS, RECIPE, value
from hubkit.training import Launch

MARK = "hubkit"
ANEW = "--anew"
_EVERY_S = 5.0


def main() -> int:
    """Run the stage that the command line names; 0 when its commit exists."""
    try:
        plugins.restore(json.loads(value(PLUGINS, "[]")))
        recipe = Recipe.model_validate_json(os.environ[RECIPE])
        stage, *options = sys.argv[1:]
        for result in run(
            recipe,
            connect(),
            only=stage,
            launch=spread(recipe, stage),
            progress_for=_log_progress,
            again=[stage] if ANEW in options else [],
        ):
            _say({MARK: "done", "stage": result.stage, "commit": result.ref.revision})
    except (HubUnreachableError, DiskFullError, MemoryError):
        raise  # the place's fault: without the mark, the driver tries once more
    except HubkitError as error:
        _say({MARK: "failed", "kind": type(error).__name__, "message": str(error)})
        return error.exit_code
    return 0


def spread(recipe: Recipe, stage: str) -> Launch | None:
    """How a stage that trains uses all of this machine's GPUs: as the recipe expects, else sharded;
    None for one.
    """
    blocks = {"asker": recipe.asker, "chat": recipe.chat, "align": recipe.preference}
    if stage not in blocks:
        return None
    import torch

    count = torch.cuda.device_count()
    expected = block.expected if (block := blocks[stage]) else None
    return Launch((expected and expected.launch) or "fsdp2", count) if count > 1 else None


def _say(line: dict[str, str]) -> None:
    print(json.dumps(line), flush=True)


def _log_progress(name: str) -> Progress:
    """Progress as lines of the log, not more often than one looks there."""
    return Log(name, partial(print, flush=True), every_s=_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
