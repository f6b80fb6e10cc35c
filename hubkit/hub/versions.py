"""Version tags of a dataset: v1, v2, …; a tag never moves."""

from __future__ import annotations

from hubkit.hub.client import Hub, Ref


def versions_of(hub: Hub, ref: Ref) -> dict[str, str]:
    """The version tags of the repo of `ref`, and the commit of each."""
    tags = hub.tags(ref.repo_id, repo_type=ref.repo_type)
    return {name: commit for name, commit in tags.items() if name[:1] == "v" and name[1:].isdigit()}


def tag_version(hub: Hub, ref: Ref, message: str) -> tuple[str, bool]:
    """Give the commit the next version tag, unless one points at it.

    Returns:
        The tag, and whether it was made now.
    """
    versions = versions_of(hub, ref)
    for name, commit in versions.items():
        if commit == ref.revision:
            return name, False
    name = f"v{max((int(version[1:]) for version in versions), default=0) + 1}"
    hub.tag(ref, name, message)
    return name, True
