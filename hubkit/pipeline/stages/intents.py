"""What each conversation's human wants, in one line: a column of the corpus, a judge's where the
recipe names one.

It is a part of the corpus stage, and not of the asker's, because three later stages read the
same line: the asker is trained under it, dialogues open with that of their opening, and the
scorecard asks for turns under it. So it is kept with the conversation, in the commit that all
three name, and is paid for once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hubkit.conversation import ConversationRow
from hubkit.data.corpus import INTENT
from hubkit.data.parquet import ShardWriter, read_batches
from hubkit.errors import StageError
from hubkit.hub import Ref
from hubkit.judging import clipped, line
from hubkit.pipeline.judges import prompted_judge
from hubkit.pipeline.stage import RunContext, StageDirs, cap_raised
from hubkit.recipe import Intents, Recipe
from hubkit.untrusted import JsonObject, count_in, object_in

_TURN_CHARS, _TURNS = 600, 16  # of a person's turns, what a judge is shown: an intent shows early


def add(
    context: RunContext, inputs: dict[str, Ref], dirs: StageDirs, report: JsonObject
) -> JsonObject:
    """`report`, with what became of the intents; where a judge words them, the built corpus is
    given its lines.

    Raises `StageError` when more rows than the recipe allows have none, `EndpointError` when the
    judge cannot be asked."""
    block = context.recipe.corpus.intents
    if block is None:
        return report
    facts: JsonObject = {"from": f"column {block.column}"}
    if block.heuristic is not None:
        facts = {"from": f"heuristic {block.heuristic}"}
    if block.judging is not None:
        with prompted_judge(context, "corpus", block.judging, inputs, dirs, "intent-v1") as judge:
            wordings = judge.ask(_turns(dirs.out / "data"), line, dirs.progress)
        facts = {"from": "judge", **judge.stats}
        _write(dirs.out / "data", wordings)
    rows, named = _count(dirs.out / "data")
    facts |= {"rows": rows, "with_intent": named}
    if block.heuristic is not None:
        how = f"intents by the heuristic {block.heuristic}: no judge was asked"
        dirs.progress(0, None, how)
    _check(block, facts)
    return report | {"intents": facts}


def outgrown(recipe: Recipe, record: Mapping[str, Any]) -> bool:
    """Whether a cap ended the judge's work in `record`, and `recipe` has raised it since."""
    stopped = (record["report"].get("intents") or {}).get("stopped")
    block = recipe.corpus.intents
    then = (record["block"].get("intents") or {}).get("judging") or {}
    return cap_raised(stopped, then, block.judging if block else None)


def _check(block: Intents, facts: JsonObject) -> None:
    rows = count_in(facts, "rows")
    missing = rows - count_in(facts, "with_intent")
    if rows and missing / rows > block.max_missing_share:
        why = ", ".join(
            f"{reason} {count}" for reason, count in sorted(object_in(facts, "missing").items())
        )
        raise StageError(
            f"{missing} of {rows} conversations have no intent ({why or facts['from']}), "
            f"more than max_missing_share of {block.max_missing_share:.0%}; "
            "what a judge has said is kept, and the same command asks for the rest: "
            "raise its caps, look at its replies, or raise corpus.intents.max_missing_share"
        )


def _shards(data: Path) -> list[Path]:
    return sorted(data.glob("*.parquet"))


def _rows(data: Path) -> Iterator[ConversationRow]:
    for shard in _shards(data):
        for batch in read_batches(shard):
            yield from batch.to_pylist()


def _turns(data: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Each conversation's id, and its person's turns as the judge sees them."""
    for row in _rows(data):
        human_turns = [message for message in row["messages"] if message["role"] == "user"]
        yield row["id"], {"turns": clipped(human_turns[:_TURNS], _TURN_CHARS)}


def _write(data: Path, wordings: dict[str, str]) -> None:
    """The shards anew, with the lines of `wordings` in the column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    worded = data.with_name("worded")
    for split in dict.fromkeys(shard.name.partition("-")[0] for shard in _shards(data)):
        shards = [shard for shard in _shards(data) if shard.name.startswith(f"{split}-")]
        schema = pq.read_schema(shards[0])
        with ShardWriter(worded, split, schema) as writer:
            for batch in (batch for shard in shards for batch in read_batches(shard)):
                lines = pa.array(
                    [wordings.get(name) for name in batch.column("id").to_pylist()], pa.string()
                )
                table = pa.Table.from_batches([batch])
                writer.write_table(table.set_column(schema.get_field_index(INTENT), INTENT, lines))
    shutil.rmtree(data)
    worded.rename(data)


def _count(data: Path) -> tuple[int, int]:
    """Rows, and those with an intent."""
    rows = named = 0
    for shard in _shards(data):
        for batch in read_batches(shard):
            rows += batch.num_rows
            named += sum(bool(text and text.strip()) for text in batch.column(INTENT).to_pylist())
    return rows, named
