"""The chain that filters run in, and its ledger: every conversation in is a conversation out or a
counted reason.

Takes conversations one at a time, gives each on with what became of it; holds nothing but counts
and a few ids."""

from __future__ import annotations

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

from hubkit.conversation import Conversation
from hubkit.data.filters.arguments import mistake
from hubkit.errors import RecipeError
from hubkit.plugins import Registry
from hubkit.sensitive_data import mask
from hubkit.untrusted import JsonObject, count_in, list_in, object_in

EXAMPLES = 5  # ids kept per reason: enough to look one up, few enough for a card


@dataclass(frozen=True, slots=True)
class Drop:
    """A filter's verdict: this conversation goes, for `reason` (a short word that reports count
    by).
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Edit:
    """A filter's verdict: `rows` replace the conversation (one when changed, several when cut
    up).

    `note` is the word that reports count the change by; several, where several things were changed.
    """

    rows: list[Conversation]
    note: str | tuple[str, ...]


Verdict = Drop | Edit | None
FilterFn = Callable[[Conversation], Verdict]


class Spec(Protocol):
    """What a recipe says of one filter (`hubkit.recipe.Filter` is one)."""

    @property
    def name(self) -> str:
        """One of `FILTERS`."""

    @property
    def args(self) -> Mapping[str, Any]:
        """Keyword arguments of its factory."""


@dataclass(frozen=True)
class Context:
    """What filters may need from outside the recipe.

    Args:
        tokenizer: A folder with a ``tokenizer.json``, or that file, for filters that count tokens.
        questions: Files of benchmark questions, by name, for decontamination.
        turn_marks: The control tokens that open turns of the templates that dialogues were
            generated with, where they are known.
    """

    tokenizer: Path | None = None
    questions: dict[str, Path] = field(default_factory=dict)
    turn_marks: tuple[str, ...] = ()


class StatefulFilter(ABC):
    """A filter that knows the rows before: `key` looks at one alone, wherever that is, `decide` at
    all in order.
    """

    @abstractmethod
    def key(self, conversation: Conversation) -> bytes:
        """What is compared of a conversation."""

    @abstractmethod
    def decide(self, key: bytes) -> Verdict:
        """The verdict on the next row, by its key and those that were kept."""

    def __call__(self, conversation: Conversation) -> Verdict:
        """Both halves at once."""
        return self.decide(self.key(conversation))


Factory = TypeVar("Factory", bound=Callable[..., FilterFn])
FILTERS: Registry[Callable[..., FilterFn]] = Registry("hubkit.filters")
NEEDS = frozenset({"tokenizer", "questions"})


@overload
def register(factory: Factory, /) -> Factory: ...
@overload
def register(
    *, needs: Iterable[str] = (), stateful: bool = False
) -> Callable[[Factory], Factory]: ...
def register(
    factory: Factory | None = None, /, *, needs: Iterable[str] = (), stateful: bool = False
) -> Factory | Callable[[Factory], Factory]:
    """Make a filter known to recipes under its function's name.

    Use it bare or with what the filter declares; a filter of an installed package or a plug-in
    declares it in the same way.

    Args:
        factory: Its keyword arguments are the recipe's ``args``; one named ``context`` is given the
            `Context`.
        needs: Of `NEEDS`: what `Context` must hold for it.
        stateful: Whether the factory makes a `StatefulFilter`.
    """
    declared = frozenset(needs)
    if unknown := declared - NEEDS:
        raise ValueError(f"a filter may need {', '.join(sorted(NEEDS))}, not {min(unknown)}")

    def add(function: Factory) -> Factory:
        function.needs, function.stateful = declared, stateful  # type: ignore[attr-defined]
        FILTERS[function.__name__] = function
        return function

    return add if factory is None else add(factory)


def needs(specs: Iterable[Spec]) -> frozenset[str]:
    """What the filters of `specs` need of a `Context`: any of `NEEDS`."""
    declared = (getattr(FILTERS.get(spec.name), "needs", ()) for spec in specs)
    return frozenset(need for names in declared for need in names)


def is_stateful(spec: Spec) -> bool:
    """Whether the filter of `spec` compares each conversation with those before it."""
    return bool(getattr(FILTERS.get(spec.name), "stateful", False))


@dataclass
class Tally:
    """How often something happened, and the first few ids it happened to."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one more; keep its id while there is room,
        masked where it is a person's address."""
        self.count += 1
        if len(self.examples) < EXAMPLES and (label := mask(example)) not in self.examples:
            self.examples.append(label)

    def to_dict(self) -> JsonObject:
        """``{"count": int, "examples": [id, …]}``"""
        return {"count": self.count, "examples": self.examples}


def count(tallies: dict[str, Tally], reason: str, example: str) -> None:
    """Count `reason` in `tallies` with `example` as the id of one case."""
    tallies.setdefault(reason, Tally()).add(example)


@dataclass
class Step:
    """One filter of a chain and what it did: ``rows_in + added == rows_out + dropped``, always.

    `conversations_out` counts the conversations that entered the chain and still have a row here,
    which differs from `rows_out` only after a filter that cuts conversations up."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    rows_in: int = 0
    rows_out: int = 0
    conversations_out: int = 0
    added: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    changed: dict[str, Tally] = field(default_factory=dict)

    def merge(self, counts: JsonObject) -> None:
        """Add what another process counted in the same step (a `to_dict` of its own), later rows'
        counts after ours.
        """
        for key in ("rows_in", "rows_out", "conversations_out", "added"):
            setattr(self, key, getattr(self, key) + count_in(counts, key))
        for target_tallies, name in ((self.dropped, "dropped"), (self.changed, "changed")):
            tallies = object_in(counts, name)
            for reason in tallies:
                tally, target = (
                    object_in(tallies, reason), target_tallies.setdefault(reason, Tally())
                )  # fmt: skip
                target.count += count_in(tally, "count")
                examples = map(str, list_in(tally, "examples"))
                target.examples += list(examples)[: EXAMPLES - len(target.examples)]

    def to_dict(self) -> JsonObject:
        """The step as a report holds it."""
        return {
            "name": self.name,
            "args": self.args,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "conversations_out": self.conversations_out,
            "added": self.added,
            "dropped": {reason: tally.to_dict() for reason, tally in self.dropped.items()},
            "changed": {note: tally.to_dict() for note, tally in self.changed.items()},
        }


@dataclass(frozen=True, slots=True)
class Dropped:
    """A conversation that a chain let go, as it stood then, by which step and why."""

    conversation: Conversation
    step: str
    reason: str


class Chain:
    """Filters in order. Call it with a conversation; it gives what is kept of it and what is
    `Dropped`.

    Raises `RecipeError` for an unknown filter or argument when it is built, never while it runs.
    """

    def __init__(self, specs: Iterable[Spec], context: Context | None = None) -> None:
        self.steps: list[Step] = []
        self._filters: list[FilterFn] = []
        for spec in specs:
            self._filters.append(_make(_factory(spec), spec, context or Context()))
            self.steps.append(Step(spec.name, dict(spec.args)))

    def __call__(self, conversation: Conversation) -> list[Conversation | Dropped]:
        """Walk one conversation (and whatever it is cut into) through every step."""
        return self.walk([conversation])

    def reset(self) -> None:
        """Start the ledger anew; what filters remember stays."""
        self.steps = [Step(step.name, step.args) for step in self.steps]

    def keys(self, conversation: Conversation) -> list[bytes]:
        """What each of these filters, all of them remembering, compares of a row."""
        return [f.key(conversation) for f in self._filters if isinstance(f, StatefulFilter)]

    def walk(
        self, rows: list[Conversation], keys: Sequence[list[bytes]] = ()
    ) -> list[Conversation | Dropped]:
        """As a call, for what an earlier chain made of one conversation.

        `keys` holds, for each row, what the first filters compare of it, where that is known.
        """
        dropped: list[Conversation | Dropped] = []
        keys_of = {id(row): row_keys for row, row_keys in zip(rows, keys, strict=bool(keys))}
        for at, (step, decide) in enumerate(zip(self.steps, self._filters, strict=True)):
            if keys and at < len(keys[0]):
                decide = _by_key(decide, at, keys_of)
            rows = _pass(step, decide, rows, dropped)
            if not rows:
                break
        return [*dropped, *rows]


def _by_key(decide: FilterFn, at: int, keys_of: dict[int, list[bytes]]) -> FilterFn:
    assert isinstance(decide, StatefulFilter)
    return lambda row: decide.decide(keys_of[id(row)][at])


def _pass(
    step: Step, decide: FilterFn, rows: list[Conversation], dropped: list[Conversation | Dropped]
) -> list[Conversation]:
    """What `step` keeps of `rows`, which all come from one conversation; what it drops goes to
    `dropped`.
    """
    rows_out: list[Conversation] = []
    for row in rows:
        verdict = decide(row)
        if verdict is None:
            rows_out.append(row)
        elif isinstance(verdict, Drop):
            count(step.dropped, verdict.reason, row.id)
            dropped.append(Dropped(row, step.name, verdict.reason))
        else:
            for note in (verdict.note,) if isinstance(verdict.note, str) else verdict.note:
                count(step.changed, note, row.id)
            step.added += len(verdict.rows) - 1
            rows_out.extend(verdict.rows)
    step.rows_in += len(rows)
    step.rows_out += len(rows_out)
    step.conversations_out += bool(rows_out)
    return rows_out


def check(specs: Iterable[Spec]) -> None:
    """Check what a recipe says of filters, before anything runs: their names, their arguments, and
    whether they can be made from them.

    Raises:
        RecipeError: The first one that cannot.
    """
    for spec in specs:
        factory = _factory(spec)
        if not getattr(factory, "needs", ()):  # else it is made once that is here
            _make(factory, spec, Context())


def _factory(spec: Spec) -> Callable[..., FilterFn]:
    """The factory of a filter, once its arguments were found to be those that it takes."""
    factory = FILTERS.get(spec.name)
    if factory is None:
        near = difflib.get_close_matches(spec.name, FILTERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(FILTERS))}"
        raise RecipeError(f"no filter {spec.name!r}; {hint}")
    parameters = inspect.signature(factory).parameters
    arguments = [name for name in parameters if name != "context"]
    for name in spec.args:
        if name not in arguments:
            takes = f"it takes {', '.join(arguments)}" if arguments else "it takes no arguments"
            raise RecipeError(f"filter {spec.name!r} has no argument {name!r}; {takes}")
    required = [name for name in arguments if parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in spec.args]:
        raise RecipeError(f"filter {spec.name!r} needs the argument {missing[0]!r}")
    if wrong := mistake(factory, spec.args):
        raise RecipeError(f"filter {spec.name!r}: {wrong}")
    return factory


def _make(factory: Callable[..., FilterFn], spec: Spec, context: Context) -> FilterFn:
    takes_context = "context" in inspect.signature(factory).parameters
    extra = {"context": context} if takes_context else {}
    try:
        return factory(**spec.args, **extra)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"filter {spec.name!r} cannot be made from {spec.args}: {error}"
        ) from error
