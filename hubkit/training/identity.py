"""Which run a folder belongs to: a fingerprint over all that decides the outcome.

Takes a block, data files and a base; gives a digest by which checkpoints and finished folders are
recognised, so that those of another run are never used."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from hubkit.errors import SourceError
from hubkit.recipe import content_of, digest
from hubkit.training.report import TrainReport, versions


@dataclass(frozen=True)
class Base:
    """The model that a training starts from.

    Attributes:
        folder: Its weights and tokenizer.
        repo_id: What an adapter names as its base.
        revision: Its commit; by default read off a snapshot folder's name.
    """

    folder: Path
    repo_id: str
    revision: str | None = None


def fingerprint_of(
    block: BaseModel,
    data: Sequence[Path],
    base: Path,
    base_repo_id: str,
    seed: int,
    *,
    task: str = "",
) -> str:
    """sha256 (hex) over the block, the bytes of `data`, the base's name and snapshot, the seed and
    the versions.
    """
    facts = {
        "block": content_of(type(block), block.model_dump(mode="json")),
        "data": [[path.name, _sha256(path)] for path in data],
        "base": [base_repo_id, base.name, task],
        "seed": seed,
        "versions": versions(),
    }
    return digest(facts)


def finished(out: Path, fingerprint: str) -> TrainReport | None:
    """The report in `out`, when that folder is the finished outcome of these very inputs."""
    try:
        report = json.loads((out / "training_report.json").read_text("utf-8"))
        return TrainReport(**report) if report.get("fingerprint") == fingerprint else None
    except (OSError, ValueError, TypeError):
        return None


def revision_of(base: Path) -> str | None:
    """The commit that a Hub cache's snapshot folder is named by, or None for any other folder."""
    return base.name if re.fullmatch(r"[0-9a-f]{40}", base.name) else None


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
