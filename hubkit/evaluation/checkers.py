"""Checkers in code: whether an answer keeps to what its prompt asked for.

A checker is looked up by name in `CHECKERS`, which plug-ins may add to; ``ifeval:…`` names are
those of IFEval and Multi-IF, checked by the package ``if-verifiable``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hubkit.errors import EvalError
from hubkit.evaluation.items import Check, Question
from hubkit.untrusted import parse_json

Checker = Callable[..., bool]
"""Called with the answer and the check's arguments by name."""
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_IFEVAL = "ifeval:"


def contains(answer: str, *, text: str) -> bool:
    """Whether `text` is in the answer, in small letters or large."""
    return text.casefold() in answer.casefold()


def matches(answer: str, *, pattern: str) -> bool:
    """Whether the regular expression `pattern` is found in the answer."""
    return re.search(pattern, answer) is not None


def word_count(answer: str, *, least: int = 0, most: int | None = None) -> bool:
    """Whether the answer has at least `least` and at most `most` words."""
    return least <= len(answer.split()) and (most is None or len(answer.split()) <= most)


def is_json(answer: str) -> bool:
    """Whether the answer is JSON, a code fence around it removed."""
    plain = re.sub(r"\A\s*```(?:json)?\s*|\s*```\s*\Z", "", answer)
    try:
        parse_json(plain)
    except ValueError:
        return False
    return True


def number(answer: str, *, value: str) -> bool:
    """Whether the last number in the answer equals `value`."""
    numbers = _NUMBER.findall(answer)
    try:
        return bool(numbers) and float(numbers[-1].replace(",", "")) == float(
            value.replace(",", "")
        )
    except ValueError:
        return False


CHECKERS: dict[str, Checker] = {
    "contains": contains,
    "matches": matches,
    "word_count": word_count,
    "json": is_json,
    "number": number,
}


def refuse_unknown(questions: Sequence[Question]) -> None:
    """Raise `EvalError` for a checker that is not known or a package that is not installed."""
    names = {check.name for q in questions for checks in q.checks for check in checks}
    if any(name.startswith(_IFEVAL) for name in names):
        registry = _ifeval_registry()
        unknown = sorted(
            n for n in names if n.startswith(_IFEVAL) and n[len(_IFEVAL) :] not in registry
        )
    else:
        unknown = []
    unknown += sorted(n for n in names if not n.startswith(_IFEVAL) and n not in CHECKERS)
    if unknown:
        raise EvalError(
            f"no checker {unknown[0]!r} is known; there are {', '.join(CHECKERS)} and ifeval:…"
        )


def passed(check: Check, answer: str, prompt: str) -> bool:
    """Whether `answer` to `prompt` passes `check`; an empty answer passes none.

    IFEval's instructions are checked as its *strict* accuracy does: on the answer as it is."""
    if not answer.strip():
        return False
    if check.name.startswith(_IFEVAL):
        return _ifeval(check.name[len(_IFEVAL) :], check.arguments, answer, prompt)
    return CHECKERS[check.name](answer, **check.arguments)


def _ifeval_registry() -> Mapping[str, Any]:
    try:
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
    except ImportError:
        raise EvalError(
            "instructions of IFEval and Multi-IF are checked by the package if-verifiable, "
            "which is not installed; pip install 'hubkit-simulators[multi-if]'"
        ) from None
    registry: Mapping[str, Any] = INSTRUCTION_DICT
    return registry


def _ifeval(instruction: str, arguments: Mapping[str, Any], answer: str, prompt: str) -> bool:
    from if_verifiable.common import evaluate_instructions

    results, _ = evaluate_instructions(
        answer, [instruction], [dict(arguments)], prompt, dict(_ifeval_registry())
    )
    return bool(results) and bool(results[0].strict_pass)
