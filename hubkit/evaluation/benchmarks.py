"""Questions of a benchmark: which user turns, in which category, with which reference answers.

Takes a name that is known here, or files: questions in FastChat's layout (JSON lines of
``question_id``, ``category``, ``turns``, optional ``reference``), follow-ups keyed by question id
(``follow_ups``: objects with ``text``), reference answers or a model's recorded answers
(``choices`` with ``turns``), AlpacaEval's JSON (``instruction``, ``output``), or parquet with such
columns. Every file that went in is named in the result with its sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import compress
from pathlib import Path
from typing import Any, Literal

from hubkit.errors import SourceError

Mode = Literal["single", "pairwise"]
Find = Callable[[str], tuple[Path, str]]
"""A named file → where it lies here, and what to call it (a repo's at its commit)."""

SHIPPED = resources.files("hubkit.evaluation.questions")
# Temperature of answers by category: FastChat's llm_judge (common.py, `temperature_config`); 0.7
# elsewhere.
TEMPERATURES: Mapping[str, float] = {
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
COLUMNS = ("question_id", "category", "turns", "reference", "output", "generator")
"""What a question file's columns are called."""
_PARQUET = b"PAR1"


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation's user turns, in order. `reference` are correct answers to the first of
    them.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()

    @property
    def temperature(self) -> float:
        """At which its answers are sampled."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A set of questions; `files` are ``{name, sha256}`` of what it was read from. `recorded` are
    answers that came with the questions: name of who answered → question id → answers."""

    name: str
    questions: list[Question]
    files: list[dict[str, str]]
    recorded: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def most_turns(self) -> int:
        """Turns of its longest conversation."""
        return max(len(question.turns) for question in self.questions)

    def part(self, *, questions: int | None, turns: int | None) -> Benchmark:
        """Only the first `questions`, spread over the categories in order, and only their first
        `turns` turns.
        """
        chosen = _spread(self.questions, questions) if questions else self.questions
        return replace(self, questions=[replace(q, turns=q.turns[:turns]) for q in chosen])


@dataclass(frozen=True, slots=True)
class NamedBenchmark:
    """A benchmark by name: how it is judged by default, where its questions are (`only` those of
    one category there), and follow-ups that ship."""

    mode: Mode
    questions: str
    follow_ups: str | None = None
    only: str = ""


NAMED: Mapping[str, NamedBenchmark] = {
    "offline-16": NamedBenchmark("single", "offline-16.jsonl"),
    "mt-bench": NamedBenchmark("single", "HuggingFaceH4/mt_bench_prompts:raw/question.jsonl"),
    "mt-bench-8": NamedBenchmark(
        "single", "HuggingFaceH4/mt_bench_prompts:raw/question.jsonl", "mt-bench-8.jsonl"
    ),
    # AlpacaEval's 805 instructions hold the 80 of Vicuna-Bench, marked so, without FastChat's
    # categories.
    "vicuna": NamedBenchmark("pairwise", "tatsu-lab/alpaca_eval:alpaca_eval.json", only="vicuna"),
    "alpaca": NamedBenchmark("pairwise", "tatsu-lab/alpaca_eval:alpaca_eval.json"),
}


def load(
    name: str,
    find: Find,
    *,
    questions: str | None = None,
    references: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Benchmark:
    """The benchmark `name` (one of `NAMED`, or a file), its questions from `questions` where given.

    `find` says where a named file lies; `columns` which of its columns is read under which name.
    Raises `SourceError` for a file that is not there or does not read as questions, a column that
    it lacks, or follow-ups without their question."""
    entry = NAMED.get(name)
    where = questions or (entry.questions if entry else name)
    records, files = _open(where, find)
    records = _mapped(records, columns or {}, files[0]["name"])
    loaded = [
        _question(record, number, files[0]["name"])
        for number, record in enumerate(records, start=1)
    ]
    if entry and entry.only and not questions:
        mask = [question.category == entry.only for question in loaded]
        records, loaded = list(compress(records, mask)), list(compress(loaded, mask))
    recorded = _outputs(records, loaded)
    if entry and entry.follow_ups:
        further, more_files = _open(entry.follow_ups, find)
        loaded, files = _followed(loaded, further, more_files[0]["name"]), files + more_files
    if references:
        answers, more_files = _open(references, find)
        loaded, files = _referenced(loaded, answers, more_files[0]["name"]), files + more_files
    _check(loaded, files[0]["name"])
    return Benchmark(name if entry else Path(files[0]["name"]).stem, loaded, files, recorded)


def recorded_answers(where: str, find: Find) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """A model's answers from a file (FastChat's ``model_answer`` layout, or AlpacaEval's outputs):
    question id → answers, and the file's ``{name, sha256}``."""
    records, files = _open(where, find)
    answers = {}
    for number, record in enumerate(records, start=1):
        answers[_id(record, number)] = _answers(record, f"{files[0]['name']}, record {number}")
    return answers, files[0]


def _open(where: str, find: Find) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    shipped = SHIPPED / where
    if "/" not in where and where in {
        k for entry in NAMED.values() for k in (entry.questions, entry.follow_ups)
    }:
        if not shipped.is_file():
            raise SourceError(
                f"{where} does not ship with this version of hubkit; name a file with --questions"
            )
        raw, name = shipped.read_bytes(), where
    else:
        path, name = find(where)
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise SourceError(f"{where!r} cannot be read: {error.strerror}") from None
    return list(_records(raw, name)), [{"name": name, "sha256": hashlib.sha256(raw).hexdigest()}]


def _mapped(
    records: list[dict[str, Any]], columns: Mapping[str, str], name: str
) -> list[dict[str, Any]]:
    """`records` with those of `columns` (ours → theirs) under our names."""
    for number, record in enumerate(records, start=1):
        for source in columns.values():
            if source not in record:
                columns_found = ", ".join(map(str, record))
                raise SourceError(
                    f"{name}, record {number} has no column {source!r}, only {columns_found}; correct --column"
                )
    return [
        record | {target: record[source] for target, source in columns.items()}
        for record in records
    ]


def _records(raw: bytes, name: str) -> Iterator[dict[str, Any]]:
    """JSON lines, one JSON array, or the rows of a parquet file."""
    if raw[:4] == _PARQUET:
        yield from _rows(raw, name)
        return
    try:
        whole = json.loads(raw) if raw.lstrip()[:1] == b"[" else None
        rows = (
            whole
            if whole is not None
            else [json.loads(line) for line in raw.splitlines() if line.strip()]
        )
    except ValueError as error:
        raise SourceError(f"{name} is neither JSON lines nor a JSON array: {error}") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise SourceError(
                f"{name}, record {number} is not a JSON object but {type(row).__name__}"
            )
        yield row


def _rows(raw: bytes, name: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(raw)).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(
            f"{name} does not read as parquet ({type(error).__name__}); is it whole?"
        ) from None
    return rows


def _id(record: dict[str, Any], number: int) -> str:
    for key in ("question_id", "prompt_id", "id"):
        if isinstance(record.get(key), int | str):
            return str(record[key])
    return str(number)


def _texts(value: Any, where: str, column: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise SourceError(f"{where}: {column} must be a list of texts")
    return tuple(texts)


def _question(record: dict[str, Any], number: int, name: str) -> Question:
    where = f"{name}, record {number}"
    turns = next((record[key] for key in ("turns", "prompt", "instruction") if key in record), None)
    if turns is None:
        columns_found = ", ".join(map(str, record))
        raise SourceError(
            f"{where} has no user turns, only {columns_found}; name the column with --column turns=NAME"
        )
    category = record.get("category") or record.get("dataset") or "all"
    reference = _texts(record.get("reference") or [], where, "reference")
    return Question(_id(record, number), str(category), _texts(turns, where, "turns"), reference)


def _answers(record: dict[str, Any], where: str) -> tuple[str, ...]:
    try:
        turns = record["choices"][0]["turns"] if "choices" in record else record["output"]
    except (KeyError, IndexError, TypeError):
        raise SourceError(
            f"{where} holds no answers: it needs `choices` with `turns`, or `output`"
        ) from None
    return _texts(turns, where, "answers")


def _outputs(
    records: Sequence[dict[str, Any]], questions: Sequence[Question]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Answers in the question file itself, as in AlpacaEval's file, under the name of their
    generator.
    """
    outputs: dict[str, dict[str, tuple[str, ...]]] = {}
    for record, question in zip(records, questions, strict=True):
        if isinstance(record.get("output"), str):
            outputs.setdefault(str(record.get("generator", "baseline")), {})[question.id] = (
                record["output"],
            )
    return outputs


def _followed(
    questions: list[Question], further: list[dict[str, Any]], name: str
) -> list[Question]:
    """`questions` with the follow-ups that are keyed to them; those without any are left out."""
    by_id = {question.id: question for question in questions}
    extended = []
    for number, record in enumerate(further, start=1):
        where = f"{name}, record {number}"
        question = by_id.get(_id(record, number))
        if question is None:
            raise SourceError(
                f"{where} follows question {_id(record, number)}, which the questions do not hold"
            )
        if record.get("category", question.category) != question.category:
            raise SourceError(
                f"{where} follows a question about {record['category']}, and question {question.id} is about "
                f"{question.category}; the ids are not those of the questions that it was written for"
            )
        texts = record.get("follow_ups")
        if not isinstance(texts, list) or not all(
            isinstance(t, dict) and isinstance(t.get("text"), str) for t in texts
        ):
            raise SourceError(f"{where}: follow_ups must be a list of objects with a text")
        after = record.get("after_turn", len(question.turns))
        if not isinstance(after, int) or not 1 <= after <= len(question.turns):
            raise SourceError(
                f"{where}: after_turn is {after!r}; question {question.id} has {len(question.turns)} turns"
            )
        extended.append(
            replace(question, turns=(*question.turns[:after], *(t["text"] for t in texts)))
        )
    return extended


def _referenced(
    questions: list[Question], records: list[dict[str, Any]], name: str
) -> list[Question]:
    answers = {
        _id(r, n): _answers(r, f"{name}, record {n}") for n, r in enumerate(records, start=1)
    }
    return [
        replace(question, reference=answers.get(question.id, question.reference))
        for question in questions
    ]


def _check(questions: list[Question], name: str) -> None:
    if not questions:
        raise SourceError(f"{name} holds no questions")
    ids: set[str] = set()
    for question in questions:
        if question.id in ids:
            raise SourceError(f"{name}: question {question.id} is there twice; ids must differ")
        if not question.turns or not all(turn.strip() for turn in question.turns):
            raise SourceError(f"{name}: question {question.id} has no turns, or an empty one")
        ids.add(question.id)


def _spread(questions: list[Question], number: int) -> list[Question]:
    """`number` questions, taken round by round from the categories, in the file's order."""
    by_category: dict[str, list[Question]] = {}
    for question in questions:
        by_category.setdefault(question.category, []).append(question)
    rounds = [
        q
        for position in range(len(questions))
        for group in by_category.values()
        for q in group[position : position + 1]
    ]
    chosen = {question.id for question in rounds[:number]}
    return [question for question in questions if question.id in chosen]
