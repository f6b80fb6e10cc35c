"""What an adapter on a Hub was trained on."""

from __future__ import annotations

from collections.abc import Callable

from hubkit.errors import RepoMissingError, SourceError
from hubkit.hub.client import Hub, Ref
from hubkit.untrusted import parse_json, repo_name

Resolve = Callable[[Hub, str, str], Ref]
"""The commit of a base by its repo and revision; one that is not there may be imported."""


def base_of(hub: Hub, ref: Ref, *, resolve: Resolve | None = None) -> Ref | None:
    """Find the base of the adapter in `ref`; None when `ref` is a whole model.

    Args:
        hub: Where both are.
        ref: The model's commit.
        resolve: How the base's commit is found; without it, on the Hub as it is.

    Raises:
        SourceError: The adapter does not name its base.
        RepoMissingError: The base is not there.
    """
    try:
        raw = hub.read(ref, "adapter_config.json")
    except RepoMissingError:
        return None
    try:
        config = parse_json(raw)
        base = repo_name(config["base_model_name_or_path"])
        revision = str(config.get("revision") or "main")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"adapter_config.json of {ref} does not name its base ({error}); write the base's repo "
            "id into it, train it again, or push the merged weights"
        ) from None
    return (resolve or _on_hub)(hub, base, revision)


def _on_hub(hub: Hub, repo_id: str, revision: str) -> Ref:
    return hub.resolve(repo_id, revision=revision)
