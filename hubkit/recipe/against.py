"""The block about chat models in conversation with several askers: the cross-simulator table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hubkit.recipe.block import Block
from hubkit.recipe.dialogue import Sampling, SeatConfig
from hubkit.recipe.identity import Content, Execution
from hubkit.recipe.reinforcement import RewardTerm

ChatName = Literal["base", "chat", "aligned", "reinforced"]
CHATS: tuple[ChatName, ...] = ("base", "chat", "aligned", "reinforced")


class Against(Block):
    """Every chat model in conversation with every asker on the same held-out openings, and what
    whole conversations are worth."""

    openings: Content[Annotated[int, Field(ge=2)]] = 50
    """Held-out first turns; each opens one conversation of each asker with each chat model."""
    turns: Content[Annotated[int, Field(ge=1)]] = 4
    """Human turns of a conversation at most, the opening included."""
    rewards: Content[list[RewardTerm]] = Field(min_length=1)
    """What a conversation is worth. One that a reward cannot score is left out and counted."""
    chats: Content[list[ChatName]] = Field(default_factory=lambda: list(CHATS))
    """The recipe's chat models that are compared, where it makes them; with the first."""
    prompted: Content[bool] = True
    """Whether the first asker's base, only told to play the user, is an asker too."""
    askers: Content[dict[str, SeatConfig]] = Field(default_factory=dict)
    """Further askers, by name, next to the recipe's own."""
    sampling: Content[Sampling] = Sampling(max_tokens=256)
    """How the askers' turns are sampled."""
    chat_sampling: Content[Sampling] = Sampling()
    """How answers are sampled."""
    context: Content[Annotated[int, Field(ge=64)]] = 4096
    """Window of either seat, in tokens."""
    max_opening_chars: Content[Annotated[int, Field(ge=1)]] = 4000
    """Longer first turns are passed over."""
    resamples: Content[Annotated[int, Field(ge=10)]] = 2000
    """Bootstrap resamples for the intervals."""
    in_flight: Execution[Annotated[int, Field(ge=1)]] = 16
    """Most conversations at once."""
    request_timeout_s: Execution[Annotated[float, Field(gt=0)]] = 300.0
    """Longest wait for one turn."""
    patience_s: Execution[Annotated[float, Field(gt=0)]] = 900.0
    """How long to wait while none of a model's addresses answers."""
    usd_per_million: Execution[dict[str, tuple[float, float]]] = Field(default_factory=dict)
    """Name of an asker or chat model → US dollars per million tokens, in and out."""
    budget_usd: Execution[Annotated[float, Field(ge=0)] | None] = None
    """Cap on money for askers and chat models together, over all sessions; each judge has its
    own.
    """
    budget_tokens: Execution[Annotated[int, Field(ge=1)] | None] = None
    """Cap on their tokens, in and out."""
    max_hours: Execution[Annotated[float, Field(ge=0)] | None] = None
    """Cap on hours of conversations."""
