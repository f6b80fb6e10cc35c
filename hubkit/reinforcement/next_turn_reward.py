"""The reward that needs no judge: how likely the frozen asker finds what a person did next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from hubkit.errors import RecipeError
from hubkit.reinforcement.rewards import (
    Episode,
    Likelihood,
    Masked,
    Reward,
    TermContext,
    Value,
    register,
)


@register
def next_turn(context: TermContext, of: Literal["turn", "end"] = "turn") -> Reward:
    """How likely the frozen asker finds the person's real next turn, or ending the conversation,
    given the chat model's answers. No judge is asked.

    With ``of: turn``, for an opening x, the chat model's first answer a, and the n tokens y of what
    the person really said next in the conversation that x is from (closing tokens included):

        ``r = (1/n) * sum_t log p_asker(y_t | intent, x, a, y_<t)``    (nats per token, at most 0)

    An answer after which a real person's turn is expected is one that leads where a real answer
    led. Later answers of the conversation are answers to simulated turns, of which there is no real
    continuation; they share the advantage of the first.

    With ``of: end``, for an asker that was trained to end, the same mean over the tokens with which
    it ends, after the whole conversation.

    **It can be gamed.** It rewards what makes a next turn predictable, not what is right: answers
    that all look alike, that ask the question which people ask next, or that end conversations.
    It is watched by what a run records next to it and its card shows: the divergence from the model
    at the start (``kl``), the length of answers, the share of an answer's 4-grams that it repeats,
    the number of turns, and the same reward on held-out openings before and after. Give it the
    guards ``length`` and ``format``, or a judge, as well.
    """
    if context.likelihood is None:
        raise RecipeError(
            "reinforce.rewards: next_turn needs the recipe's own asker; its stage has not run"
        )
    if of not in ("turn", "end"):
        raise RecipeError(f"reinforce.rewards: next_turn: of is {of!r}, not turn or end")
    return NextTurnReward(context.likelihood, of)


class NextTurnReward:
    """See `next_turn`."""

    def __init__(self, likelihood: Likelihood, of: Literal["turn", "end"]) -> None:
        self._likelihood, self._of = likelihood, of

    async def score(self, episodes: Sequence[Episode]) -> list[Value]:
        """One value after another: the asker is one model in memory."""
        return [await self._one(episode) for episode in episodes]

    async def _one(self, episode: Episode) -> Value:
        if self._of == "end":
            return await self._likelihood.of_end(episode.messages, episode.intent)
        if not episode.next_turn:
            return Masked("no_next_turn")
        first = next((i for i, m in enumerate(episode.messages) if m["role"] == "assistant"), None)
        if first is None:
            return Masked("no_answer")
        history = episode.messages[: first + 1]
        return await self._likelihood.of_turn(history, episode.next_turn, episode.intent)
