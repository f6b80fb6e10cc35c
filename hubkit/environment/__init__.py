"""A frozen asker as an environment for another trainer: the asker plays the user, the model under
training answers, and a finished conversation is rewarded.

Takes an asker that answers and openings; gives a server on loopback that speaks OpenEnv's protocol
over WebSockets, one session a connection."""

from hubkit.environment.episode import (
    AskerEnvironment,
    Episode,
    Opening,
    RewardFunction,
    ended_episode,
    openings_in,
)
from hubkit.environment.ownership import require_own
from hubkit.environment.server import DEFAULT_LIMITS, Limits, served

__all__ = [
    "DEFAULT_LIMITS",
    "AskerEnvironment",
    "Episode",
    "Limits",
    "Opening",
    "RewardFunction",
    "ended_episode",
    "openings_in",
    "require_own",
    "served",
]
