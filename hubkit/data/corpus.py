"""Messy conversations → a dataset: read, cleaned by the recipe's chain, split, written, every row
accounted for.

Takes files and the recipe's ``corpus`` block; writes ``data/{train,openings,test}-*.parquet``
(columns ``id``, ``messages``, ``source``) and ``report.json``. Streams: memory grows by some bytes
a row, not with the files."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from hubkit.conversation import OPTIONAL_FIELDS, Conversation
from hubkit.data.filters import Context, Dropped, Step, Tally, count
from hubkit.data.filters.parallel import Results, run, workers_for
from hubkit.data.parquet import ShardWriter, conversation_schema, disk_errors, read_batches
from hubkit.data.readers import files as reading
from hubkit.data.readers.items import Broken
from hubkit.data.readers.layouts import Unreadable, conversation_of, id_of
from hubkit.data.readers.message_trees import assemble, branches
from hubkit.data.readers.parts import join
from hubkit.data.splits import SPLITS, Splitter
from hubkit.errors import StageError
from hubkit.progress import Progress, silent
from hubkit.recipe import Corpus

__all__ = ["INTENT", "CorpusReport", "FileReport", "build", "read"]
INTENT = "intent"  # the column, and the key of a conversation's meta
TOOLS = "tools"  # the same; the JSON text of the tools' descriptions, as TRL reads it


@dataclass
class FileReport:
    """What one file gave: `rows` seen, of which some were `unreadable` and some `joined` with a
    neighbour.

    `lost_bytes` went with the unreadable ones where that is known. `other_branches` counts the ways
    through message trees that were not taken: a tree gives one conversation, the one along the
    replies that people ranked first."""

    file: str
    source: str
    bytes: int
    rows: int = 0
    unreadable: dict[str, Tally] = field(default_factory=dict)
    joined: int = 0
    other_branches: int = 0
    lost_bytes: int = 0
    cut_off_at: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The file as a report holds it."""
        data = {key: value for key, value in vars(self).items() if key != "unreadable"}
        return data | {
            "unreadable": {reason: tally.to_dict() for reason, tally in self.unreadable.items()}
        }


@dataclass
class CorpusReport:
    """What became of every row: ``rows_read + added == kept + dropped + unreadable + joined``,
    always.

    `joined` counts rows that went into a neighbour (parts of one conversation), `added` the further
    rows that a filter cut conversations into. `splits` gives rows per split; `steps` the chain's
    ledger, splitting last."""

    files: list[FileReport] = field(default_factory=list)
    rows_read: int = 0
    unreadable: int = 0
    joined: int = 0
    added: int = 0
    dropped: int = 0
    kept: int = 0
    renamed: int = 0
    steps: list[Step] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)
    human_turns: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        data = dict(vars(self))
        data["files"] = [file.to_dict() for file in self.files]
        data["steps"] = [step.to_dict() for step in self.steps]
        return data

    def check(self) -> None:
        """Raise `StageError` where the sums do not come out: a row lost in silence is a bug, not a
        result.
        """
        if self.rows_read + self.added != self.kept + self.dropped + self.unreadable + self.joined:
            raise StageError(
                f"the corpus lost count of its rows ({self.to_dict()}); this is a bug, please report it"
            )


def build(
    block: Corpus,
    files: list[Path],
    out: Path,
    *,
    seed: int,
    tokenizer: Path | None = None,
    questions: dict[str, Path] | None = None,
    workers: int | None = None,
    few: bool = False,
    progress: Progress = silent,
) -> CorpusReport:
    """Read `files`, clean and split them by `block`, write ``out/data`` and ``out/report.json``.

    `tokenizer` is a folder with a ``tokenizer.json``, or that file, for filters that count tokens;
    `questions` names files of benchmark questions for decontamination; `workers` is a number of
    processes (None: by the size of the input); results do not depend on it. With `few`, where too
    little is left for openings and test, all of it is trained on. Raises `SourceError` (a file is
    missing), `RecipeError` (unknown filter or argument), `StageError` (too little is left, without
    `few`), `DiskFullError`."""
    started = time.monotonic()
    report = CorpusReport(seed=seed)
    found = reading.data_files(files)
    report.steps, judged = run(
        block.filters,
        Context(tokenizer=tokenizer, questions=questions or {}),
        _conversations(block, found, report, progress),
        workers=workers_for(sum(path.stat().st_size for path in found))
        if workers is None
        else workers,
        on=block.on,
    )
    kept_file = out / "kept"
    splitter = Splitter(seed)
    try:
        fields: set[str] = set()
        with ShardWriter(kept_file, "kept", _schema(block, (*OPTIONAL_FIELDS, TOOLS))) as kept:
            names = _Names()
            for conversation in _kept(judged, report):
                splitter.add(conversation)
                fields.update(*conversation.messages)
                row: dict[str, Any] = {"id": names.unique(conversation.id)}
                row["messages"] = conversation.messages
                row |= {"source": conversation.source, INTENT: conversation.meta.get(INTENT)}
                if TOOLS in conversation.meta:
                    fields.add(TOOLS)
                    row[TOOLS] = conversation.meta[TOOLS]
                kept.write(row)
            report.renamed = names.renamed
        places = splitter.assign(openings=block.openings, test=block.test, few=few)
        _write_splits(kept.paths, out / "data", places, _schema(block, fields), report)
    finally:
        for path in kept_file.glob("*"):
            path.unlink()
        if kept_file.exists():
            kept_file.rmdir()
    report.seconds = round(time.monotonic() - started, 2)
    report.check()
    with disk_errors(out):
        (out / "report.json").write_text(
            json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8"
        )
    return report


def read(
    path: Path, *, source: str = "", report: FileReport | None = None
) -> Iterator[Conversation]:
    """Every conversation of one file of any known layout; what is unreadable is counted in
    `report`.
    """
    report = report or FileReport(path.name, source, path.stat().st_size if path.exists() else 0)
    yield from _read(path, report, lambda _: None)


def _read(
    path: Path, report: FileReport, on_bytes: reading.OnBytes, intent_column: str | None = None
) -> Iterator[Conversation]:
    for item in assemble(reading.rows(path, on_bytes)):
        place = f"{_printable(path.name)}:{item.place}"
        if isinstance(item, Broken):
            report.rows += 1
            count(report.unreadable, item.reason, item.row_id or place)
            report.lost_bytes += item.lost_bytes
            if item.reason == "cut_off":
                report.cut_off_at = item.place
            continue
        report.rows += item.rows
        report.joined += item.rows - 1
        try:
            conversation = conversation_of(item.value, report.source, place)
        except Unreadable as error:
            count(report.unreadable, error.reason, id_of(item.value) or place)
            continue
        if isinstance(item.value.get("prompt"), Mapping):
            report.other_branches += branches(item.value["prompt"]) - 1
        if (
            intent_column
            and isinstance(text := item.value.get(intent_column), str)
            and text.strip()
        ):
            conversation.meta[INTENT] = " ".join(text.split())
        yield conversation


def _conversations(
    block: Corpus, found: list[Path], report: CorpusReport, progress: Progress
) -> Iterator[Conversation]:
    """Every conversation of every file, its parts joined where the recipe says so; `report` counts
    along.
    """
    sizes = [path.stat().st_size for path in found]
    room = block.limit
    for index, path in enumerate(found):
        if room is not None and room <= 0:
            break
        file = FileReport(_printable(path.name), _source_name(block, path), sizes[index])
        report.files.append(file)
        column = block.intents.column if block.intents else None
        rows = islice(_read(path, file, _bytes_of(progress, sizes, index, path.name), column), room)
        for conversation, made_of in join(rows) if block.join_parts else ((row, 1) for row in rows):
            file.joined += made_of - 1
            room = None if room is None else room - made_of
            yield conversation
    report.rows_read = sum(file.rows for file in report.files)
    report.joined = sum(file.joined for file in report.files)
    report.unreadable = sum(
        tally.count for file in report.files for tally in file.unreadable.values()
    )


def _bytes_of(progress: Progress, sizes: list[int], index: int, name: str) -> reading.OnBytes:
    before, total = sum(sizes[:index]), sum(sizes)
    size, unit = (10**6, "MB") if total >= 10**7 else (10**3, "kB")
    return lambda done: progress(-(-(before + done) // size), -(-total // size), f"{name}, {unit}")


def _source_name(block: Corpus, path: Path) -> str:
    """The repo that `path` belongs to by the recipe, else the file's own name."""
    named = [
        s for s in block.sources if path.name in (Path(f).name for f in s.files)
    ] or block.sources
    return (named[0].repo_id if len(named) == 1 else None) or _printable(path.name)


def _printable(name: str) -> str:
    """A file's name as UTF-8 can hold it."""
    return name.encode("utf-8", "replace").decode()


def _kept(
    judged: Iterator[tuple[Conversation, Results]], report: CorpusReport
) -> Iterator[Conversation]:
    for _, results in judged:
        for result in results:
            if isinstance(result, Dropped):
                report.dropped += 1
            else:
                yield result
    report.added = sum(step.added for step in report.steps)


def _schema(block: Corpus, fields: Collection[str]) -> Any:
    """The columns of the dataset, with the optional message fields that are in use.

    ``intent`` is there where the recipe asks for it, though a judge fills it in later; ``tools``
    where a row describes some.
    """
    import pyarrow as pa

    text = pa.string()
    tools = [(TOOLS, text)] if TOOLS in fields else []
    intent = [(INTENT, text)] if block.intents else []
    return conversation_schema([*tools, *intent], optional_fields=fields)


def _write_splits(
    kept: list[Path], data: Path, places: list[int | None], schema: Any, report: CorpusReport
) -> None:
    """Second pass: each kept row to its split, in order; the split is the last step of the
    ledger.
    """
    import pyarrow as pa

    step = Step("split", rows_in=len(places))
    turns: Counter[int] = Counter()
    conversations: set[int] = (
        set()
    )  # a segment's id is its conversation's, with #2, #3, … behind it
    at = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(ShardWriter(data, name, schema)) for name in SPLITS]
        for batch in (batch for path in kept for batch in read_batches(path)):
            here = places[at : at + batch.num_rows]
            at += batch.num_rows
            for split, writer in enumerate(writers):
                if rows := [row for row, place in enumerate(here) if place == split]:
                    table = pa.Table.from_batches([batch.take(pa.array(rows))])
                    writer.write_table(table.select(schema.names).cast(schema))
            for row, messages in enumerate(batch.column("messages").to_pylist()):
                name = batch.column("id")[row].as_py()
                if here[row] is None:
                    count(step.dropped, "continues_an_opening", name)
                else:
                    conversations.add(_hash64(name.partition("#")[0]))
                turns[sum(message["role"] == "user" for message in messages)] += 1
    step.rows_out, step.conversations_out = (
        sum(writer.rows for writer in writers),
        len(conversations),
    )
    report.steps.append(step)
    report.kept = step.rows_out
    report.dropped += step.rows_in - step.rows_out
    report.splits = {name: writer.rows for name, writer in zip(SPLITS, writers, strict=True)}
    report.human_turns = {str(number): turns[number] for number in sorted(turns)}


class _Names:
    """Makes ids unique: the second row of one id becomes ``ID-2``. Remembers 8 bytes an id."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self.renamed = 0

    def unique(self, name: str) -> str:
        """`name`, or `name` with the first number that makes it new."""
        key = _hash64(name)
        if key not in self._seen:
            self._seen[key] = 1
            return name
        self.renamed += 1
        while True:
            self._seen[key] += 1
            candidate = f"{name}-{self._seen[key]}"
            if _hash64(candidate) not in self._seen:
                self._seen[_hash64(candidate)] = 1
                return candidate


def _hash64(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
