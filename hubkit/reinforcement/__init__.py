"""Reinforcement of a chat model against frozen askers, on TRL's GRPO.

The chat model and an asker hold conversations that open with a held-out first turn; whole
conversations are rewarded, and only the chat model's own tokens carry loss. `Rewards` scores
finished conversations for anybody who has some."""

from hubkit.reinforcement import guards  # noqa: F401  (importing registers its rewards)
from hubkit.reinforcement.conversations import AskerSeat, Opening
from hubkit.reinforcement.grpo import (
    GRPOTask,
    check_batches,
    steps,
    updates_per_generation,
)
from hubkit.reinforcement.judge_reward import JudgeReward, shipped_rubric
from hubkit.reinforcement.likelihood import AskerLikelihood
from hubkit.reinforcement.next_turn_reward import NextTurnReward
from hubkit.reinforcement.rewards import (
    REWARDS,
    Episode,
    Likelihood,
    Masked,
    Outcome,
    Reward,
    RewardContext,
    Rewards,
    TermContext,
    Value,
    check,
    labels_of,
    register,
)
from hubkit.reinforcement.run import reinforce, rewarded_schema, write_conversations

__all__ = [
    "REWARDS",
    "AskerLikelihood",
    "AskerSeat",
    "Episode",
    "GRPOTask",
    "JudgeReward",
    "Likelihood",
    "Masked",
    "NextTurnReward",
    "Opening",
    "Outcome",
    "Reward",
    "RewardContext",
    "Rewards",
    "TermContext",
    "Value",
    "check",
    "check_batches",
    "labels_of",
    "register",
    "reinforce",
    "rewarded_schema",
    "shipped_rubric",
    "steps",
    "updates_per_generation",
    "write_conversations",
]
