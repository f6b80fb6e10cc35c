"""Parquet shards that a dataset viewer, a streaming reader and a second upload all like.

Takes rows or parquet files; gives parquet files. Row groups are small enough to page through, pages
are indexed, and pages are cut by content, so that a Hub with content-defined chunks stores only
what changed between versions. Shards are named ``SPLIT-00000-of-0000N.parquet``; N is known only at
the end, so they are written under other names and renamed when all is well."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hubkit.conversation import MESSAGE_FIELDS
from hubkit.errors import DiskFullError, SourceError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW_GROUP_ROWS = 1000
SHARD_ROWS = 100_000
_READ_BYTES = 1 << 20
_PAGE_HEAD_BYTES = 32
_BATCH_BYTES = 1 << 28  # of one batch of rows, at most
_MOST_DICTIONARY_BYTES = 1 << 28


def conversation_schema(
    extra: Sequence[Any] = (), *, optional_fields: Collection[str] = ()
) -> pa.Schema:
    """Build the schema of a dataset of conversations.

    Args:
        extra: Arrow fields after ``id``, ``messages`` and ``source``.
        optional_fields: Those of `hubkit.conversation.OPTIONAL_FIELDS` that messages carry in
            addition to ``role`` and ``content``. What a message lacks of them is null in its row.
    """
    import pyarrow as pa

    function = pa.struct([("name", pa.string()), ("arguments", pa.string())])
    call = pa.struct([("id", pa.string()), ("type", pa.string()), ("function", function)])
    types = {"tool_calls": pa.list_(call), "train": pa.bool_()}
    names = [name for name in MESSAGE_FIELDS if name in {"role", "content", *optional_fields}]
    message = pa.struct([(name, types.get(name, pa.string())) for name in names])
    return pa.schema(
        [("id", pa.string()), ("messages", pa.list_(message)), ("source", pa.string()), *extra]
    )


class ShardWriter:
    """Writes rows (dicts) or tables of one split into shards below `folder`. Use it as a context
    manager.

    Leaving it normally renames the shards into place (`paths`); leaving it by an exception leaves
    no shard behind. A split without rows gets no shard, and so no card names it: stock `datasets`
    loads none of a config one of whose splits is empty. Raises `DiskFullError`."""

    def __init__(
        self,
        folder: Path,
        split: str,
        schema: pa.Schema,
        *,
        shard_rows: int = SHARD_ROWS,
    ) -> None:
        self.folder, self.split, self.schema, self.rows = folder, split, schema, 0
        self.paths: list[Path] = []
        self._shard_rows = shard_rows
        self._buffer: list[Mapping[str, object]] = []
        self._parts: list[Path] = []
        self._writer: Any = None
        self._in_shard = 0

    def __enter__(self) -> Self:
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob(f"{self.split}-*.parquet*"):
                old.unlink()
        return self

    def write(self, row: Mapping[str, object]) -> None:
        """Add one row."""
        self._buffer.append(row)
        if len(self._buffer) >= ROW_GROUP_ROWS:
            self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Add the rows of a table of the same schema."""
        self._flush()
        for start in range(0, table.num_rows, ROW_GROUP_ROWS):
            self._write_group(table.slice(start, ROW_GROUP_ROWS))

    def _flush(self) -> None:
        import pyarrow as pa

        if self._buffer:
            self._write_group(pa.Table.from_pylist(self._buffer, schema=self.schema))
            self._buffer = []

    def _write_group(self, table: pa.Table) -> None:
        with disk_errors(self.folder):
            if self._writer is None:
                self._writer = self._open()
            self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self.rows += table.num_rows
        self._in_shard += table.num_rows
        if self._in_shard >= self._shard_rows:
            self._close()

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        part = self.folder / f"{self.split}-{len(self._parts):05d}.parquet.part"
        self._parts.append(part)
        return pq.ParquetWriter(
            part,
            self.schema,
            compression="zstd",
            write_page_index=True,
            use_content_defined_chunking=True,
        )

    def _close(self) -> None:
        if self._writer is not None:
            with disk_errors(self.folder):
                self._writer.close()
            self._writer, self._in_shard = None, 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
            self._close()
            if kind is None:
                self._rename()
        finally:
            for part in self._parts:
                part.unlink(missing_ok=True)

    def _rename(self) -> None:
        for index, part in enumerate(self._parts):
            path = self.folder / f"{self.split}-{index:05d}-of-{len(self._parts):05d}.parquet"
            with disk_errors(self.folder):
                part.rename(path)
            self.paths.append(path)


def opened(path: Path) -> pq.ParquetFile:
    """A parquet file to read batch by batch: left to itself, pyarrow keeps all that was read until
    the file is closed.

    Raises what pyarrow raises, also while it is read.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BYTES)


def safe_batch_rows(path: Path, group: Any, *, most_rows: int = 256) -> int:
    """How many rows of a row group can be read at once, whatever its dictionaries hold.

    A dictionary of few compressed bytes may hold one value of hundreds of megabytes, which each row
    then repeats.

    Args:
        path: The parquet file.
        group: The row group's metadata.
        most_rows: The most rows at once.

    Raises:
        ValueError: A dictionary is larger than all rows of any conversation.
    """
    largest = 1
    with path.open("rb") as file:
        for number in range(group.num_columns):
            column = group.column(number)
            if column.has_dictionary_page and column.dictionary_page_offset is not None:
                file.seek(column.dictionary_page_offset)
                largest = max(largest, _page_bytes(file.read(_PAGE_HEAD_BYTES)))
    if largest > _MOST_DICTIONARY_BYTES:
        raise ValueError(f"a dictionary of it unpacks to {largest:,} bytes")
    return max(1, min(most_rows, _BATCH_BYTES // largest))


def _page_bytes(head: bytes) -> int:
    """The unpacked size that a page's header names: its second field, in Thrift's compact form."""
    values: list[int] = []
    position = 0
    while len(values) < 2:
        if head[position : position + 1] != b"\x15":  # the next field, a 32-bit number
            raise ValueError("a page of it has no header")
        value = shift = 0
        while True:
            position += 1
            byte = head[position]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        position += 1
        values.append((value >> 1) ^ -(value & 1))
    return values[1]


def read_batches(path: Path, *, batch_rows: int = ROW_GROUP_ROWS) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet file, `batch_rows` at a time. Raises `SourceError` where it is no whole
    parquet file.
    """
    import pyarrow as pa

    try:
        with opened(path) as file:
            yield from file.iter_batches(batch_size=batch_rows)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{path} cannot be read as parquet ({' '.join(str(error).split())[:200]}); "
            "fetch or write it again"
        ) from None


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn "no space left" below `folder` into `DiskFullError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no space left for {folder}; free some and run again") from error
        raise


def write_files(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files into `folder`, by their paths in it. Raises `DiskFullError`."""
    with disk_errors(folder):
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return [folder / name for name in contents]
