"""Raw dialogues → the ones worth training on, and the rest with its reasons.

Takes the rollout's parquet files and the recipe's ``curate`` block; writes ``data/train-*.parquet``
(kept), ``data/dropped-*.parquet`` (with ``reason`` and ``step``; no file where nothing is) and
``report.json``. Every column of a raw row, its provenance above all, travels on untouched; only a
filter that cleans text changes ``messages``, one that masks also ``id``. Streams: what is held in
memory is some thousands of rows, and about 2 KB of digests for each that is kept
(`hubkit.data.filters.duplicates`)."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.conversation import Conversation, compact
from hubkit.data.filters import Context, Dropped, Step
from hubkit.data.filters.parallel import run, workers_for
from hubkit.data.parquet import ShardWriter, disk_errors, read_batches
from hubkit.data.readers.explain import most_dropped
from hubkit.errors import RecipeError, SourceError, StageError
from hubkit.progress import Progress, silent
from hubkit.recipe import Curate
from hubkit.untrusted import JsonObject

if TYPE_CHECKING:
    import pyarrow as pa

_META = ("finish_reasons", "error")  # the other columns that filters may read
_JUDGED = ("id", "messages", "source", *_META)
_SAY_EVERY = 128  # rows
_UNPACKED = 4  # how much bigger than its file a parquet table of text is, roughly


@dataclass
class CurateReport:
    """What became of every dialogue: ``rows_read == kept + dropped``, always; `steps` is the
    chain's ledger.
    """

    rows_read: int = 0
    kept: int = 0
    dropped: int = 0
    steps: list[Step] = field(default_factory=list)
    human_turns: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> JsonObject:
        """The report as JSON holds it."""
        return vars(self) | {"steps": [step.to_dict() for step in self.steps]}


def curate(
    block: Curate,
    raw: list[Path],
    out: Path,
    *,
    context: Context | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> CurateReport:
    """Judge every row of `raw` by `block.filters`; write what is kept, what is dropped and why, and
    the report.

    `context` and `workers` are as in `hubkit.data.corpus.build`. Raises `SourceError` (no parquet
    files, a broken one, no ``messages`` column), `RecipeError` (unknown filter, or one that cuts
    dialogues up), `DiskFullError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    started = time.monotonic()
    schema = _schema_of(raw)
    batches: deque[_Batch] = deque()
    if workers is None:
        workers = workers_for(sum(path.stat().st_size for path in raw) * _UNPACKED)
    context = context or Context()
    rows = sum(pq.read_metadata(path).num_rows for path in raw)
    dialogues = _dialogues(raw, schema, batches)
    steps, judged = run(block.filters, context, dialogues, workers=workers, on=block.on)
    report = CurateReport(steps=steps)
    words = [pa.field("reason", pa.string()), pa.field("step", pa.string())]
    turns: Counter[int] = Counter()
    with (
        ShardWriter(out / "data", "train", schema) as kept,
        ShardWriter(out / "data", "dropped", pa.schema([*schema, *words])) as dropped,
    ):
        for count, (conversation, results) in enumerate(judged):
            if count % _SAY_EVERY == 0:
                progress(count, rows, "dialogues filtered")
            result = _only(results, conversation)
            if not isinstance(result, Dropped):
                turns[result.human_turns] += 1
            if batches[0].take(result, conversation):
                batches.popleft().write(kept, dropped)
    progress(rows, rows, "dialogues filtered")
    report.rows_read, report.kept, report.dropped = (
        kept.rows + dropped.rows,
        kept.rows,
        dropped.rows,
    )
    report.human_turns = {str(number): turns[number] for number in sorted(turns)}
    report.seconds = round(time.monotonic() - started, 2)
    with disk_errors(out):
        (out / "report.json").write_text(
            json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8"
        )
    return report


def nothing_kept(report: CurateReport) -> StageError:
    """Say which filters dropped every dialogue."""
    return StageError(
        f"curate keeps none of {report.rows_read:,} dialogues ({most_dropped(report.steps)}); look "
        "at its filters and at the raw dialogues"
    )


def _schema_of(raw: list[Path]) -> pa.Schema:
    """The one schema of all files: later files may add columns (null in earlier rows), never change
    a type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not raw:
        raise SourceError("there are no raw dialogues to curate; run the rollout first")
    schemas = []
    for path in raw:
        try:
            schemas.append(pq.read_schema(path).remove_metadata())
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"{path} is not a parquet file ({' '.join(str(error).split())[:200]})"
            ) from None
    try:
        schema = pa.unify_schemas(schemas)
    except pa.ArrowException as error:
        raise SourceError(
            f"the raw files disagree about their columns: {' '.join(str(error).split())[:300]}"
        ) from None
    if missing := {"id", "messages"} - set(schema.names):
        raise SourceError(
            f"{raw[0]} has no column {', '.join(sorted(missing))}; "
            "give the rollout's own parquet files"
        )
    return schema


class _Batch:
    """Rows of one table and, one after another, what became of them; then they leave in the columns
    they came in.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._rows: int = table.num_rows
        self._judged = 0
        self._stay: list[int] = []
        self._values: dict[str, list[Any]] = {"id": [], "messages": []}  # of what stays
        self._go: list[tuple[int, str, str]] = []
        self._changed: set[str] = set()

    def take(self, result: Conversation | Dropped, conversation: Conversation) -> bool:
        """Note the verdict on the next row; says whether that was the last one."""
        if isinstance(result, Dropped):
            self._go.append((self._judged, result.reason, result.step))
        else:
            self._stay.append(self._judged)
            for name, values in self._values.items():
                value = getattr(result, name)
                if result is not conversation and value != getattr(conversation, name):
                    self._changed.add(name)
                values.append(value)
        self._judged += 1
        return self._judged == self._rows

    def write(self, kept_rows: ShardWriter, dropped: ShardWriter) -> None:
        """Write the rows to where they belong."""
        import pyarrow as pa

        if self._stay:
            rows = self._table.take(self._stay)
            for name in sorted(self._changed):
                at = rows.schema.get_field_index(name)
                field = rows.schema.field(at)
                rows = rows.set_column(at, field, pa.array(self._values[name], field.type))
            kept_rows.write_table(rows)
        if self._go:
            rows = self._table.take([index for index, _, _ in self._go])
            rows = rows.append_column(
                "reason", pa.array([reason for _, reason, _ in self._go], pa.string())
            )
            dropped.write_table(
                rows.append_column("step", pa.array([step for _, _, step in self._go], pa.string()))
            )


def _dialogues(
    raw: list[Path], schema: pa.Schema, batches: deque[_Batch]
) -> Iterator[Conversation]:
    """Every row as a conversation; its table waits in `batches` for the verdicts."""
    import pyarrow as pa

    for path in raw:
        for batch in read_batches(path):
            table = pa.Table.from_batches([batch])
            for extra in set(schema.names) - set(table.column_names):
                table = table.append_column(
                    extra, pa.nulls(table.num_rows, schema.field(extra).type)
                )
            table = table.select(schema.names).cast(schema)
            batches.append(_Batch(table))
            judged = table.select([name for name in _JUDGED if name in table.column_names])
            yield from map(_conversation, judged.to_pylist())


def _conversation(row: Mapping[str, Any]) -> Conversation:
    messages = [
        {"role": "", "content": "", **m} for m in compact(m or {} for m in row["messages"] or [])
    ]
    meta = {key: row[key] for key in row if key in _META}
    return Conversation(str(row["id"]), messages, row.get("source") or "", meta)  # type: ignore[arg-type]


def _only(
    results: list[Conversation | Dropped], conversation: Conversation
) -> Conversation | Dropped:
    """The one verdict on a dialogue. Its per-turn columns describe its turns, so filters must leave
    their number be.
    """
    same_length = all(
        isinstance(r, Dropped) or len(r.messages) == len(conversation.messages) for r in results
    )
    if len(results) != 1 or not same_length:
        raise RecipeError(
            "curate.filters: a filter cut a dialogue up or shortened it; "
            "only corpus.filters may do so"
        )
    return results[0]
