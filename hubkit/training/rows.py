"""Conversations in parquet → token rows to train on; every row that is not used has a counted
reason.

Takes parquet files with a ``messages`` column (as recorded, never swapped); gives an Arrow file of
``input_ids`` and ``labels`` below the work folder, memory-mapped, so that a corpus larger than
memory costs none."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hubkit.chat_templates import Encoded, SeatTemplates, encode_segments
from hubkit.conversation import (
    FieldPolicy,
    Message,
    Seat,
    compact,
    fault,
    filled_in,
    select_fields,
    swap_roles,
)
from hubkit.errors import SourceError, TemplateError, TrainingError
from hubkit.progress import Progress, silent
from hubkit.recipe import Training
from hubkit.untrusted import JsonObject, parse_json

_EXAMPLES = 5
_BATCH = 256
_STATS = "rows.json"


@dataclass
class Drops:
    """Rows that were left out, by reason: how many, and the ids of the first few."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, row_id: str) -> None:
        """Count one row."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        ids = self.examples.setdefault(reason, [])
        if len(ids) < _EXAMPLES:
            ids.append(row_id)

    @property
    def total(self) -> int:
        """All rows left out."""
        return sum(self.counts.values())


@dataclass
class RowStats:
    """What became of the rows. ``rows_read == rows_used + dropped + rows_over_budget``, always.

    `rows_over_budget` are rows never looked at because `max_conversations` or `max_tokens` was
    reached. `examples` are the texts that rows became: one each, or one for each answer where the
    base prints earlier answers differently. Of the `rows_compared` with the base's own template,
    `rows_differing` print differently; `rows_differing_examples` are the first of their ids. Tokens
    are per epoch, after truncation: `tokens` go through the model, `loss_tokens` carry loss;
    `truncated` examples were cut at ``max_length``."""

    rows_read: int = 0
    rows_used: int = 0
    rows_over_budget: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    truncated: int = 0
    examples: int = 0
    rows_compared: int = 0
    rows_differing: int = 0
    rows_differing_examples: list[str] = field(default_factory=list)
    dropped: Drops = field(default_factory=Drops)

    def to_dict(self) -> JsonObject:
        """Plain data for the report."""
        return asdict(self)

    def add(self, row: Row, row_id: str, max_length: int | None) -> None:
        """Count one row that is used."""
        self.rows_used += 1
        self.examples += len(row.examples)
        self.tokens += sum(len(example.input_ids) for example in row.examples)
        self.loss_tokens += sum(example.loss_tokens for example in row.examples)
        self.truncated += sum(len(example.input_ids) == max_length for example in row.examples)
        if row.same_as_base is not None:
            self.rows_compared += 1
            self.rows_differing += not row.same_as_base
            if not row.same_as_base and len(self.rows_differing_examples) < _EXAMPLES:
                self.rows_differing_examples.append(row_id)


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation, encoded: its `examples`, and whether the base prints it the same (None:
    not compared)."""

    examples: list[Encoded]
    same_as_base: bool | None = None

    def upto(self, loss_tokens: int) -> Row:
        """The part that holds the first `loss_tokens` loss-bearing tokens."""
        examples: list[Encoded] = []
        for example in self.examples:
            part = example.upto(loss_tokens)
            if not part.loss_tokens:
                break
            examples.append(part)
            loss_tokens -= part.loss_tokens
        return Row(examples, self.same_as_base)


def seat_view(
    messages: Sequence[Message],
    seat: str,
    system: str | None,
    *,
    end_mark: str | None = None,
    intent: str | None = None,
) -> list[Message]:
    """`messages` as the model in `seat` sees them: own turns ``assistant``, its system message in
    front.

    An asker never sees the system message that was addressed to the chat model. A chat model keeps
    a conversation's own system message, and gets `system` where there is none. With `end_mark` and
    a conversation that ends on the partner's turn, the seat's last turn is that mark: how it learns
    to stop. `intent` goes into `system`, in place of ``{intent}`` or, without that, as a paragraph
    after it, just as a rollout writes it."""
    if intent:
        system = filled_in(system or "", "intent", intent)
    turns = [m for m in messages if m["role"] != "system"]
    own_system = next((m["content"] for m in messages if m["role"] == "system"), None)
    if seat == "user":
        turns, own_system = swap_roles(turns), None
    if end_mark and turns and turns[-1]["role"] == "user":
        turns = [*turns, {"role": "assistant", "content": end_mark}]
    head = own_system or system
    return [{"role": "system", "content": head}, *turns] if head else turns


class RowMaker:
    """Turns one recorded row into an encoded one, or into the reason why it cannot be trained on.

    Args:
        block: Seat, system message, end mark, and what is done with thinking and tools.
        tokenizer: The base's.
        templates: How the base prints conversations.
        max_length: Tokens after which an example is cut off."""

    def __init__(
        self, block: Training, tokenizer: Any, templates: SeatTemplates, *, max_length: int | None
    ) -> None:
        self.block, self.tokenizer, self.templates = block, tokenizer, templates
        self.max_length = max_length

    def __call__(self, row: Mapping[str, Any]) -> Row | str:
        view = self.view(row)
        if isinstance(view, str):
            return view
        seat = self.block.seat
        try:
            texts = self.templates.examples(view, seat, tools=_tools(row))
        except TemplateError:
            return "template_refuses"
        encoded = [
            encode_segments(self.tokenizer, text, max_length=self.max_length) for text in texts
        ]
        examples = [example for example in encoded if example.loss_tokens]
        if not examples:
            return "no_loss_tokens" if texts else "answers_without_thinking"
        return Row(examples, self.templates.same_as_base(_recorded(view, seat), seat))

    def view(self, row: Mapping[str, Any]) -> list[Message] | str:
        """The row's messages as the seat sees them, or the reason why there is nothing to learn."""
        block = self.block
        messages = row.get("messages")
        if not isinstance(messages, list):
            return "bad_message"
        if any(not isinstance(message, dict) for message in messages):
            return "bad_message"
        messages = compact(messages)
        if reason := fault(messages, first=None):
            return reason
        thinking: FieldPolicy = "keep" if block.thinking == "keep" else "drop"
        messages = select_fields(messages, tools=block.tools or "keep", thinking=thinking)
        if reason := fault(messages, first=None):
            return reason
        if not any(m["role"] == block.seat for m in messages):
            return "no_seat_turn"
        if not any(m["role"] == block.seat and m.get("train", True) for m in messages):
            return "flagged_not_to_train"
        intent = row.get(block.intent_column) if block.intent_column else None
        if block.intent_column and not (isinstance(intent, str) and intent.strip()):
            return "no_intent"
        return seat_view(messages, block.seat, block.system, end_mark=block.end_mark, intent=intent)


def _tools(row: Mapping[str, Any]) -> list[Any] | None:
    """The descriptions of the tools that a row's conversation may call."""
    try:
        tools = parse_json(row.get("tools") or "null")
    except ValueError:
        return None
    return tools if isinstance(tools, list) else None


def _recorded(view: list[Message], seat: Seat) -> list[Message]:
    """`view` as recorded, up to the seat's own last turn."""
    last = max(i for i, message in enumerate(view) if message["role"] == "assistant")
    return swap_roles(view[: last + 1]) if seat == "user" else view[: last + 1]


def prepare(
    block: Training,
    data: Sequence[Path],
    maker: RowMaker,
    out: Path,
    *,
    seed: int,
    progress: Progress = silent,
) -> tuple[Path, RowStats]:
    """Encode rows in an order drawn from `seed` until the block's budget is full; write them to
    ``out``/rows.arrow.

    Raises `SourceError` for a file that is not parquet with a ``messages`` column and
    `TrainingError` when nothing is left, or when more than ``max_drop_share`` of the rows looked at
    had to be dropped."""
    import pyarrow as pa

    stats = RowStats()
    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
    path = out / "rows.arrow"
    out.mkdir(parents=True, exist_ok=True)
    (out / _STATS).unlink(missing_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in _batches(_encoded(block, data, maker, stats, seed, progress), _BATCH):
            columns = {
                "input_ids": [e.input_ids for e in batch],
                "labels": [e.labels for e in batch],
            }
            writer.write_table(pa.table(columns, schema=schema))
    _refuse_if_too_few(block, stats)
    (out / _STATS).write_text(json.dumps(stats.to_dict()), "utf-8")
    return path, stats


def prepared(
    block: Training,
    data: Sequence[Path],
    maker: RowMaker,
    out: Path,
    *,
    seed: int,
    progress: Progress = silent,
) -> tuple[Path, RowStats]:
    """What `prepare` with the same arguments wrote, in another process of the same run."""
    try:
        facts = parse_json((out / _STATS).read_text("utf-8"))
    except OSError:
        raise TrainingError(
            f"the first process left no rows in {out}; its own error says why"
        ) from None
    return out / "rows.arrow", RowStats(**{**facts, "dropped": Drops(**facts["dropped"])})


def _encoded(
    block: Training,
    data: Sequence[Path],
    maker: RowMaker,
    stats: RowStats,
    seed: int,
    progress: Progress,
) -> Iterator[Encoded]:
    rows = table(data, ["id", "messages", "tools", block.intent_column])
    stats.rows_read = rows.num_rows
    order = list(range(rows.num_rows))
    random.Random(seed).shuffle(order)
    for position, index in enumerate(order):
        if _full(block, stats):
            stats.rows_over_budget = stats.rows_read - position
            return
        row = rows.slice(index, 1).to_pylist()[0]
        encoded = maker(row)
        if isinstance(encoded, str):
            stats.dropped.add(encoded, str(row.get("id", index)))
            continue
        if block.max_loss_tokens is not None:
            encoded = encoded.upto(block.max_loss_tokens - stats.loss_tokens)
        stats.add(encoded, str(row.get("id", index)), maker.max_length)
        if position % 64 == 0:
            progress(_share(block, stats, position), 1, "tokenising")
        yield from encoded.examples


def _share(block: Training, stats: RowStats, rows_seen: int) -> float:
    """How far tokenising is: to a budget of the block, or to the end of the rows."""
    ways = [(rows_seen, stats.rows_read)]
    if block.max_conversations is not None:
        ways.append((stats.rows_used, block.max_conversations))
    if block.max_tokens is not None:
        ways.append((stats.tokens, block.max_tokens))
    return min(1.0, max(position / max(end, 1) for position, end in ways))


def _full(block: Training, stats: RowStats) -> bool:
    limits = (
        (block.max_conversations, stats.rows_used),
        (block.max_tokens, stats.tokens),
        (block.max_loss_tokens, stats.loss_tokens),
    )
    return any(limit is not None and count >= limit for limit, count in limits)


def table(data: Sequence[Path], columns: Sequence[str | None]) -> Any:
    """The `columns` of all files as one memory-mapped Arrow table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for path in data:
        try:
            table = pq.read_table(path, memory_map=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise SourceError(
                f"{path} cannot be read as parquet ({type(error).__name__}); write it again"
            ) from None
        if "messages" not in table.column_names:
            raise SourceError(
                f"{path} has no column 'messages' (it has {', '.join(table.column_names)})"
            )
        tables.append(table.select([name for name in columns if name in table.column_names]))
    if not tables:
        raise SourceError("training was given no data files; name at least one parquet file")
    return pa.concat_tables(tables, promote_options="permissive")


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _refuse_if_too_few(block: Training, stats: RowStats) -> None:
    why = (
        ", ".join(f"{reason} {count}" for reason, count in sorted(stats.dropped.counts.items()))
        or "no rows at all"
    )
    if not stats.rows_used:
        raise TrainingError(
            f"none of {stats.rows_read} rows can be trained on ({why}); look at the data set"
        )
    looked_at = stats.rows_read - stats.rows_over_budget
    share = stats.dropped.total / looked_at
    if share > block.max_drop_share:
        raise TrainingError(
            f"{stats.dropped.total} of {looked_at} rows ({share:.0%}) would be dropped ({why}), "
            f"more than the recipe's max_drop_share of {block.max_drop_share:.0%}; clean the data "
            "set or raise max_drop_share"
        )
