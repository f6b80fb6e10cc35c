"""A model repo at a commit, on disk; and its GGUF, converted once per commit."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hubkit.errors import DiskFullError, EngineError, HubUnreachableError, RepoMissingError
from hubkit.locks import FileLock

_GGUF = ".gguf"
_PATTERNS = ["*.json", "*.jinja", "*.safetensors"]
_CONVERTER_VERSION = "1"  # raise it when the converters write something else


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repo's files. `key` names their content: the commit sha, or a hash of a local folder."""

    name: str
    folder: Path
    key: str
    gguf: Path | None = None  # the weights, where they are a GGUF file

    @property
    def is_adapter(self) -> bool:
        """Whether this is a LoRA adapter instead of a whole model."""
        return (self.folder / "adapter_config.json").exists() and not any(
            self.folder.glob("model*.safetensors")
        )


def fetch(spec: str) -> Snapshot:
    """Return the snapshot of `spec`.

    Args:
        spec: A folder, a GGUF file, or REPO_ID[@REVISION][:FILE.gguf] at $HF_ENDPOINT. Of several
            GGUF files without other weights, one has to be named.

    Raises:
        RepoMissingError: The Hub has no such repo, revision or file for this token.
        HubUnreachableError: The Hub does not answer and nothing is cached.
        EngineError: There is no model in the folder, or which one is not clear.
    """
    path = Path(spec)
    if path.is_file() and path.suffix == _GGUF:
        return _gguf_snapshot(str(path.resolve()), path.resolve())
    if path.is_dir():
        folder = path.resolve()
        if chosen := _only_gguf(spec, [file.name for file in folder.iterdir()], None):
            return _gguf_snapshot(str(folder), folder / chosen)
        return Snapshot(str(folder), folder, _content_hash(folder))
    return fetch_repo(spec)


def fetch_repo(spec: str) -> Snapshot:
    """Fetch as `fetch` does, for a name that a repo's file gives: never a folder of this
    machine.
    """
    repo, colon, file = spec.rpartition(":") if spec.endswith(_GGUF) else (spec, "", "")
    repo_id, _, revision = (repo if colon else spec).partition("@")
    return _download(repo_id, revision or None, file or None)


def _only_gguf(spec: str, names: list[str], named: str | None) -> str | None:
    """The GGUF file that is the model; None where there are other weights or none at all."""
    files = sorted(name for name in names if name.endswith(_GGUF) and "mmproj" not in name)
    if named is not None:
        if named not in files:
            raise EngineError(f"{spec} has no {named}; it has {', '.join(files) or 'no .gguf'}")
        return named
    if not files or any(name.endswith(".safetensors") for name in names):
        return None
    if len(files) > 1:
        raise EngineError(f"{spec} has {len(files)} GGUF files; name one, as in {spec}:{files[0]}")
    return files[0]


def _gguf_snapshot(name: str, file: Path, key: str | None = None) -> Snapshot:
    digest = hashlib.blake2b(digest_size=20)
    if key is None:
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return Snapshot(name, file.parent, key or digest.hexdigest(), file)


def _download(repo_id: str, revision: str | None, file: str | None) -> Snapshot:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
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
            allow_patterns=_PATTERNS,
            ignore_patterns=["*/*"],
        )
        if file or not any(Path(folder).glob("*.safetensors")):
            sha = Path(folder).name
            names = HfApi(endpoint=endpoint).list_repo_files(repo_id, revision=sha)
            if chosen := _only_gguf(repo_id, names, file):
                path = hf_hub_download(repo_id, chosen, revision=sha, endpoint=endpoint)
                return _gguf_snapshot(repo_id, Path(path), f"{sha}-{Path(chosen).stem}")
    except (
        RepositoryNotFoundError,
        RevisionNotFoundError,
        GatedRepoError,
        HFValidationError,
    ) as error:
        raise RepoMissingError(
            f"{repo_id}@{revision or 'main'} is not at {endpoint or 'the Hub'} for this token, "
            "nor a local folder; check its name and your token"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise HubUnreachableError(
            f"{endpoint or 'the Hub'} does not give {repo_id} and it is not cached: {error}"
        ) from error
    return Snapshot(repo_id, Path(folder), Path(folder).name)


def _content_hash(folder: Path) -> str:
    files = sorted(path for pattern in _PATTERNS for path in folder.glob(pattern))
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
