"""Benchmarks by name or from files: which user turns, after which history, scored by what.

Takes a name out of `NAMED`, or files: questions in FastChat's layout (JSON lines of
``question_id``, ``category``, ``turns``, optional ``reference``) or in the form of
`hubkit.evaluation.items` (also ``messages``, ``criteria``, ``checks``, ``checklist``), follow-ups
keyed by question id (``follow_ups``: objects with ``text``), reference answers or a model's
recorded answers (``choices`` with ``turns``), AlpacaEval's JSON (``instruction``, ``output``), CSV,
or parquet with such columns. Every file that went in is named in the result with its sha256."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import compress
from pathlib import Path
from typing import Any, cast

from hubkit.conversation import Message
from hubkit.errors import HubkitError, SourceError
from hubkit.evaluation import suites
from hubkit.evaluation.items import Benchmark, Check, Criterion, Mode, Question
from hubkit.evaluation.records import (
    Find,
    Record,
    answers_of,
    check,
    explicit_id,
    match,
    parse,
    read,
    texts,
)
from hubkit.judging import REFERENCE_CATEGORIES
from hubkit.plugins import Registry
from hubkit.untrusted import list_in, objects_in, text_in

__all__ = [
    "COLUMNS",
    "NAMED",
    "NO_REFERENCES",
    "Benchmark",
    "NamedBenchmark",
    "Question",
    "load",
    "recorded_answers",
]
SHIPPED = resources.files("hubkit.evaluation.questions")
COLUMNS = ("question_id", "category", "turns", "reference", "output", "generator")
"""What a question file's columns are called."""
NO_REFERENCES = "none"
"""In place of a file of reference answers: judge without any, and say so."""


@dataclass(frozen=True, slots=True)
class NamedBenchmark:
    """A benchmark by name.

    Attributes:
        mode: How it is scored by default.
        questions: Where its questions are; empty where only a file of the user's has them.
        follow_ups: A file shipped with hubkit whose turns follow those of the questions.
        references: Where the reference answers are, for a benchmark that is judged with them.
        only: Only the questions of this category.
        read: Reads records of its own layout.
        licence: Under which its files may be used, as their home says.
        home: Where they come from.
        macro: Whether its headline is the mean over categories.
        length_margin: See `Benchmark`.
        notes: What a reader must know beside its numbers."""

    mode: Mode
    questions: str
    follow_ups: str | None = None
    references: str | None = None
    only: str = ""
    read: suites.Read | None = None
    licence: str = ""
    home: str = ""
    macro: bool = False
    length_margin: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def terms(self) -> str:
        """Where its files come from and under which licence, in one sentence; empty where all of it
        ships with hubkit."""
        if not self.home:
            return ""
        return f"its questions come from {self.home}; licence: {self.licence}"


_MT_BENCH = NamedBenchmark(
    "single",
    "HuggingFaceH4/mt_bench_prompts:raw/question.jsonl",
    references="spaces/lmsys/mt-bench:data/mt_bench/reference_answer/gpt-4.jsonl",
    licence="Apache-2.0 (lm-sys/FastChat)",
    home="HuggingFaceH4/mt_bench_prompts, references from the Space lmsys/mt-bench",
)
_ALPACA = NamedBenchmark(
    "pairwise",
    "tatsu-lab/alpaca_eval:alpaca_eval.json",
    licence="CC-BY-NC-4.0",
    home="tatsu-lab/alpaca_eval",
)
NAMED: Registry[NamedBenchmark] = Registry("hubkit.benchmarks")
"""Benchmarks by name: these, and those of installed plug-ins."""
NAMED.update(
    {
        "offline-16": NamedBenchmark("single", "offline-16.jsonl"),
        "offline-checks": NamedBenchmark("checks", "offline-checks.jsonl"),
        "mt-bench": _MT_BENCH,
        "mt-bench-8": replace(_MT_BENCH, follow_ups="mt-bench-8.jsonl"),
        # AlpacaEval's 805 instructions hold the 80 of Vicuna-Bench, marked so, without FastChat's
        # categories.
        "vicuna": replace(_ALPACA, only="vicuna"),
        "alpaca": _ALPACA,
        "multichallenge": NamedBenchmark(
            "criteria",
            "ScaleAI/MultiChallenge",
            read=suites.multichallenge,
            licence="CC-BY-4.0",
            home="ScaleAI/MultiChallenge",
            macro=True,
            notes=("The headline is the mean over axes, as in MultiChallenge's own scoring.",),
        ),
        "mt-bench-101": NamedBenchmark(
            "single",
            "",
            read=suites.mt_bench_101,
            licence="Apache-2.0",
            home="github.com/mtbench101/mt-bench-101 (data/subjective/mtbench101.jsonl)",
            macro=True,
            notes=(
                "A dialogue counts as its lowest grade and an ability as the "
                "mean of its dialogues, as in MT-Bench-101's own scoring; "
                "the judge's prompt is hubkit's, not theirs.",
            ),
        ),
        "wildbench": NamedBenchmark(
            "single",
            "allenai/WildBench:v2/test-00000-of-00001.parquet",
            read=suites.wildbench,
            licence="as its dataset card says (not checked by hubkit)",
            home="allenai/WildBench",
            macro=True,
            length_margin=500,
            notes=(
                "WildBench rescales grades to (grade - 5) x 2 and weighs an item once for each of "
                "its tags; here grades are as given and an item counts for its primary tag.",
                "In pairs, a slight win by an answer that is longer by more than 500 characters is "
                "a tie.",
            ),
        ),
        "multi-if": NamedBenchmark(
            "checks",
            "facebook/Multi-IF",
            read=suites.multi_if,
            licence="CC-BY-NC-2.0",
            home="facebook/Multi-IF",
            notes=(
                "Strict accuracy of IFEval's checkers; "
                "Multi-IF's own headline also averages in the loose one.",
            ),
        ),
        "lost-in-conversation": NamedBenchmark(
            "checks",
            "",
            read=suites.lost_in_conversation,
            licence="MIT (code), CDLA-Permissive-2.0 (data)",
            home="github.com/microsoft/lost_in_conversation (data/sharded_instructions_600.json)",
            notes=(
                "Only the tasks of the kind math; parts are revealed as written, or, with a "
                "simulated user (--user), in its words.",
            ),
        ),
    }
)


def load(
    name: str,
    find: Find,
    *,
    questions: str | None = None,
    references: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Benchmark:
    """Load the benchmark `name` (one of `NAMED`, or a file).

    Args:
        find: Says where a named file lies.
        questions: A file of its questions, instead of the one from its home.
        references: A file of reference answers, or ``none``.
        columns: Which column of the questions is read under which name.

    Raises:
        SourceError: A file is not there or does not read as questions, lacks a column, or holds
            follow-ups without their question; or a benchmark that is judged with references has
            none for a category that needs them."""
    entry = NAMED.get(name)
    where = questions or (entry.questions if entry else name)
    if not where:
        raise SourceError(
            f"{name} has no home on the Hub: get its file from {entry.home if entry else ''} and "
            "give it with --questions FILE"
        )
    records, file = _open(where, find)
    records, files = _mapped(records, columns or {}, file["name"]), [file]
    items = _items(records, file["name"], entry)
    if entry and entry.only and not questions:
        mask = [question.category == entry.only for question in items]
        records, items = list(compress(records, mask)), list(compress(items, mask))
    recorded = {} if entry and entry.read else _outputs(records, items)
    if entry and entry.follow_ups:
        further, file = _open(entry.follow_ups, find)
        items, files = _followed(items, further, file["name"]), [*files, file]
    items, reference_files, notes = _with_references(name, items, entry, references, find)
    check(items, files[0]["name"])
    return Benchmark(
        name=name if entry else Path(files[0]["name"]).stem,
        questions=items,
        files=files + reference_files,
        recorded=recorded,
        length_margin=entry.length_margin if entry else None,
        macro=entry.macro if entry else False,
        notes=(*(entry.notes if entry else ()), *notes),
    )


def recorded_answers(
    where: str, find: Find, questions: Sequence[Question] | None = None
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Read a model's answers from a file (FastChat's ``model_answer``, or AlpacaEval's outputs).

    Args:
        questions: What they answer: answers are matched by id, else by instruction. Without them,
            every record must name its question's id.

    Returns:
        Question id → answers, and the file's ``{name, sha256}``.

    Raises:
        SourceError: As `hubkit.evaluation.records.match`."""
    records, file = read(where, find)
    name = file["name"]
    if questions is None:
        matched = {
            explicit_id(record) or str(number): (number, record)
            for number, record in enumerate(records, start=1)
        }
    else:
        matched = match(records, questions, name)
    return {
        key: answers_of(record, f"{name}, record {number}")
        for key, (number, record) in matched.items()
    }, file


def _open(where: str, find: Find) -> tuple[list[Record], dict[str, str]]:
    shipped = {"offline-16.jsonl", "offline-checks.jsonl", "mt-bench-8.jsonl"}
    if where not in shipped:
        return read(where, find)
    if not (SHIPPED / where).is_file():
        raise SourceError(
            f"{where} does not ship with this version of hubkit; name a file with --questions"
        )
    return parse((SHIPPED / where).read_bytes(), where)


def _mapped(records: list[Record], columns: Mapping[str, str], name: str) -> list[Record]:
    """`records` with `columns` (target → source) under their target names."""
    for number, record in enumerate(records, start=1):
        for source in columns.values():
            if source not in record:
                raise SourceError(
                    f"{name}, record {number} has no column {source!r}, only "
                    f"{', '.join(map(str, record))}; correct --column"
                )
    return [
        record | {target: record[source] for target, source in columns.items()}
        for record in records
    ]


def _items(records: Sequence[Record], name: str, entry: NamedBenchmark | None) -> list[Question]:
    if entry and entry.read:
        return entry.read(records, name)
    return [_question(record, number, name) for number, record in enumerate(records, start=1)]


def _question(record: Record, number: int, name: str) -> Question:
    where = f"{name}, record {number}"
    turns = next((record[key] for key in ("turns", "prompt", "instruction") if key in record), None)
    if turns is None:
        raise SourceError(
            f"{where} has no user turns, only {', '.join(map(str, record))}; name the column with "
            "--column turns=NAME"
        )
    category = record.get("category") or record.get("dataset") or "all"
    try:
        return Question(
            id=explicit_id(record) or str(number),
            category=str(category),
            turns=texts(turns, where, "turns"),
            reference=texts(record.get("reference") or [], where, "reference"),
            messages=cast("tuple[Message, ...]", tuple(objects_in(record, "messages"))),
            criteria=tuple(_criterion(c) for c in list_in(record, "criteria")),
            checks=tuple(
                tuple(Check(**c) for c in turn_checks)
                for turn_checks in cast("Sequence[Sequence[Any]]", list_in(record, "checks"))
            ),
            checklist=texts(record.get("checklist") or [], where, "checklist"),
            group=str(record.get("group") or ""),
        )
    except (TypeError, KeyError) as error:
        raise SourceError(f"{where}: criteria or checks are not in their form ({error})") from None


def _criterion(value: Any) -> Criterion:
    return Criterion(value) if isinstance(value, str) else Criterion(**value)


def _outputs(
    records: Sequence[Record], questions: Sequence[Question]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Answers in the question file itself, as in AlpacaEval's, under the name of their
    generator."""
    outputs: dict[str, dict[str, tuple[str, ...]]] = {}
    for record, question in zip(records, questions, strict=True):
        if isinstance(record.get("output"), str):
            generator = str(record.get("generator", "baseline"))
            outputs.setdefault(generator, {})[question.id] = (text_in(record, "output"),)
    return outputs


def _followed(questions: list[Question], further: list[Record], name: str) -> list[Question]:
    """`questions` with the follow-ups that are keyed to them; those without any are left out."""
    by_id = {question.id: question for question in questions}
    extended = []
    for number, record in enumerate(further, start=1):
        where, key = f"{name}, record {number}", explicit_id(record) or str(number)
        question = by_id.get(key)
        if question is None:
            raise SourceError(f"{where} follows question {key}, which the questions do not hold")
        if record.get("category", question.category) != question.category:
            raise SourceError(
                f"{where} follows a question about {record['category']}, and question "
                f"{question.id} is about {question.category}; the ids are not those of the "
                "questions that it was written for"
            )
        rows = record.get("follow_ups")
        if not isinstance(rows, list) or not all(
            isinstance(t, dict) and isinstance(t.get("text"), str) for t in rows
        ):
            raise SourceError(f"{where}: follow_ups must be a list of objects with a text")
        after = record.get("after_turn", len(question.turns))
        if not isinstance(after, int) or not 1 <= after <= len(question.turns):
            raise SourceError(
                f"{where}: after_turn is {after!r}; question {question.id} has "
                f"{len(question.turns)} turns"
            )
        turns = (*question.turns[:after], *(t["text"] for t in rows))
        extended.append(replace(question, turns=turns))
    return extended


def _with_references(
    name: str,
    questions: list[Question],
    entry: NamedBenchmark | None,
    references: str | None,
    find: Find,
) -> tuple[list[Question], list[dict[str, str]], tuple[str, ...]]:
    """`questions` with reference answers, the files they came from, and what a reader must know.

    Where a benchmark is judged with reference answers, the ``reference`` column of its questions
    is not one: MT-Bench's holds its authors' notes ("Straightforward")."""
    published = entry.references if entry else None
    if published:
        questions = [replace(question, reference=()) for question in questions]
    if references == NO_REFERENCES:
        questions = [replace(question, reference=()) for question in questions]
        return questions, [], _without_references(questions)
    needed = any(question.category in REFERENCE_CATEGORIES for question in questions)
    if not (where := references or (published if needed else None)):
        return questions, [], ()
    try:
        records, file = read(where, find)
    except HubkitError as error:
        if references:
            raise
        raise SourceError(
            f"{name} is judged with reference answers in "
            f"{', '.join(sorted(REFERENCE_CATEGORIES))}, and {where} cannot be had ({error}); "
            "give them with --references FILE, or judge without any by --references none"
        ) from None
    answers = {
        key: answers_of(record, f"{file['name']}, record {number}")
        for key, (number, record) in match(records, questions, file["name"]).items()
    }
    questions = [replace(q, reference=answers.get(q.id, q.reference)) for q in questions]
    missing = [q.id for q in questions if q.category in REFERENCE_CATEGORIES and not q.reference]
    if published and missing:
        raise SourceError(
            f"{file['name']} has no reference answer to {len(missing)} questions "
            f"of {name} that are judged with one (such as {missing[0]}); "
            "give the whole file, or --references none"
        )
    return questions, [file], ()


def _without_references(questions: Sequence[Question]) -> tuple[str, ...]:
    turns = sum(len(q.turns) for q in questions if q.category in REFERENCE_CATEGORIES)
    if not turns:
        return ()
    return (
        f"{turns} of {sum(len(q.turns) for q in questions)} answers (about "
        f"{', '.join(sorted(REFERENCE_CATEGORIES))}) were judged without reference answers; "
        "published results were judged with them, so do not compare.",
    )
