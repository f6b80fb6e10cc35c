"""Messy conversations → a dataset: read, cleaned by the recipe's chain, split, written, every row
accounted for.

Takes files and the recipe's ``corpus`` block; writes ``data/{train,openings,test}-*.parquet``
(columns ``id``, ``messages``, ``source``) and ``report.json``. Streams: memory grows by some bytes
a row, not with the files."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from hubkit.conversation import OPTIONAL_FIELDS, Conversation
from hubkit.data.filters import Context, Dropped, Step, Tally, count
from hubkit.data.filters.parallel import Results, run, workers_for
from hubkit.data.intents import HEURISTICS
from hubkit.data.parquet import ShardWriter, conversation_schema, disk_errors, read_batches
from hubkit.data.readers.advice import REASONS, options_for
from hubkit.data.readers.containers import OnBytes
from hubkit.data.readers.explain import nothing_left, nothing_readable
from hubkit.data.readers.files import find_files
from hubkit.data.readers.files import rows as file_rows
from hubkit.data.readers.items import Broken, Item, PassedOver
from hubkit.data.readers.layouts import Reading, id_of, read_row, unread_columns
from hubkit.data.readers.message_trees import assemble
from hubkit.data.readers.parts import find_parts
from hubkit.data.readers.paths import resolve
from hubkit.data.readers.rules import Draft, ReadingRules, Unreadable
from hubkit.data.readers.turn_rows import join_turns
from hubkit.data.readers.wrappers import row_test, unwrap
from hubkit.data.splits import SPLITS, Splitter
from hubkit.errors import StageError
from hubkit.progress import Progress, silent
from hubkit.recipe import Corpus, Source
from hubkit.untrusted import JsonObject

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["INTENT", "CorpusReport", "FileReport", "SourceFile", "build", "read"]
INTENT = "intent"  # the column, and the key of a conversation's meta
T = TypeVar("T")
_SAY_EVERY_S = 0.1
USER = "user"  # the column that says, by a name of no meaning, whose a conversation is
_PERSON = "person"  # the key of a conversation's meta that says whose it is
_MAX_TRIES = 50  # rows of a file for which options are looked for
_MAX_NAMES = 200  # of columns, keys and files that a report names
TOOLS = "tools"  # the same; the JSON text of the tools' descriptions, as TRL reads it


class SourceFile(NamedTuple):
    """A file or folder, and what the recipe says about it."""

    path: Path
    source: Source


@dataclass
class FileReport:
    """What one file gave: `rows` seen, of which some were `unreadable` and some `joined` with a
    neighbour.

    `lost_bytes` is the size of the unreadable ones where that is known. `other_branches` counts the
    ways through message trees that were not taken: a tree gives one conversation. `notes` counts
    conversations by what reading changed (`hubkit.data.readers.trims.NOTES`). `unread_columns` and
    `unread_fields` count rows and turns by the column or key whose text was not read,
    `unknown_roles` and `unknown_keys` the unreadable rows by the role or the set of keys that is
    not known; `options` says what to try on them. `likely_encoding` is a guess at text that is not
    UTF-8; `passed_over` names what was not looked at, such as members of an archive."""

    file: str
    source: str
    bytes: int
    rows: int = 0
    unreadable: dict[str, Tally] = field(default_factory=dict)
    joined: int = 0
    other_branches: int = 0
    lost_bytes: int = 0
    cut_off_at: str | None = None
    notes: dict[str, Tally] = field(default_factory=dict)
    unread_columns: dict[str, int] = field(default_factory=dict)
    unread_fields: dict[str, int] = field(default_factory=dict)
    unknown_roles: dict[str, int] = field(default_factory=dict)
    unknown_keys: dict[str, int] = field(default_factory=dict)
    options: str | None = None
    likely_encoding: str | None = None
    passed_over: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        """The file as a report holds it."""
        data = dict(vars(self))
        for name in ("unreadable", "notes"):
            data[name] = {reason: tally.to_dict() for reason, tally in data[name].items()}
        return data


@dataclass
class CorpusReport:
    """What became of every row: ``rows_read + added == kept + dropped + unreadable + joined``,
    always.

    `joined` counts rows that went into a neighbour (parts of one conversation), `added` the further
    rows that a filter cut conversations into. `splits` gives rows per split; `steps` the chain's
    ledger, splitting last; `people` counts whose conversations were kept, where a source says;
    `passed_over` names what lies in the folders and was not read, and why."""

    files: list[FileReport] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
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
    people: int = 0
    seed: int = 0
    seconds: float = 0.0

    def to_dict(self) -> JsonObject:
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
                f"the corpus lost count of its rows ({self.to_dict()}); "
                "this is a bug, please report it"
            )


def build(
    block: Corpus,
    files: Sequence[Path | SourceFile],
    out: Path,
    *,
    seed: int,
    context: Context | None = None,
    workers: int | None = None,
    few: bool = False,
    progress: Progress = silent,
) -> CorpusReport:
    """Read `files`, clean and split them by `block`, write ``out/data`` and ``out/report.json``.

    Args:
        block: The recipe's ``corpus``.
        files: Files and folders, in the order in which they are read; one without a source of its
            own has that of `block` which names it.
        out: The folder that the dataset goes to.
        seed: Decides which conversations go to which split.
        context: What filters need from outside the recipe.
        workers: A number of processes; None: by the size of the input. Results do not depend on it.
        few: Where too little is left for openings and test, train on all of it.
        progress: Called with the bytes of the files whose conversations are cleaned.

    Raises:
        SourceError: A file is missing, or nothing in all of them is readable.
        RecipeError: A filter or an argument is unknown.
        StageError: Too little is left: nothing, or (without `few`) too little for the splits.
        DiskFullError: The disk is full."""
    started = time.monotonic()
    report = CorpusReport(seed=seed)
    inputs = _inputs(block, files, report)
    gauge = _Gauge(progress, [path.stat().st_size for path, _ in inputs])
    report.steps, results = run(
        block.filters,
        context or Context(),
        gauge.entering(_conversations(block, inputs, report, gauge)),
        workers=workers_for(sum(path.stat().st_size for path, _ in inputs))
        if workers is None
        else workers,
        on=block.on,
    )
    kept_file = out / "kept"
    splitter = Splitter(seed)
    try:
        fields: set[str] = set()
        with ShardWriter(kept_file, "kept", _schema(block, (*OPTIONAL_FIELDS, TOOLS))) as writer:
            names = _Names()
            for conversation in _survivors(gauge.leaving(results), report):
                splitter.add(conversation)
                fields.update(*(m for m in conversation.messages if len(m) > 2))
                row: dict[str, object] = {"id": names.unique(conversation.id)}
                row["messages"] = conversation.messages
                row |= {"source": conversation.source, INTENT: _intent(block, conversation)}
                row[USER] = splitter.user(conversation)
                if TOOLS in conversation.meta:
                    fields.add(TOOLS)
                    row[TOOLS] = conversation.meta[TOOLS]
                writer.write(row)
            report.renamed = names.renamed
        if not splitter.rows:
            raise nothing_left(report)
        progress(0, None, "splitting and writing what is kept")
        report.people = splitter.people
        places = splitter.assign(openings=block.openings, test=block.test, few=few)
        _write_splits(writer.paths, out / "data", places, _schema(block, fields), report)
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
    path: Path,
    *,
    source: str = "",
    report: FileReport | None = None,
    rules: ReadingRules | None = None,
) -> Iterator[Conversation]:
    """Read every conversation of one file of any known layout; what is unreadable is counted in
    `report`.
    """
    report = report or FileReport(path.name, source, path.stat().st_size if path.exists() else 0)
    yield from _read(path, report, lambda _: None, rules or ReadingRules())


def _read(
    path: Path,
    report: FileReport,
    on_bytes: OnBytes,
    rules: ReadingRules,
    intent_column: str | None = None,
    person_column: str | None = None,
) -> Iterator[Conversation]:
    tries = 0
    for item in _items(path, on_bytes, rules):
        if isinstance(item, PassedOver):
            if len(report.passed_over) < _MAX_NAMES:
                report.passed_over[item.name] = item.reason
            continue
        position = f"{_printable(path.name)}:{item.position}"
        if isinstance(item, Broken):
            report.rows += item.rows
            report.joined += item.rows - 1
            count(report.unreadable, item.reason, item.row_id or position)
            if item.keys is not None:
                _count_name(report.unknown_keys, item.keys)
            report.lost_bytes += item.lost_bytes
            report.likely_encoding = report.likely_encoding or item.encoding
            if item.reason == "cut_off":
                report.cut_off_at = item.position
            continue
        report.rows += item.rows
        report.joined += item.rows - 1
        try:
            reading = read_row(
                item.value, report.source, position, rules, label=item.label, turns=item.turns
            )
        except Unreadable as error:
            count(report.unreadable, error.reason, id_of(item.value) or position)
            if error.detail is not None:
                by_role = error.reason == "unknown_role"
                names = report.unknown_roles if by_role else report.unknown_keys
                _count_name(names, error.detail)
            if error.reason in REASONS and report.options is None and tries < _MAX_TRIES:
                tries += 1
                report.options = options_for(item.value, rules)
            continue
        _count_reading(item.value, reading, report, intent_column, person_column)
        yield reading.conversation


def _items(path: Path, on_bytes: OnBytes, rules: ReadingRules) -> Iterator[Item]:
    """The rows of a file, each a conversation if it is anything, and the gaps."""
    items = file_rows(path, on_bytes, encoding=rules.encoding, is_one=row_test(rules))
    if rules.conversation is not None:
        return join_turns(unwrap(items, rules), rules)
    return unwrap(assemble(items), rules)


def _count_reading(
    row: Any,
    reading: Reading,
    report: FileReport,
    intent_column: str | None,
    person_column: str | None,
) -> None:
    """Count what reading a row changed and left out; its intent and whose it is go into the
    meta.
    """
    conversation, draft = reading
    report.other_branches += draft.other_branches
    for word in draft.notes:
        count(report.notes, word, conversation.id)
    for key, number in draft.unread_fields.items():
        _count_name(report.unread_fields, key, number)
    if not isinstance(row, Mapping):
        return
    text = _used(row, intent_column, draft) if intent_column else None
    if isinstance(text, str) and text.strip():
        conversation.meta[INTENT] = " ".join(text.split())
    person = _used(row, person_column, draft) if person_column else None
    if isinstance(person, str | int) and str(person).strip():
        conversation.meta[_PERSON] = str(person).strip()
    for name in unread_columns(row, draft):
        _count_name(report.unread_columns, name)


def _used(row: Mapping[str, Any], column: str, draft: Draft) -> Any:
    """What a column of the row holds that is no part of the conversation, now read."""
    keys, value = resolve(row, column)
    draft.use(keys)
    return value


def _count_name(counts: dict[str, int], name: str, number: int = 1) -> None:
    name = _printable(name)[:200]
    key = name if name in counts or len(counts) < _MAX_NAMES else "…"
    counts[key] = counts.get(key, 0) + number


def _inputs(
    block: Corpus, files: Sequence[Path | SourceFile], report: CorpusReport
) -> list[tuple[Path, Source]]:
    """Every file below `files` with its source; what is passed over in folders goes to `report`."""
    inputs: list[tuple[Path, Source]] = []
    for item in files:
        path, source = item if isinstance(item, SourceFile) else (item, None)
        below, passed = find_files([path])
        for left_out in passed[: _MAX_NAMES - len(report.passed_over)]:
            report.passed_over[_printable(left_out.name)] = left_out.reason
        inputs += [(p, source or _source_of(block, p)) for p in below]
    return inputs


def _source_of(block: Corpus, path: Path) -> Source:
    """The source of the recipe that `path` belongs to, by its name."""
    matches = [s for s in block.sources if path.name in (Path(f).name for f in s.files)]
    matches = matches or block.sources
    return matches[0] if len(matches) == 1 else Source(path=_printable(path.name))


def _rules(block: Corpus, source: Source) -> ReadingRules:
    return ReadingRules(
        turns=source.columns.turns,
        role=source.columns.role,
        text=source.columns.text,
        system=source.columns.system,
        conversation=source.columns.conversation,
        order=source.columns.order,
        roles={name.strip().rstrip(":").lower(): seat for name, seat in source.roles.items()},
        encoding=source.encoding,
        repeated_turns=block.repeated_turns,
        second_system=block.second_system,
        tools=block.tools,
        thinking=block.thinking,
    )


def _conversations(
    block: Corpus, inputs: list[tuple[Path, Source]], report: CorpusReport, gauge: _Gauge
) -> Iterator[Conversation]:
    """Read every conversation of every file, its parts joined where the recipe says so, and count
    in `report`. Raises `SourceError` where there is none.
    """
    remaining = block.limit
    conversations = 0
    for index, (path, source) in enumerate(inputs):
        if remaining is not None and remaining <= 0:
            break
        name = _printable(path.name)
        file = FileReport(name, source.repo_id or name, gauge.sizes[index])
        report.files.append(file)
        intent, person = (
            block.intents.column if block.intents else None,
            source.columns.person,
        )
        on_bytes = gauge.file(index, name)
        rows = islice(_read(path, file, on_bytes, _rules(block, source), intent, person), remaining)
        for conversation, number in find_parts(rows, join=block.join_parts):
            file.joined += number - 1
            remaining = None if remaining is None else remaining - number
            conversations += 1
            yield conversation
    report.rows_read = sum(file.rows for file in report.files)
    report.joined = sum(file.joined for file in report.files)
    report.unreadable = sum(
        tally.count for file in report.files for tally in file.unreadable.values()
    )
    if not conversations:
        raise nothing_readable(report.files)


class _Gauge:
    """How far cleaning is: bytes of the files whose conversations have left the chain of filters,
    which reads ahead of itself.
    """

    def __init__(self, progress: Progress, sizes: list[int]) -> None:
        self.sizes = sizes
        self._progress, self._total = progress, sum(sizes)
        self._read, self._name, self._done, self._said_at = 0, "", 0, 0.0
        self._under_way: deque[int] = deque()  # what was read when each conversation went in

    def file(self, index: int, name: str) -> OnBytes:
        """What the reader of file `index` tells how many of its bytes it has read."""
        before = sum(self.sizes[:index])
        self._name = name

        def on_bytes(count: int) -> None:
            self._read = before + count
            if not self._done:
                self._say(0, f"reading {name}")

        return on_bytes

    def entering(self, conversations: Iterable[Conversation]) -> Iterator[Conversation]:
        """`conversations`, noted on their way into the chain."""
        for conversation in conversations:
            self._under_way.append(self._read)
            yield conversation

    def leaving(self, results: Iterable[T]) -> Iterator[T]:
        """`results`, one for each conversation, noted on their way out."""
        for result in results:
            self._done += 1
            self._say(self._under_way.popleft(), f"{self._done:,} rows of {self._name}")
            yield result
        self._said_at = 0.0
        self._say(self._total, f"{self._done:,} rows")

    def _say(self, count: int, note: str) -> None:
        now = time.monotonic()
        if now - self._said_at >= _SAY_EVERY_S:
            self._said_at = now
            size, unit = (10**6, "MB") if self._total >= 10**7 else (10**3, "kB")
            self._progress(count / size, self._total / size, f"{unit} cleaned · {note}")


def _printable(name: str) -> str:
    """A name as a terminal can show it and UTF-8 can hold it."""
    text = name.encode("utf-8", "replace").decode()
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    )


def _survivors(
    results: Iterator[tuple[Conversation, Results]], report: CorpusReport
) -> Iterator[Conversation]:
    for _, conversation_results in results:
        for result in conversation_results:
            if isinstance(result, Dropped):
                report.dropped += 1
            else:
                yield result
    report.added = sum(step.added for step in report.steps)


def _intent(block: Corpus, conversation: Conversation) -> str | None:
    """What the person wants, as the source or a heuristic has it; None until a judge is asked."""
    if block.intents and block.intents.heuristic:
        return HEURISTICS[block.intents.heuristic](conversation.messages) or None
    return conversation.meta.get(INTENT)


def _schema(block: Corpus, fields: Collection[str]) -> Any:
    """The columns of the dataset, with the optional message fields that are in use.

    ``intent`` is a column where the recipe asks for it, though a judge fills it in later; ``user``
    where a source says whose its conversations are; ``tools`` where a row describes some.
    """
    import pyarrow as pa

    text = pa.string()
    tools = [(TOOLS, text)] if TOOLS in fields else []
    intent = [(INTENT, text)] if block.intents else []
    user = [(USER, text)] if any(source.columns.person for source in block.sources) else []
    return conversation_schema([*tools, *intent, *user], optional_fields=fields)


def _write_splits(
    files: list[Path], data: Path, splits: list[int | None], schema: Any, report: CorpusReport
) -> None:
    """Write each kept row to its split, in order; the split is the last step of the ledger."""
    import pyarrow as pa

    step = Step("split", rows_in=len(splits))
    turns: Counter[int] = Counter()
    # A segment's id is its conversation's, followed by #2, #3, …
    conversations: set[int] = set()
    at = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(ShardWriter(data, name, schema)) for name in SPLITS]
        for batch in (batch for path in files for batch in read_batches(path)):
            batch_splits = splits[at : at + batch.num_rows]
            at += batch.num_rows
            table = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
            for split, writer in enumerate(writers):
                if rows := [row for row, index in enumerate(batch_splits) if index == split]:
                    writer.write_table(table.take(pa.array(rows)))
            for name, split_index in zip(batch.column("id").to_pylist(), batch_splits, strict=True):
                if split_index is None:
                    count(step.dropped, "continues_an_opening", name)
                else:
                    conversations.add(_hash64(name.partition("#")[0]))
            turns.update(_human_turns(batch.column("messages")))
    step.rows_out, step.conversations_out = (
        sum(writer.rows for writer in writers),
        len(conversations),
    )
    report.steps.append(step)
    report.kept = step.rows_out
    report.dropped += step.rows_in - step.rows_out
    report.splits = {name: writer.rows for name, writer in zip(SPLITS, writers, strict=True)}
    report.human_turns = {str(number): turns[number] for number in sorted(turns)}


def _human_turns(messages: pa.ListArray) -> list[int]:
    """How many turns of each conversation are the user's; no text is read."""
    import pyarrow.compute as pc

    roles = pc.struct_field(pc.list_flatten(messages), "role")
    rows = pc.list_parent_indices(messages).filter(pc.equal(roles, "user"))
    counted = {pair["values"]: pair["counts"] for pair in pc.value_counts(rows).to_pylist()}
    return [counted.get(row, 0) for row in range(len(messages))]


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
