"""Options that say what a conversation is worth, and who says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from hubkit.cli.eval_chat import WEAK_JUDGE

if TYPE_CHECKING:
    from hubkit.evaluation.chat import JudgeChoice
    from hubkit.recipe import Judging, RewardTerm


@dataclass(frozen=True)
class Worth:
    """What a conversation is worth, and who says so."""

    reward: Annotated[
        list[str],
        typer.Option(
            "--reward",
            "-r",
            metavar="NAME[=WEIGHT]",
            help="judges, next_turn, length, format, or a plug-in's; several are added up.",
        ),
    ] = field(default_factory=list)
    judge: Annotated[
        list[str],
        typer.Option(
            metavar="MODEL",
            help="Who judges, for judges: URL[#MODEL], REPO_ID, or deploy:REPO_ID; several: mean.",
        ),
    ] = field(default_factory=lambda: [WEAK_JUDGE])
    rubric: Annotated[
        str | None, typer.Option(metavar="FILE", help="What judges are told; default: ours.")
    ] = None
    setting: Annotated[
        list[str],
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="Of the judges, e.g. judge.token_env=KEY."
        ),
    ] = field(default_factory=list)


def reward_terms(
    worth: Worth, budget_usd: float | None = None, budget_tokens: int | None = None
) -> list[RewardTerm]:
    """The rewards; `judges` where none is named. The caps are each judge's.

    Raises:
        RecipeError: One is not known, or a judge could not be asked with its settings.
    """
    from hubkit.api.models import DEPLOYED
    from hubkit.errors import RecipeError
    from hubkit.evaluation.chat import JudgeChoice
    from hubkit.recipe import RewardTerm
    from hubkit.reinforcement import check

    judges = [
        JudgeChoice(
            judge.removeprefix(DEPLOYED),
            judge.startswith(DEPLOYED),
            worth.setting,
            budget_usd,
            budget_tokens,
        )
        for judge in worth.judge
    ]
    terms = []
    for text in worth.reward or ["judges"]:
        name, equals, weight = text.partition("=")
        try:
            factor = float(weight) if equals else 1.0
        except ValueError:
            raise RecipeError(f"--reward {text!r} must be NAME=WEIGHT, with a number") from None
        if name == "judges":
            blocks = [_block(choice) for choice in judges]
            terms.append(RewardTerm(name=name, weight=factor, judges=blocks, rubric=worth.rubric))
        else:
            terms.append(RewardTerm(name=name, weight=factor))
    check(terms)
    return terms


def _block(choice: JudgeChoice) -> Judging:
    block = choice.block()
    if not choice.hosted:
        return block
    url = choice.name.partition("#")[0]
    return block.model_copy(update={"judge": block.judge.model_copy(update={"endpoints": [url]})})
