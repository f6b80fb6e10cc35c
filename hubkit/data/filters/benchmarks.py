"""The filter that keeps benchmark questions out of training data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.conversation import Conversation
from hubkit.data.filters.chain import Context, Drop, Edit, FilterFn, Verdict, register
from hubkit.data.filters.shingles import shingles
from hubkit.errors import RecipeError, SourceError
from hubkit.untrusted import parse_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SHORT_RUN = 3  # words; the runs that whole questions are compared by
_QUESTION_KEYS = ("turns", "instruction", "prompt", "question", "text", "input")


@register(needs={"questions"})
def decontaminate(
    against: Iterable[str] | None = None,
    words: int = 13,
    similarity: float = 0.8,
    *,
    context: Context,
) -> FilterFn:
    """Drop conversations that hold a benchmark's question: any run of `words` words of it, or a
    near-copy in one turn.

    `against` lists files of questions: names that the caller resolves (`Context.questions`) or
    paths, JSON or JSON Lines with ``turns``, ``instruction``, ``prompt`` or ``question``, or plain
    text, one question a line; without it, every file that the caller knows. Where that is none,
    everything passes, counted as ``no_questions_to_look_for``. A turn is a near-copy when it is a
    human's, and its and the question's runs of three words have a Jaccard similarity of at least
    `similarity`. The 13-word rule is GPT-3's (arXiv 2005.14165, appendix C)."""
    index = _Index(words, similarity)
    names = (
        list(context.questions)
        if against is None
        else [against]
        if isinstance(against, str)
        else list(against)
    )
    if not names:
        return lambda conversation: Edit([conversation], "no_questions_to_look_for")
    for name in names:
        path = context.questions.get(name, Path(name))
        if not path.is_file():
            raise RecipeError(
                f"decontaminate: {name!r} names no known question file and no file here; "
                "give a path"
            )
        known_as = (
            name
            if name in context.questions
            else path.stem
            if path.stem != "question"
            else path.parent.name
        )
        index.add(known_as or name, read_questions(path))

    def decide(conversation: Conversation) -> Verdict:
        everything = "\n".join(m["content"] for m in conversation.messages)
        human_turns = (m["content"] for m in conversation.messages if m["role"] == "user")
        name = index.holding(everything) or next(
            filter(None, map(index.near_copy, human_turns)), None
        )
        return Drop(f"contains_{name}") if name else None

    return decide


class _Index:
    """Runs of words of every question, and which question they are of."""

    def __init__(self, words: int, similarity: float) -> None:
        import numpy as np

        self._words, self._similarity, self._longest = words, similarity, 0
        self._long: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._short: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._name_of: dict[int, str] = {}
        self._questions: list[tuple[str, frozenset[int]]] = []
        self._with: dict[int, list[int]] = defaultdict(list)

    def add(self, name: str, questions: Iterable[str]) -> None:
        """Index one benchmark's questions."""
        import numpy as np

        long: list[int] = []
        for question in questions:
            self._longest = max(
                self._longest, 2 * len(question)
            )  # turns much longer than that are no near-copy
            runs = frozenset(shingles(question, _SHORT_RUN).tolist())
            for run in runs:
                self._with[run].append(len(self._questions))
            self._questions.append((name, runs))
            if len(runs) > self._words - _SHORT_RUN:
                long.extend(shingles(question, self._words).tolist())
        self._name_of |= dict.fromkeys(long, name)
        self._long = np.unique(np.concatenate([self._long, np.array(long, np.uint64)]))
        self._short = np.unique(np.fromiter(self._with, np.uint64))

    def holding(self, text: str) -> str | None:
        """The benchmark of which `text` holds a long run, if any."""
        hits = _common(shingles(text, self._words), self._long)
        return self._name_of[int(hits[0])] if len(hits) else None

    def near_copy(self, turn: str) -> str | None:
        """The benchmark that has a question much like `turn`, if any."""
        if len(turn) > self._longest / self._similarity:
            return None
        runs = shingles(turn, _SHORT_RUN)
        hits = _common(runs, self._short)
        if len(hits) < self._similarity * len(runs) - 1:
            return None
        turn_runs = frozenset(runs.tolist())
        for question in {question for run in hits.tolist() for question in self._with[run]}:
            name, question_runs = self._questions[question]
            if turn_runs and len(turn_runs & question_runs) >= self._similarity * len(
                turn_runs | question_runs
            ):
                return name
        return None


def _common(
    runs: npt.NDArray[np.uint64], indexed: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    import numpy as np

    if not len(indexed) or not len(runs):
        return runs[:0]
    at = np.searchsorted(indexed, runs)
    at[at == len(indexed)] = 0
    hits: npt.NDArray[np.uint64] = runs[indexed[at] == runs]
    return hits


def read_questions(path: Path) -> Iterator[str]:
    """Every question of a file; a question with several turns gives each. Raises `SourceError`."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as questions: {error}") from None
    has_questions = False
    for entry in _entries(text):
        for question in _questions_in(entry):
            if question.strip():
                has_questions = True
                yield question
    if not has_questions:
        raise SourceError(
            f"{path} holds no questions; expected one of the keys "
            f"{', '.join(_QUESTION_KEYS)}, or lines"
        )


def _entries(text: str) -> Iterator[Any]:
    try:
        whole = parse_json(text)
    except ValueError:
        whole = None
    if isinstance(whole, list):
        yield from whole
        return
    for line in text.splitlines():
        try:
            yield parse_json(line)
        except ValueError:
            yield line


def _questions_in(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, list):
        yield from (item for item in entry if isinstance(item, str))
    elif isinstance(entry, dict):
        for key in _QUESTION_KEYS:
            if entry.get(key):
                yield from _questions_in(entry[key])
                return
