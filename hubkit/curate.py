"""Raw dialogues → the ones worth training on, and the rest with its reasons.

Takes the rollout's parquet files and the recipe's ``curate`` block; writes ``data/train-*.parquet`` (kept),
``data/dropped-*.parquet`` (with ``reason`` and ``step``) and ``report.json``. Every column of a raw row, its provenance
above all, travels on untouched; only a filter that cleans text changes ``messages``.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.errors import RecipeError, SourceError
from hubkit.filters import Chain, Context, Dropped, Step
from hubkit.progress import Progress, silent
from hubkit.recipe import Curate
from hubkit.schema import Conversation
from hubkit.shards import ShardWriter, disk_errors, read_batches

if TYPE_CHECKING:
    import pyarrow as pa

_JUDGED = ("id", "messages", "source", "finish_reasons", "error")  # the columns that filters may read


@dataclass
class CurateReport:
    """What became of every dialogue: ``rows_read == kept + dropped``, always; `steps` is the chain's ledger."""

    rows_read: int = 0
    kept: int = 0
    dropped: int = 0
    steps: list[Step] = field(default_factory=list)
    human_turns: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return vars(self) | {"steps": [step.to_dict() for step in self.steps]}


def curate(
    block: Curate,
    raw: list[Path],
    out: Path,
    *,
    tokenizer: Path | None = None,
    questions: dict[str, Path] | None = None,
    progress: Progress = silent,
) -> CurateReport:
    """Judge every row of `raw` by `block.filters`; write what is kept, what is dropped and why, and the report.

    `tokenizer` and `questions` are as in `hubkit.corpus.build`. Raises `SourceError` (no parquet files, a broken one,
    no ``messages`` column), `RecipeError` (unknown filter, or one that cuts dialogues up), `DiskFullError`.
    """
    import pyarrow as pa

    started = time.monotonic()
    chain = Chain(block.filters, Context(tokenizer=tokenizer, questions=questions or {}))
    report = CurateReport(steps=chain.steps)
    schema = _schema_of(raw)
    words = [pa.field("reason", pa.string()), pa.field("step", pa.string())]
    turns: Counter[int] = Counter()
    with (
        ShardWriter(out / "data", "train", schema) as kept,
        ShardWriter(out / "data", "dropped", pa.schema([*schema, *words])) as dropped,
    ):
        for batch in _batches(raw, schema, progress):
            _judge(batch, chain, kept, dropped, turns)
    report.rows_read, report.kept, report.dropped = kept.rows + dropped.rows, kept.rows, dropped.rows
    report.human_turns = {str(number): turns[number] for number in sorted(turns)}
    report.seconds = round(time.monotonic() - started, 2)
    with disk_errors(out):
        (out / "report.json").write_text(json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    return report


def _schema_of(raw: list[Path]) -> pa.Schema:
    """The one schema of all files: later files may add columns (null in earlier rows), never change a type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not raw:
        raise SourceError("there are no raw dialogues to curate; run the rollout first")
    schemas = []
    for path in raw:
        try:
            schemas.append(pq.read_schema(path).remove_metadata())
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path} is not a parquet file ({' '.join(str(error).split())[:200]})") from None
    try:
        schema = pa.unify_schemas(schemas)
    except pa.ArrowException as error:
        raise SourceError(f"the raw files disagree about their columns: {' '.join(str(error).split())[:300]}") from None
    if missing := {"id", "messages"} - set(schema.names):
        raise SourceError(f"{raw[0]} has no column {', '.join(sorted(missing))}; give the rollout's own parquet files")
    return schema


def _batches(raw: list[Path], schema: pa.Schema, progress: Progress) -> Iterator[pa.Table]:
    import pyarrow as pa

    sizes = [path.stat().st_size for path in raw]
    for index, path in enumerate(raw):
        progress(sum(sizes[:index]), sum(sizes), path.name)
        for batch in read_batches(path):
            table = pa.Table.from_batches([batch])
            for extra in set(schema.names) - set(table.column_names):
                table = table.append_column(extra, pa.nulls(table.num_rows, schema.field(extra).type))
            yield table.select(schema.names).cast(schema)
    progress(sum(sizes), sum(sizes), "")


def _judge(table: pa.Table, chain: Chain, kept: ShardWriter, dropped: ShardWriter, turns: Counter[int]) -> None:
    """One batch through the chain; rows leave in the columns they came in."""
    import pyarrow as pa

    stay: list[int] = []
    messages: list[Any] = []
    go: list[tuple[int, str, str]] = []
    changed = False
    judged = table.select([name for name in _JUDGED if name in table.column_names]).to_pylist()
    for index, row in enumerate(judged):
        conversation = _conversation(row)
        (result,) = _only(chain(conversation), conversation)
        if isinstance(result, Dropped):
            go.append((index, result.reason, result.step))
            continue
        changed = changed or result.messages is not conversation.messages
        stay.append(index)
        messages.append(result.messages)
        turns[result.human_turns] += 1
    if stay:
        rows = table.take(stay)
        if changed:
            at = table.schema.get_field_index("messages")
            rows = rows.set_column(at, table.schema.field(at), pa.array(messages, table.schema.field(at).type))
        kept.write_table(rows)
    if go:
        rows = table.take([index for index, _, _ in go])
        for name, values in (("reason", [reason for _, reason, _ in go]), ("step", [step for _, _, step in go])):
            rows = rows.append_column(name, pa.array(values, pa.string()))
        dropped.write_table(rows)


def _conversation(row: dict[str, Any]) -> Conversation:
    messages = [
        {"role": (m or {}).get("role") or "", "content": (m or {}).get("content") or ""} for m in row["messages"] or []
    ]
    return Conversation(str(row["id"]), messages, row.get("source") or "", row)  # type: ignore[arg-type]


def _only(results: Iterator[Conversation | Dropped], conversation: Conversation) -> list[Conversation | Dropped]:
    """The one verdict on a dialogue. Its per-turn columns describe its turns, so filters must leave their number be."""
    found = list(results)
    same = all(isinstance(r, Dropped) or len(r.messages) == len(conversation.messages) for r in found)
    if len(found) != 1 or not same:
        raise RecipeError("curate.filters: a filter cut a dialogue up or shortened it; only corpus.filters may do so")
    return found
