"""The library: what the command line does, in a few lines of Python.

`Conversations` are read, cleaned and split; an `Asker` is trained on them or loaded; `rollout` lets
it question a chat model or a function of yours; `Dialogues` are curated; each is pushed with card,
lineage and licence. `run` runs a whole recipe. Hubs, engines and folders are the configured ones
(`hubkit.hub`)."""

from hubkit.api.asker import Asker
from hubkit.api.conversations import Conversations, Splits
from hubkit.api.dialogues import Dialogues
from hubkit.api.recipes import run
from hubkit.api.rollouts import Address, rollout

__all__ = ["Address", "Asker", "Conversations", "Dialogues", "Splits", "rollout", "run"]
