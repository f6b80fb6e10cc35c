"""What changed between two versions of a dataset: rows added, dropped, changed, by id; measures
side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

from hubkit.errors import SourceError
from hubkit.metrics.sampling import rows_of
from hubkit.untrusted import JsonObject

EXAMPLES = 10


@dataclass
class Difference:
    """Rows of two versions by id. `changed` rows have the same id and other messages; examples are
    ids.
    """

    before: int = 0
    after: int = 0
    added: int = 0
    dropped: int = 0
    changed: int = 0
    same: int = 0
    examples: dict[str, list[str]] = field(
        default_factory=lambda: {"added": [], "dropped": [], "changed": []}
    )

    def to_dict(self) -> JsonObject:
        """As JSON holds it."""
        return asdict(self)


def diff(before: Sequence[Path], after: Sequence[Path]) -> Difference:
    """Compare two sets of parquet files with columns ``id`` and ``messages``; about 100 bytes of
    memory a row.

    Raises `SourceError` where a file is no parquet file, a column is missing or an id comes twice.
    """
    old, new = _digests(before), _digests(after)
    difference = Difference(before=len(old), after=len(new))
    for name, digest in new.items():
        was = old.get(name)
        kind = "added" if was is None else "same" if was == digest else "changed"
        _count(difference, kind, name)
    for name in old:
        if name not in new:
            _count(difference, "dropped", name)
    return difference


def _count(difference: Difference, kind: str, name: str) -> None:
    setattr(difference, kind, getattr(difference, kind) + 1)
    if kind in difference.examples and len(difference.examples[kind]) < EXAMPLES:
        difference.examples[kind].append(name)


def _digests(files: Sequence[Path]) -> dict[str, bytes]:
    digests: dict[str, bytes] = {}
    for row in rows_of(files):
        if "id" not in row:
            raise SourceError("a dataset without a column id cannot be compared row by row")
        if row["id"] in digests:
            raise SourceError(f"id {row['id']!r} comes twice, so its rows cannot be told apart")
        digest = blake2b(digest_size=16)
        for message in row["messages"] or []:
            digest.update(f"{message['role']}\x1f{message['content']}\x1e".encode())
        digests[row["id"]] = digest.digest()
    return digests
