"""The first rows of a dataset as a card shows them: real ones, shortened, and none in which the
scanner finds a secret or personal data, or that holds what no card may hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hubkit.data.parquet import read_batches
from hubkit.publishing.lint import forbidden
from hubkit.sensitive_data import KINDS, scan_text

Sample = list[tuple[str, str]]
SAMPLES = 3
_ROWS = 50  # looked at until there are enough
_TURNS = 4
_CHARS = 280
_COLUMNS = ("messages", "prompt", "chosen", "rejected", "group")


def of(files: Sequence[Path], *, group: str | None = None) -> list[Sample]:
    """Up to `SAMPLES` of the first rows of parquet `files`, each as (who, text) pairs.

    Rows are conversations (``messages``) or preference pairs (``prompt``, ``chosen``,
    ``rejected``); with `group`, those alone whose column ``group`` is that."""
    rows = (
        row
        for path in files
        for batch in read_batches(path)
        for row in batch.select([c for c in _COLUMNS if c in batch.schema.names]).to_pylist()
        if group is None or row.get("group") == group
    )
    turns = (_turns(row) for row in islice(rows, _ROWS))
    return [_shortened(row) for row in islice(filter(_may_be_shown, turns), SAMPLES)]


def _turns(row: Mapping[str, Any]) -> Sample:
    if row.get("messages"):
        return [_said(message) for message in row["messages"]]
    prompt = [_said(message) for message in row.get("prompt") or ()]
    answers = [
        (name, _said(message)[1])
        for name in ("chosen", "rejected")
        for message in row.get(name) or ()
    ]
    return prompt[-1:] + answers


def _said(message: Mapping[str, Any]) -> tuple[str, str]:
    return str(message.get("role") or ""), str(message.get("content") or "")


def _may_be_shown(turns: Sample) -> bool:
    """Whether a row holds nothing that the scanner finds, and nothing that no card may hold."""
    return bool(turns) and not any(scan_text(text, KINDS) or forbidden(text) for _, text in turns)


def _shortened(turns: Sample) -> Sample:
    sample_turns = [
        (speaker, text if len(text) <= _CHARS else text[:_CHARS].rstrip() + " …")
        for speaker, text in turns[:_TURNS]
    ]
    left_out = len(turns) - len(sample_turns)
    return [*sample_turns, ("and so on", f"{left_out} more turns")] if left_out else sample_turns
