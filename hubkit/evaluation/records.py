"""Files of records: JSON lines, one JSON array, CSV or parquet, and which record answers which
question."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hubkit.errors import SourceError
from hubkit.evaluation.items import Question
from hubkit.untrusted import JsonObject, parse_json

Find = Callable[[str], tuple[Path, str]]
"""A named file → where it lies here, and what to call it (a repo's at its commit)."""
Record = JsonObject
_PARQUET = b"PAR1"
_IDS = ("question_id", "prompt_id", "id", "session_id", "QUESTION_ID", "key")


def read(where: str, find: Find) -> tuple[list[Record], dict[str, str]]:
    """Read the records of a file, and its ``{name, sha256}``. Raises `SourceError`."""
    path, name = find(where)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{where!r} cannot be read: {error.strerror}") from None
    return parse(raw, name)


def parse(raw: bytes, name: str) -> tuple[list[Record], dict[str, str]]:
    """Read the records in `raw`, the content of the file `name`."""
    return list(_records(raw, name)), {"name": name, "sha256": hashlib.sha256(raw).hexdigest()}


def _records(raw: bytes, name: str) -> Iterator[Record]:
    if raw[:4] == _PARQUET:
        yield from _parquet(raw, name)
        return
    if name.endswith(".csv"):
        yield from csv.DictReader(io.StringIO(raw.decode("utf-8-sig")))
        return
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        if raw.lstrip()[:1] == b"[":
            rows = parse_json(raw)
        else:
            rows = [parse_json(line) for line in raw.splitlines() if line.strip()]
    except ValueError as error:
        raise SourceError(f"{name} is neither JSON lines nor a JSON array: {error}") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise SourceError(
                f"{name}, record {number} is not a JSON object but {type(row).__name__}"
            )
        yield row


def _parquet(raw: bytes, name: str) -> list[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[Record] = pq.read_table(pa.BufferReader(raw)).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(
            f"{name} does not read as parquet ({type(error).__name__}); is it whole?"
        ) from None
    return rows


def explicit_id(record: Mapping[str, Any]) -> str | None:
    """The id that a record names itself by."""
    for key in _IDS:
        if isinstance(record.get(key), int | str):
            return str(record[key])
    return None


def texts(value: Any, where: str, column: str) -> tuple[str, ...]:
    """`value` as texts: a text, or a list of them. Raises `SourceError`."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(text, str) for text in values):
        raise SourceError(f"{where}: {column} must be a list of texts")
    return tuple(values)


def match(
    records: Sequence[Record], questions: Sequence[Question], name: str
) -> dict[str, tuple[int, Record]]:
    """Say which record belongs to which question: by id, else by the instruction's text.

    A record's place in its file says nothing: published files lack rows and are reordered.

    Returns:
        Question id → (number of the record in its file, the record). Questions without a record are
        left out.

    Raises:
        SourceError: A record names neither, two records claim one question, a record's instruction
            is not that of the question with its id, or no record belongs to any question."""
    ids = {question.id for question in questions}
    by_text: dict[str, list[str]] = {}
    for question in questions:
        by_text.setdefault(_plain(question.turns[0]), []).append(question.id)
    first_turn = {question.id: _plain(question.turns[0]) for question in questions}
    matched: dict[str, tuple[int, Record]] = {}
    for number, record in enumerate(records, start=1):
        record_id, text = explicit_id(record), record.get("instruction")
        where = f"{name}, record {number}"
        if record_id is None and not isinstance(text, str):
            raise SourceError(
                f"{where} names neither a question_id nor its instruction, so nothing says which "
                "question it answers; add one of them"
            )
        if record_id is not None and record_id in ids:
            target = record_id
            if isinstance(text, str) and _plain(text) != first_turn[record_id]:
                raise SourceError(
                    f"{where} has the id {record_id} and another instruction than that question "
                    f"({text[:60]!r}); is it a file of other questions?"
                )
        elif isinstance(text, str) and _plain(text) in by_text:
            open_ids = [
                question_id for question_id in by_text[_plain(text)] if question_id not in matched
            ]
            target = (open_ids or by_text[_plain(text)])[0]
        else:
            continue
        if target in matched:
            raise SourceError(
                f"{where} answers question {target} again, after record {matched[target][0]}; "
                "remove one of them"
            )
        matched[target] = (number, record)
    if not matched:
        raise SourceError(
            f"none of the {len(records)} records of {name} belongs to these questions (by "
            "question_id or instruction); is it a file of other questions?"
        )
    return matched


def _plain(text: str) -> str:
    return " ".join(text.split())


def answers_of(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The answers in a record, in FastChat's layout (``choices`` with ``turns``) or AlpacaEval's
    (``output``). Raises `SourceError`."""
    try:
        turns = record["choices"][0]["turns"] if "choices" in record else record["output"]
    except (KeyError, IndexError, TypeError):
        raise SourceError(
            f"{where} holds no answers: it needs `choices` with `turns`, or `output`"
        ) from None
    return texts(turns, where, "answers")


def check(questions: Iterable[Question], name: str) -> None:
    """Raise `SourceError` unless `questions` can be asked: some, with different ids and turns."""
    ids: set[str] = set()
    for question in questions:
        if question.id in ids:
            raise SourceError(f"{name}: question {question.id} occurs twice; ids must differ")
        if not question.turns or not all(turn.strip() for turn in question.turns):
            raise SourceError(f"{name}: question {question.id} has no turns, or an empty one")
        ids.add(question.id)
    if not ids:
        raise SourceError(f"{name} holds no questions")
