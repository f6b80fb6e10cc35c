"""A model repo at a commit, on disk; and its GGUF, converted once per commit."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from hubkit.errors import DiskFullError, EngineError, HubUnreachableError, RepoMissingError

_WANTED = ["*.json", "*.jinja", "*.safetensors"]
_CONVERTER_VERSION = "1"  # raise it when the converters write something else


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repo's files. `key` names their content: the commit sha, or a hash of a local folder."""

    name: str
    folder: Path
    key: str

    @property
    def is_adapter(self) -> bool:
        """Whether this is a LoRA adapter instead of a whole model."""
        return (self.folder / "adapter_config.json").exists() and not any(
            self.folder.glob("model*.safetensors")
        )


def fetch(spec: str) -> Snapshot:
    """The snapshot of `spec`: a local folder, or REPO_ID[@REVISION] at $HF_ENDPOINT.

    Raises `RepoMissingError` or `HubUnreachableError`, and `EngineError` for a folder without
    files."""
    folder = Path(spec)
    if folder.is_dir():
        return Snapshot(str(folder.resolve()), folder.resolve(), _content_hash(folder))
    return fetch_repo(spec)


def fetch_repo(spec: str) -> Snapshot:
    """As `fetch`, for a name that a repo's file gives: never a folder of this machine."""
    repo_id, _, revision = spec.partition("@")
    return _download(repo_id, revision or None)


def _download(repo_id: str, revision: str | None) -> Snapshot:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            endpoint=endpoint,
            allow_patterns=_WANTED,
            ignore_patterns=["*/*"],
        )
    except (
        RepositoryNotFoundError,
        RevisionNotFoundError,
        GatedRepoError,
        HFValidationError,
    ) as error:
        raise RepoMissingError(
            f"{repo_id}@{revision or 'main'} is not at {endpoint or 'the Hub'} for this token, nor a local folder; "
            "check its name and your token"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise HubUnreachableError(
            f"{endpoint or 'the Hub'} does not give {repo_id} and it is not cached: {error}"
        ) from error
    return Snapshot(repo_id, Path(folder), Path(folder).name)


def _content_hash(folder: Path) -> str:
    files = sorted(path for pattern in _WANTED for path in folder.glob(pattern))
    if not files:
        raise EngineError(f"{folder} holds no model: neither .json nor .safetensors files")
    digest = hashlib.blake2b(digest_size=20)
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def converted(cache_dir: Path, key: str, convert: Callable[[Path], None]) -> Path:
    """Return `cache_dir`/`key`.gguf, written by `convert(path)` if it does not exist yet.

    One process converts at a time; the file appears whole or not at all. Raises `DiskFullError`.
    """
    target = cache_dir / f"v{_CONVERTER_VERSION}-{key}.gguf"
    if target.exists():
        return target
    part = target.with_suffix(".part")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not target.exists():
                convert(part)
                part.replace(target)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DiskFullError(
                f"no space left in {cache_dir} for a converted model; free some or set --cache-dir"
            ) from error
        raise
    return target
