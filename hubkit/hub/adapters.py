"""What an adapter on a Hub was trained on."""

from __future__ import annotations

from hubkit.errors import RepoMissingError, SourceError
from hubkit.hub.client import Hub, Ref
from hubkit.untrusted import parse_json, repo_name


def base_of(hub: Hub, ref: Ref) -> Ref | None:
    """Find the base of the adapter in `ref`; None when `ref` is a whole model.

    Raises:
        SourceError: The adapter does not name its base.
        RepoMissingError: The base is not there.
    """
    named = base_named_by(hub, ref)
    return named and hub.resolve(named[0], revision=named[1])


def base_named_by(hub: Hub, ref: Ref) -> tuple[str, str] | None:
    """The repo and revision that the adapter in `ref` names as its base; None when `ref` is a whole
    model.

    Raises `SourceError` when it names none.
    """
    try:
        raw = hub.read(ref, "adapter_config.json")
    except RepoMissingError:
        return None
    try:
        config = parse_json(raw)
        return repo_name(config["base_model_name_or_path"]), str(config.get("revision") or "main")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"adapter_config.json of {ref} does not name its base ({error}); write the base's repo "
            "id into it, train it again, or push the merged weights"
        ) from None
