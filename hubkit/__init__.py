"""hubkit: the toolkit for user simulators, on the Hugging Face Hub.

Train an asker on the human side of real conversations, let it question a chat model or an agent of
your own, curate what they said, and push everything with card, lineage and licence:

    from hubkit import Asker, Conversations, rollout

    people = Conversations.read("my-chats.jsonl").clean(["alternate_roles", "exact_duplicates"])
    people = people.split(openings=20, test=10)
    asker = Asker.train(people.train, base="HuggingFaceTB/SmolLM2-135M-Instruct")
    dialogues = rollout(asker, chat=my_agent, openings=people.openings, n=4, turns=4)
    dialogues.curate(["empty_turn", "repeated_turn"]).push_to_hub("me/my-dialogues")

What is named here is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Address",
    "Asker",
    "Conversations",
    "Dialogues",
    "Recipe",
    "__version__",
    "load_dataset",
    "load_recipe",
    "rollout",
    "run",
]

if TYPE_CHECKING:
    from hubkit.api import Address, Asker, Conversations, Dialogues, rollout, run
    from hubkit.hub import load_dataset
    from hubkit.recipe import Recipe
    from hubkit.recipe import load as load_recipe

_MODULES = {
    "Address": ("hubkit.api", "Address"),
    "Asker": ("hubkit.api", "Asker"),
    "Conversations": ("hubkit.api", "Conversations"),
    "Dialogues": ("hubkit.api", "Dialogues"),
    "Recipe": ("hubkit.recipe", "Recipe"),
    "load_dataset": ("hubkit.hub", "load_dataset"),
    "load_recipe": ("hubkit.recipe", "load"),
    "run": ("hubkit.api", "run"),
}


def __getattr__(name: str) -> Any:
    if name == "rollout":  # the package, which can be called
        return import_module("hubkit.rollout")
    if name not in _MODULES:
        raise AttributeError(f"module 'hubkit' has no attribute {name!r}")
    module, attribute = _MODULES[name]
    return getattr(import_module(module), attribute)
