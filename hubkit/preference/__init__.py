"""Preference pairs out of dialogues: the answer that was given against one that loses the context.

Takes a recipe's `Preference` block, curated dialogues and the chat model's addresses; gives a
preference dataset in TRL's conversational format (``prompt``, ``chosen``, ``rejected``) with the
strategy of each row. Every reply is on disk before it counts, so a run that was killed asks for
nothing twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hubkit.conversation import ConversationRow, Message, fault
from hubkit.data.filters.turns import to_sentence_end
from hubkit.data.parquet import ShardWriter, opened
from hubkit.errors import RecipeError, SourceError, StageError
from hubkit.preference.context import dependence
from hubkit.preference.strategies import STRATEGIES
from hubkit.progress import Notice, Progress, silent
from hubkit.recipe import Preference
from hubkit.serving import ServedModel
from hubkit.serving.client import MOST_REQUESTS, ClientLimits, Endpoint, ask_all
from hubkit.serving.reply_journal import Journal, JournalSpec
from hubkit.untrusted import JsonObject

__all__ = ["JUDGED", "STRATEGIES", "Choose", "PreferenceReport", "Question", "build", "dependence"]
JUDGED = "judged"  # the kind of a question that a judge, not a sign, found to need its context


@dataclass
class PreferenceReport:
    """What became of the questions. ``wanted == pairs + sum(dropped.values())``; `turns` counts
    human turns after the first, `dependent` those that need their context, by kind (where a judge
    looks at them, as many as were looked for); `judging` says what it was asked. `cut_back` pairs
    hold a rejected answer that was cut back to whole sentences."""

    dialogues: int = 0
    turns: int = 0
    dependent: dict[str, int] = field(default_factory=dict)
    wanted: int = 0
    pairs: int = 0
    by_strategy: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    cut_back: int = 0
    skipped_dialogues: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    from_journal: int = 0
    seconds: float = 0.0
    judging: JsonObject = field(default_factory=dict)
    provenance: JsonObject = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        """Plain data, as in ``report.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Question:
    """A human turn that needs its context: the dialogue's messages up to it, the answer that was
    given, its kind.
    """

    dialogue: str
    turn: int
    kind: str
    history: list[Message]
    text: str
    answer: str


Choose = Callable[[list[Question], int], tuple[list[Question], JsonObject]]
"""Questions in the order in which they are to be looked at, and how many are wanted → those, and
what it took.
"""


@dataclass(frozen=True)
class Job:
    """One rejected answer to be made."""

    key: str
    question: Question
    strategy: str
    messages: list[Message]


def build(
    block: Preference,
    dialogues: Sequence[Path],
    out: Path,
    chat: ServedModel,
    journal: JournalSpec,
    *,
    choose: Choose | None = None,
    progress: Progress = silent,
) -> PreferenceReport:
    """Make up to ``block.pairs`` preference pairs and write them to ``out``/data and
    ``out``/report.json.

    `chat` is the model that answers wrongly on order; what it answered is kept in `journal`.
    `choose` finds the questions that need their context; without it, `dependence` does. A pair
    whose rejected answer is empty, cut off, refused by the server or equal to the chosen one is
    dropped by reason.

    Raises `SourceError` for unreadable dialogues or none with a question that needs its context,
    `RecipeError` for an unknown strategy, `EndpointError` when the model cannot be asked at all.
    """
    unknown = [name for name in block.strategies if name not in STRATEGIES]
    if unknown:
        raise RecipeError(
            f"preference.strategies: {unknown[0]!r} is none of {', '.join(STRATEGIES)}"
        )
    started = time.monotonic()
    seed = journal.seed
    report = PreferenceReport(provenance=dict(journal.provenance))
    questions, histories = _questions(
        dialogues, report, dependence if choose is None else lambda _: JUDGED
    )
    if choose is not None:
        random.Random(f"{seed}/chosen").shuffle(questions)
        needed = (
            len(questions)
            if block.pairs is None
            else -(-block.pairs // max(len(block.strategies), 1))
        )
        questions, report.judging = choose(questions, needed)
        report.dependent = {JUDGED: len(questions)}
    if not questions:
        raise SourceError(
            f"none of {report.turns} follow-up turns needs its context; there is nothing to prefer"
        )
    jobs = list(_jobs(block, questions, histories, seed))
    report.wanted = len(jobs)
    with Journal.of(journal) as replies:
        journaled = sum(job.key in replies for job in jobs)
        remaining = [job for job in jobs if job.key not in replies]
        endpoint = chat.endpoint(
            block.chat,
            limits=ClientLimits(block.in_flight, block.request_timeout_s),
            name="chat",
            batch_folder=journal.folder,
            on_batch=lambda sentence: progress(0, None, Notice(sentence)),
        )
        in_flight = MOST_REQUESTS if block.chat.batch else block.in_flight
        _ask(endpoint, remaining, replies, seed, in_flight, progress)
        report.from_journal, report.asked = journaled, len(jobs) - journaled
        _write(block, jobs, replies, out, report)
    report.seconds = round(time.monotonic() - started, 3)
    _write_report(report, out)
    return report


def _questions(
    dialogues: Sequence[Path], report: PreferenceReport, kind_of: Callable[[str], str | None]
) -> tuple[list[Question], dict[str, list[Message]]]:
    """Every question that `kind_of` has a kind for, and each dialogue's first exchange: a history
    that misleads.
    """
    questions: list[Question] = []
    histories: dict[str, list[Message]] = {}
    for row in _rows(dialogues):
        report.dialogues += 1
        messages: list[Message] = row["messages"]
        if reason := fault(messages):
            report.skipped_dialogues[reason] = report.skipped_dialogues.get(reason, 0) + 1
            continue
        turns = [m for m in messages if m["role"] != "system"]
        histories[row["id"]] = turns[:2]
        for index in range(2, len(turns) - 1, 2):
            report.turns += 1
            text = turns[index]["content"]
            if kind := kind_of(text):
                report.dependent[kind] = report.dependent.get(kind, 0) + 1
                history = messages[: len(messages) - len(turns) + index]
                questions.append(
                    Question(
                        row["id"], index // 2, kind, history, text, turns[index + 1]["content"]
                    )
                )
    return questions, histories


def _rows(dialogues: Sequence[Path]) -> Iterator[ConversationRow]:
    import pyarrow as pa

    for path in dialogues:
        try:
            for batch in opened(path).iter_batches(batch_size=256, columns=["id", "messages"]):
                yield from batch.to_pylist()
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise SourceError(
                f"{path} does not read as dialogues in parquet ({type(error).__name__})"
            ) from None


def _jobs(
    block: Preference, questions: list[Question], histories: dict[str, list[Message]], seed: int
) -> Iterator[Job]:
    """Questions in an order drawn from `seed`, each with every strategy, until `pairs` are
    reached.
    """
    chance = random.Random(seed)
    chance.shuffle(questions)
    ids = sorted(histories)
    remaining = block.pairs if block.pairs is not None else len(questions) * len(block.strategies)
    for question in questions:
        unrelated = chance.choice(ids)
        while unrelated == question.dialogue and len(ids) > 1:
            unrelated = chance.choice(ids)
        for strategy in block.strategies:
            if not remaining:
                return
            remaining -= 1
            system: list[Message] = (
                [{"role": "system", "content": block.chat.system}] if block.chat.system else []
            )
            messages = [*system, *STRATEGIES[strategy](question.text, histories[unrelated])]
            yield Job(
                f"{question.dialogue}/{question.turn}/{strategy}", question, strategy, messages
            )


def _ask(
    endpoint: Endpoint,
    jobs: list[Job],
    replies: Journal,
    seed: int,
    in_flight: int,
    progress: Progress,
) -> None:
    """Ask for every rejected answer that is not in the journal, `in_flight` at a time."""
    completed = 0

    def step() -> None:
        nonlocal completed
        completed += 1
        progress(completed, len(jobs), "answers without the context")

    ask_all(
        endpoint,
        {job.key: job.messages for job in jobs},
        replies,
        refused=lambda error: ("", f"refused_{error.status}"),
        seed=seed,
        in_flight=in_flight,
        step=step,
    )


def _write(
    block: Preference, jobs: list[Job], replies: Journal, out: Path, report: PreferenceReport
) -> None:
    dropped: Counter[str] = Counter()
    by_strategy: Counter[str] = Counter()
    with ShardWriter(out / "data", "train", pair_schema()) as shards:
        for job in jobs:
            content, finish = replies[job.key]
            if finish == "length" and block.cut_off == "whole_sentences":
                content = to_sentence_end(content)
                finish = "cut_back" if content else finish
            if reason := _unusable(content, finish, job.question.answer):
                dropped[reason] += 1
                continue
            report.cut_back += finish == "cut_back"
            by_strategy[job.strategy] += 1
            shards.write(_row(job, content))
    report.dropped, report.by_strategy, report.pairs = (
        dict(dropped),
        dict(by_strategy),
        sum(by_strategy.values()),
    )


def require_pairs(pairs: int, dropped: Mapping[str, int], block: str) -> None:
    """Raise `StageError` where answers were `dropped` until no pair was left for `block`."""
    if not pairs:
        reasons = ", ".join(f"{why} {number:,}" for why, number in dropped.items())
        raise StageError(
            f"{block}: no pair is left of all answers ({reasons or 'there was none'}); change what "
            "that block asks for, or who answers"
        )


def _unusable(content: str, finish: str, chosen: str) -> str | None:
    if finish.startswith("refused"):
        return finish
    if finish == "length":
        return "cut_off"
    if not content.strip():
        return "empty"
    return "same_as_chosen" if content.split() == chosen.split() else None


def _row(job: Job, content: str) -> dict[str, object]:
    question = job.question
    return {
        "id": job.key,
        "prompt": [*question.history, {"role": "user", "content": question.text}],
        "chosen": [{"role": "assistant", "content": question.answer}],
        "rejected": [{"role": "assistant", "content": content.strip()}],
        "strategy": job.strategy,
        "dependence": question.kind,
        "dialogue": question.dialogue,
        "turn": question.turn,
    }


def pair_schema() -> Any:
    """The Arrow schema of preference pairs."""
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    names = {name: messages for name in ("prompt", "chosen", "rejected")}
    texts = {name: pa.string() for name in ("strategy", "dependence", "dialogue")}
    return pa.schema([("id", pa.string()), *names.items(), *texts.items(), ("turn", pa.int32())])


def _write_report(report: PreferenceReport, out: Path) -> None:
    import json

    (out / "report.json").write_text(
        json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
