"""hubkit: train an asker, roll out dialogues, train and judge a chat model, all through the Hugging
Face Hub.

from hubkit import load_dataset
dialogues = load_dataset("parrot-40k", revision="v1")
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_dataset"]

if TYPE_CHECKING:
    from hubkit.hub import load_dataset


def __getattr__(name: str) -> Any:
    if name == "load_dataset":
        from hubkit.hub import load_dataset

        return load_dataset
    raise AttributeError(f"module 'hubkit' has no attribute {name!r}")
