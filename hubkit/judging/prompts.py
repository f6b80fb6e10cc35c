"""What a judge is asked: our own wording, or a file in the layout of FastChat's
``judge_prompts.jsonl``.

Takes a file of JSON lines (``name``, ``type``, ``system_prompt``, ``prompt_template``) and gives
the messages for one judgment. Names are FastChat's: ``single-v1`` and ``pair-v2``, ``-math`` with a
reference answer, ``-multi-turn`` after the first turn. Its placeholders spell out two turns;
``{conversation}``, ``{conversation_a}``, ``{conversation_b}`` and ``{references}`` are ours, and
hold any number of them; so are ``examples``, pairs of a prompt and the verdict on it that go before
the question, for judges too small to follow words alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from hubkit.conversation import Message
from hubkit.errors import SourceError
from hubkit.untrusted import parse_json

Kind = Literal["single", "pairwise", "criterion"]
REFERENCE_CATEGORIES = frozenset({"math", "reasoning", "coding"})
_SHIPPED = resources.files("hubkit.judging")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NAMES: dict[Kind, tuple[str, str]] = {
    "single": ("single-v1", "single-math-v1"),
    "pairwise": ("pair-v2", "pair-math-v1"),
    "criterion": ("criterion-v1", "criterion-v1"),
}
_WITH_CHECKLIST: dict[Kind, str] = {
    "single": "single-checklist-v1",
    "pairwise": "pair-checklist-v1",
}
_TWO_TURNS = frozenset({"question_1", "question_2"})


@dataclass(frozen=True, slots=True)
class Turns:
    """A conversation up to the answer that is judged.

    Attributes:
        questions: The user's turns, with one answer each of the model, or of both models.
        against: The other model's answers, where two are compared.
        references: Reference answers where there are any, at most one a question.
        history: What was said before the first question, the same for both models.
        checklist: What the judge is told to look at.
        criterion: The question that a judge is to answer with yes or no."""

    category: str
    questions: Sequence[str]
    answers: Sequence[str]
    against: Sequence[str] = ()
    references: Sequence[str] = ()
    history: Sequence[Message] = ()
    checklist: Sequence[str] = ()
    criterion: str = ""

    @property
    def with_reference(self) -> bool:
        """Whether the judge is shown reference answers: in `REFERENCE_CATEGORIES` and after a fixed
        history, where every turn so far has one."""
        expected = self.category in REFERENCE_CATEGORIES or bool(self.history)
        return expected and len(self.references) >= len(self.questions)


@dataclass(frozen=True, slots=True)
class Template:
    """One prompt: the judge's system message, the text with its placeholders, and (prompt, verdict)
    examples.
    """

    system: str
    text: str
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def placeholders(self) -> set[str]:
        """Names in braces."""
        return set(_PLACEHOLDER.findall(self.text))


@dataclass(frozen=True, slots=True)
class Prompts:
    """A set of judge prompts, where they come from, and the sha256 (hex) of their file."""

    source: str
    sha256: str
    templates: dict[str, Template]

    def to_dict(self) -> dict[str, str]:
        """``{source, sha256}``: what a result says of them."""
        return {"source": self.source, "sha256": self.sha256}

    def check(self, kind: Kind, turns: int, *, checklist: bool = False) -> None:
        """Raise `SourceError` unless these prompts can judge `kind` on conversations of `turns`
        turns, by a `checklist` or without."""
        if checklist:
            self._template(_WITH_CHECKLIST[kind])
            return
        for name in _names(kind, references=False, later=turns > 1):
            template = self._template(name)
            if turns > 2 and template.placeholders & _TWO_TURNS:
                raise SourceError(
                    f"judge prompt {name!r} of {self.source} spells out two turns, "
                    f"and these conversations have {turns}; use the default prompts, "
                    "or a file whose prompt says {conversation}"
                )

    def render(self, kind: Kind, turns: Turns) -> list[Message]:
        """The messages that ask for a verdict on the last answer of `turns`. ``pairwise`` shows
        `answers` as A.
        """
        later = len(turns.questions) > 1 or bool(turns.history)
        if turns.checklist and kind in _WITH_CHECKLIST:
            name = _WITH_CHECKLIST[kind]
        else:
            name = _names(kind, references=turns.with_reference, later=later)[-1]
        return self.fill(name, _values(turns))

    def fill(self, name: str, values: Mapping[str, str]) -> list[Message]:
        """The messages of the prompt `name`, with `values` in place of their names in braces."""
        template = self._template(name)
        # One pass, so that braces in what people and models wrote stay as they are.
        text = _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template.text)
        system: list[Message] = (
            [{"role": "system", "content": template.system}] if template.system else []
        )
        examples: list[Message] = []
        for prompt, verdict in template.examples:
            examples += [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": verdict},
            ]
        return [*system, *examples, {"role": "user", "content": text}]

    def _template(self, name: str) -> Template:
        if name not in self.templates:
            names = ", ".join(sorted(self.templates))
            raise SourceError(
                f"{self.source} has no judge prompt {name!r}, only {names}; "
                "add it, or use another file"
            )
        return self.templates[name]


def _names(kind: Kind, *, references: bool, later: bool) -> list[str]:
    """Names of the prompts for first (and, with `later`, for later) turns."""
    base = _NAMES[kind][references]
    if kind == "criterion":
        return [base]
    return [base, f"{base}-multi-turn"] if later else [base]


def _values(turns: Turns) -> dict[str, str]:
    before = _script_of(turns.history)
    values = {
        "question": turns.questions[-1],
        "answer": turns.answers[-1],
        "answer_a": turns.answers[-1],
        "conversation": before + _script(turns.questions, turns.answers),
        "conversation_a": before + _script(turns.questions, turns.answers),
        "references": _script(turns.questions, turns.references),
        "checklist": "\n".join(f"- {entry}" for entry in turns.checklist),
        "criterion": turns.criterion,
    }
    if turns.against:
        values |= {
            "answer_b": turns.against[-1],
            "conversation_b": before + _script(turns.questions, turns.against),
        }
    columns = {"question": turns.questions, "answer": turns.answers, "ref_answer": turns.references}
    columns |= {"answer_a": turns.answers, "answer_b": turns.against}
    for name, texts in columns.items():
        values |= {f"{name}_{number}": text for number, text in enumerate(texts, start=1)}
    return values


def _script(questions: Sequence[str], answers: Sequence[str]) -> str:
    """The conversation as a judge reads it."""
    pairs = zip(questions, answers, strict=False)
    return "\n\n".join(
        f"### User:\n{question}\n\n### Assistant:\n{answer}" for question, answer in pairs
    )


_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


def _script_of(history: Sequence[Message]) -> str:
    """What was said before, in the same form, to be followed by more."""
    return "".join(f"### {_SPEAKERS[m['role']]}:\n{m['content']}\n\n" for m in history)


def default_prompts() -> Prompts:
    """Our own wording, as it ships."""
    return _read((_SHIPPED / "prompts.jsonl").read_bytes(), "hubkit's own wording")


def small_prompts() -> Prompts:
    """Our own wording for a judge of a few hundred million parameters: short, with examples, the
    verdict alone.
    """
    return _read((_SHIPPED / "small.jsonl").read_bytes(), "hubkit's own wording for small judges")


def question_prompts() -> Prompts:
    """Our own wording of what is asked about conversations: ``context-v1`` (`conversation`,
    `question`; to be answered with yes or no) and ``intent-v1`` (`turns`; to be answered with one
    line)."""
    return _read((_SHIPPED / "questions.jsonl").read_bytes(), "hubkit's own questions")


def turing_prompts() -> Prompts:
    """Our own wording of ``turing-v1``: which of two messages (`turn_a`, `turn_b`) a person wrote
    after a `conversation`."""
    return _read((_SHIPPED / "turing.jsonl").read_bytes(), "hubkit's own Turing question")


def read_prompts(path: Path, source: str | None = None) -> Prompts:
    """Prompts from a file in FastChat's layout; `source` is what results call it.

    Raises `SourceError` when the file cannot be read, or holds a line or a placeholder that means
    nothing here."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SourceError(f"judge prompts {str(path)!r} cannot be read: {error.strerror}") from None
    return _read(raw, source or path.name)


def _read(raw: bytes, source: str) -> Prompts:
    templates: dict[str, Template] = {}
    for number, line in enumerate(raw.splitlines(), start=1):
        if line.strip():
            name, template = _template(line, f"{source}, line {number}")
            templates[name] = template
    if not templates:
        raise SourceError(f"{source} holds no judge prompts; it must have one JSON object a line")
    return Prompts(source, hashlib.sha256(raw).hexdigest(), templates)


def _template(line: bytes, where: str) -> tuple[str, Template]:
    try:
        record: Any = parse_json(line)
        name, system, text = (
            record["name"],
            record.get("system_prompt") or "",
            record["prompt_template"],
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SourceError(
            f"{where} is not a judge prompt: a JSON object with name and prompt_template"
        ) from None
    if not all(isinstance(value, str) for value in (name, system, text)):
        raise SourceError(f"{where}: name, system_prompt and prompt_template must be text")
    template = Template(system, text, _examples(record.get("examples") or [], where))
    if wrong := {p for p in template.placeholders if _relevant(name) and not _is_placeholder(p)}:
        raise SourceError(
            f"{where}: nothing is known to put in place of {{{min(wrong)}}} in prompt {name!r}"
        )
    return name, template


def _examples(pairs: Any, where: str) -> tuple[tuple[str, str], ...]:
    whole = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 for pair in pairs
    )
    if not whole or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise SourceError(f"{where}: examples must be pairs of a prompt and the verdict on it")
    return tuple((prompt, verdict) for prompt, verdict in pairs)


def _relevant(name: str) -> bool:
    return name.removesuffix("-multi-turn") in {n for pair in _NAMES.values() for n in pair}


def _is_placeholder(placeholder: str) -> bool:
    plain = {
        "question",
        "answer",
        "answer_a",
        "answer_b",
        "conversation",
        "conversation_a",
        "conversation_b",
        "checklist",
        "criterion",
    }
    return placeholder in plain | {"references"} or bool(
        re.fullmatch(r"(question|answer|answer_a|answer_b|ref_answer)_[12]", placeholder)
    )
