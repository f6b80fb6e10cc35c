"""Rows in files, masked: every text in every column of a parquet file, every line of JSON Lines.

Numbers, binary columns and base64 inside texts are not changed: `files` finds what they hold."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubkit.sensitive_data.scanner import Masker

SUFFIXES = (".parquet", ".jsonl")
_BATCH_ROWS = 1000


def mask_rows(content: Path | bytes, target: Path, masker: Masker) -> bool:
    """Write the rows of `content`, masked, to `target`; nothing where none has to be.

    Args:
        content: A file whose name ends in one of `SUFFIXES`, or its bytes.
        target: Where to write, by the same name.
        masker: Masks, and counts.

    Returns:
        Whether `target` was written.
    """
    if target.suffix == ".parquet":
        return _parquet(content, target, masker)
    return _lines(content, target, masker)


def _lines(content: Path | bytes, target: Path, masker: Masker) -> bool:
    changed = False
    with (
        io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source,
        target.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out,
    ):
        for line in source:
            text = line.decode("utf-8", "surrogateescape")
            masked = masker(text)
            changed = changed or masked != text
            out.write(masked)
    return _kept(target, changed)


def _parquet(content: Path | bytes, target: Path, masker: Masker) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = io.BytesIO(content) if isinstance(content, bytes) else content
    changed = False
    try:
        with pq.ParquetFile(source) as table:
            options = {
                "compression": "zstd",
                "write_page_index": True,
                "use_content_defined_chunking": True,
            }
            with pq.ParquetWriter(target, table.schema_arrow, **options) as writer:
                for batch in table.iter_batches(_BATCH_ROWS):
                    given = batch.columns
                    columns = [_column(column, masker) for column in given]
                    pairs = zip(columns, given, strict=True)
                    changed = changed or any(new is not old for new, old in pairs)
                    writer.write_batch(pa.record_batch(columns, schema=batch.schema))
    except (pa.ArrowException, OSError, ValueError):  # the check that follows says what is wrong
        return _kept(target, changed=False)
    return _kept(target, changed)


def _kept(target: Path, changed: bool) -> bool:
    if not changed:
        target.unlink(missing_ok=True)
    return changed


def _column(column: Any, masker: Masker) -> Any:
    """`column` with its texts masked, each by itself; itself where they stay as they are."""
    import pyarrow as pa

    values = column.to_pylist()
    clean: set[str] = set()
    masked = [_mapped(value, masker, clean) for value in values]
    try:
        return column if masked == values else pa.array(masked, column.type)
    except pa.ArrowException:  # a type that cannot be made from values
        return column


def _mapped(value: Any, masker: Masker, clean: set[str]) -> Any:
    """`value` with its texts masked; `clean` are texts in which nothing was found before."""
    if isinstance(value, str):
        masked = value if value in clean else masker(value)
        if masked == value:
            clean.add(value)
        return masked
    if isinstance(value, Mapping):
        return {key: _mapped(item, masker, clean) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, masker, clean) for item in value]
    if isinstance(value, tuple):
        return tuple(_mapped(item, masker, clean) for item in value)
    return value
