"""The asker's scorecard as a part of the eval stage: who plays, and what the stage keeps of it.

The asker that was trained, and its base that is only told to play the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubkit.evaluation.scorecard import scorecard
from hubkit.hub import Ref
from hubkit.metrics import scorecards
from hubkit.pipeline.seated import BASE, Asker, served
from hubkit.pipeline.stage import Context, Work
from hubkit.publishing.metadata import is_adapter
from hubkit.publishing.scorecard import PICTURE
from hubkit.recipe import DEPLOY, EMBEDDED, Deploy, Scorecard

ASKER = "asker"
_ARMS = {ASKER: "trained", BASE: "prompted"}


def card(
    context: Context,
    block: Scorecard,
    inputs: Mapping[str, Ref],
    held_out: list[Path],
    losses: Mapping[str, Any],
    work: Work,
) -> dict[str, Any]:
    """The scorecard of asker and base on the recipe's held-out conversations, as results hold it;
    its picture is built.

    `losses` are the asker's in the same results: its perplexity and the base's are taken from
    there."""
    recipe, tokens = context.recipe, context.recipe.rollout.asker.context
    arms = {name: losses["arms"].get(arm) or {} for name, arm in _ARMS.items()}
    asked = _askers(context, block, inputs)
    with served(
        context.hub, asked, work.scratch, work.progress, slots=block.in_flight, tokens=tokens
    ) as askers:
        made = scorecard(
            block,
            held_out,
            [asker.player(arms[asker.name].get("perplexity")) for asker in askers],
            seed=recipe.seed,
            journal=work.scratch / "scorecard",
            intent_column=recipe.asker.intent_column,
            source={**inputs["corpus"].to_dict(), "split": "test"},
            progress=work.progress,
        )
    (work.out / PICTURE).write_bytes(scorecards.picture(made))
    return made.to_dict()


def _askers(context: Context, block: Scorecard, inputs: Mapping[str, Ref]) -> list[Asker]:
    """Asker and base, each reached as the recipe says: an asker that sits in the rollout's seat as
    it is there.
    """
    training, seat = context.recipe.asker, context.recipe.rollout.asker
    base = inputs["asker base"]
    told: Any = {}
    if seat.repo == "asker":
        told = _reached(seat.endpoints, seat.deploy, seat.profile, seat.model, seat.token_env)
    asker = Asker(
        ASKER,
        inputs["asker"],
        base if is_adapter(training) else None,
        training.system,
        training.end_mark,
        **told,
    )
    base_told = _reached(block.base_endpoints, seat.deploy)
    return [asker, Asker(BASE, base, None, training.system, prompted=True, **base_told)]


def _reached(
    urls: list[str],
    terms: Deploy | None,
    profile: str = "tgi",
    model: str = "tgi",
    token_env: str | None = None,
) -> Any:
    if EMBEDDED in urls:
        return {}
    if DEPLOY in urls:
        return {"deploy": terms or Deploy()}
    return {"urls": tuple(urls), "profile": profile, "served_as": model, "token_env": token_env}
