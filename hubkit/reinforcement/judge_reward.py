"""The reward of judges: each reads the intent and the whole conversation, and their ratings are
averaged."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib import resources

from hubkit.conversation import Message
from hubkit.errors import EndpointUnreachableError, EvalError, RecipeError
from hubkit.judging import Judge, judging, rating
from hubkit.reinforcement.rewards import (
    Entered,
    Episode,
    Masked,
    Reward,
    TermContext,
    Value,
    register,
)
from hubkit.serving.reply_journal import Journal
from hubkit.untrusted import JsonObject

HIGHEST = 10.0
_PLACEHOLDER = re.compile(r"\{(intent|conversation)\}")
_SPEAKERS = {"user": "User", "assistant": "Assistant"}


@register
def judges(context: TermContext) -> Reward:
    """The mean rating of all judges, over 10: ``r = (1/J) * sum_j rating_j / 10``, ratings from 1
    to 10 (after arXiv 2605.09808, which rates from 0).

    A conversation that one of them does not rate (no answer in time, a refusal, a reply out of
    schema, a cap) is masked: the mean of the others would favour whoever a strict judge skipped.
    """
    if not context.judges:
        raise RecipeError("reinforce.rewards: judges names no judge; list them under its judges")
    return JudgeReward(context)


def shipped_rubric() -> str:
    """What judges are told where a recipe names no file."""
    return (resources.files("hubkit.reinforcement") / "rubric.md").read_text("utf-8")


class JudgeReward(Entered):
    """The judges of one term. Each reply is in a journal before it counts."""

    def __init__(self, context: TermContext) -> None:
        self._context = context
        self._rubric = context.term.rubric or shipped_rubric()
        if "{conversation}" not in self._rubric:
            raise RecipeError("reinforce.rewards: the rubric does not say {conversation}")
        self._judges: list[Judge] = []

    async def enter(self, stack: AsyncExitStack) -> None:
        """Reach the judges."""
        blocks = self._context.term.judges
        for number, (block, (model, identity)) in enumerate(
            zip(blocks, self._context.judges, strict=True)
        ):
            folder = self._context.folder / f"judge-{number}"
            journal = stack.enter_context(Journal(folder, {"layout": 1}))
            judge = judging(block, model, journal, identity=identity, run=self._context.run)
            self._judges.append(await stack.enter_async_context(judge))

    async def score(self, episodes: Sequence[Episode]) -> list[Value]:
        """All judges on all episodes, at their own pace."""
        return list(await asyncio.gather(*map(self._of_all, episodes)))

    async def _of_all(self, episode: Episode) -> Value:
        ratings = await asyncio.gather(*(self._rating(judge, episode) for judge in self._judges))
        missing = [value for value in ratings if isinstance(value, Masked)]
        if missing:
            return missing[0]
        values = [value for value in ratings if not isinstance(value, Masked)]
        return sum(values) / len(values) / HIGHEST

    async def _rating(self, judge: Judge, episode: Episode) -> Value:
        try:
            verdict = await judge.answer(rating, self.request(episode), conversation=episode.id)
        except EndpointUnreachableError:
            return Masked("judge_unreachable")
        except EvalError:  # ten in a row that cannot be read
            return Masked("judge_unreadable")
        if verdict.rating is None:
            return Masked(f"judge_{verdict.reason}")
        return verdict.rating

    def request(self, episode: Episode) -> list[Message]:
        """What a judge is asked about `episode`. One pass fills in, so that braces in what people
        and models wrote stay as they are."""
        values = {
            "intent": episode.intent or "It was not written down: infer it from their turns.",
            "conversation": "\n\n".join(
                f"### {_SPEAKERS[m['role']]}:\n{m['content']}"
                for m in episode.messages
                if m["role"] in _SPEAKERS
            ),
        }
        text = _PLACEHOLDER.sub(lambda match: values[match[1]], self._rubric)
        return [{"role": "user", "content": text}]

    @property
    def stats(self) -> list[JsonObject]:
        """What each judge was asked, and what it took."""
        return [judge.to_dict() for judge in self._judges]
