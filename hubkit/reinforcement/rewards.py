"""Rewards: what a whole conversation is worth, from several that are added up by their weights.

A reward is made by a factory whose keyword arguments are the recipe's ``args``. It gives one
`Value` for each `Episode`: a number, or `Masked` with a reason where it cannot say. A conversation
that any of the rewards masks has no total: it carries no loss and is counted, it never scores 0.
To add one: write the factory, decorate it with `@register`, name it in a recipe."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar, runtime_checkable

from hubkit.conversation import Message
from hubkit.errors import EndpointError, EvalError, HubkitError, RecipeError
from hubkit.plugins import Registry
from hubkit.recipe import RewardTerm
from hubkit.serving import ServedModel
from hubkit.untrusted import JsonObject, number_in, object_in, texts_in


@dataclass(frozen=True, slots=True)
class Episode:
    """One finished conversation of a chat model with an asker.

    Args:
        id: What it is known by in journals and datasets.
        messages: As recorded (the asker is ``user``), opening included, without system messages.
            It ends with the chat model's last answer.
        end_reason: ``end_mark`` (the asker ended it), ``answers`` (the turn cap), ``context``, or
            ``asker_failed``.
        intent: What the asker wanted, where it was told; the chat model never sees it.
        next_turn: What the person really said after the first answer of the conversation that the
            opening is from; None where that is not known.
        asker: The name of the asker.
        cut_off: How many answers ran into their token limit.
        turn_marks: The control tokens that open turns of the chat model's template, where it is
            known; the same in all conversations of a run, so not part of `to_dict`.
    """

    id: str
    messages: Sequence[Message]
    end_reason: str = ""
    intent: str = ""
    next_turn: str | None = None
    asker: str = ""
    cut_off: int = 0
    turn_marks: tuple[str, ...] = ()

    @property
    def answers(self) -> list[str]:
        """What the chat model said, in order."""
        return [m["content"] for m in self.messages if m["role"] == "assistant"]

    def to_dict(self) -> JsonObject:
        """Plain data."""
        facts = asdict(self)
        del facts["turn_marks"]
        return facts


@dataclass(frozen=True, slots=True)
class Masked:
    """No value, and why (a short word that reports count by)."""

    reason: str


Value = float | Masked
"""What a reward says of one conversation."""


@runtime_checkable
class Reward(Protocol):
    """Scores finished conversations. One that holds connections or files may also be an
    asynchronous context manager: it is entered before the first call and left after the last."""

    async def score(self, episodes: Sequence[Episode]) -> Sequence[Value]:
        """One value for each of `episodes`, in their order."""
        ...


class Likelihood(Protocol):
    """How likely a frozen asker finds what comes next."""

    async def of_turn(self, history: Sequence[Message], turn: str, intent: str) -> float:
        """Mean log-probability (nats per token, at most 0) of the human `turn` after `history`."""
        ...

    async def of_end(self, history: Sequence[Message], intent: str) -> float:
        """Mean log-probability of ending the conversation after `history`. Raises `RecipeError`
        for an asker that was not trained to end."""
        ...


@dataclass(frozen=True)
class RewardContext:
    """What rewards may need from outside the recipe.

    Args:
        folder: Where replies that were paid for are kept; survives a kill.
        run: Whose money is spent.
        judges: The served judges of each term, by its position in the recipe, each with who it is.
        likelihood: Of the recipe's own asker; None where there is none.
    """

    folder: Path
    run: str = ""
    judges: Mapping[int, Sequence[tuple[ServedModel, str]]] = field(default_factory=dict)
    likelihood: Likelihood | None = None


@dataclass(frozen=True)
class TermContext:
    """A `RewardContext` for one term: a factory's argument named ``context`` is given it."""

    term: RewardTerm
    folder: Path
    run: str
    judges: Sequence[tuple[ServedModel, str]]
    likelihood: Likelihood | None


Scorer = Callable[[Episode], Value | Awaitable[Value]]
Factory = TypeVar("Factory", bound=Callable[..., Reward | Scorer])
REWARDS: Registry[Callable[..., Reward | Scorer]] = Registry("hubkit.rewards")


def register(factory: Factory) -> Factory:
    """Make a reward known to recipes under its function's name.

    Args:
        factory: Its keyword arguments are the recipe's ``args``; one named ``context`` is given the
            `TermContext`. It returns a `Reward`, or a function from an `Episode` to its value.
    """
    REWARDS[factory.__name__] = factory
    return factory


@dataclass(frozen=True, slots=True)
class Outcome:
    """What all rewards together say of one conversation.

    Args:
        total: The weighted sum; None where one of them is masked.
        parts: Each reward's own value, before its weight, by label; None where masked.
        masks: The reasons of those that are masked, by label.
    """

    total: float | None
    parts: dict[str, float | None]
    masks: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return asdict(self)

    @classmethod
    def of(cls, values: JsonObject) -> Outcome:
        """The inverse of `to_dict`."""
        parts = object_in(values, "parts")
        numbers = {
            label: None if parts[label] is None else number_in(parts, label) for label in parts
        }
        total = None if values.get("total") is None else number_in(values, "total")
        return cls(total, numbers, texts_in(values, "masks"))


class Entered:
    """An asynchronous context manager: what `enter` puts on the stack is left with it, also where
    `enter` itself fails."""

    async def enter(self, stack: AsyncExitStack) -> None:
        """Enter what is needed, on `stack`."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self.enter(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


class Rewards(Entered):
    """The rewards of a recipe, ready to score. Use as an asynchronous context manager.

    Args:
        terms: What the recipe says.
        context: What they may need.

    Attributes:
        labels: A name for each term: its own, numbered where several share it.
        masked: How many values were masked, by label and reason.

    Raises:
        RecipeError: A reward is not known, or refuses its arguments.
    """

    def __init__(self, terms: Sequence[RewardTerm], context: RewardContext) -> None:
        self.terms = list(terms)
        self.labels = labels_of(terms)
        self._rewards = [
            _made(term, label, context, number)
            for number, (term, label) in enumerate(zip(terms, self.labels, strict=True))
        ]
        self.masked: Counter[str] = Counter()

    async def enter(self, stack: AsyncExitStack) -> None:
        """Enter the rewards that are context managers."""
        for reward in self._rewards:
            if hasattr(reward, "__aenter__"):
                await stack.enter_async_context(reward)  # type: ignore[arg-type]

    async def score(self, episodes: Sequence[Episode]) -> list[Outcome]:
        """What each of `episodes` is worth; all rewards are asked at the same time."""
        columns = await asyncio.gather(
            *(
                self._column(reward, term, label, episodes)
                for reward, term, label in zip(self._rewards, self.terms, self.labels, strict=True)
            )
        )
        outcomes = []
        for values in zip(*columns, strict=True):
            parts = {
                label: None if isinstance(value, Masked) else value
                for label, value in zip(self.labels, values, strict=True)
            }
            masks = {
                label: value.reason
                for label, value in zip(self.labels, values, strict=True)
                if isinstance(value, Masked)
            }
            total = None
            if not masks:
                total = math.fsum(
                    term.weight * value
                    for term, value in zip(self.terms, values, strict=True)
                    if not isinstance(value, Masked)
                )
            outcomes.append(Outcome(total, parts, masks))
        return outcomes

    async def _column(
        self, reward: Reward, term: RewardTerm, label: str, episodes: Sequence[Episode]
    ) -> list[Value]:
        """One reward's values; what it fails to give is masked."""
        try:
            async with asyncio.timeout(term.timeout_s):
                values = [_checked(value) for value in await reward.score(episodes)]
            if len(values) != len(episodes):
                values = [Masked("wrong_count")] * len(episodes)
        except TimeoutError:
            values = [Masked("timeout")] * len(episodes)
        except (EndpointError, EvalError) as error:
            values = [Masked(f"{type(error).__name__}: {error}"[:300])] * len(episodes)
        except HubkitError:
            raise
        except Exception as error:  # a plug-in's: it says nothing of the conversation
            values = [Masked(f"{type(error).__name__}: {error}"[:300])] * len(episodes)
        for value in values:
            if isinstance(value, Masked):
                self.masked[f"{label}: {value.reason}"] += 1
        return values


def labels_of(terms: Sequence[RewardTerm]) -> list[str]:
    """A name for each term: its own, numbered from the second one of the same name on."""
    counts: Counter[str] = Counter()
    labels = []
    for term in terms:
        counts[term.name] += 1
        count = counts[term.name]
        labels.append(term.name if count == 1 else f"{term.name}_{count}")
    return labels


def check(terms: Sequence[RewardTerm]) -> None:
    """Raise `RecipeError` for rewards that cannot be made, before anything is sent."""
    for term in terms:
        _factory(term)


class _EachAlone:
    """A function of one episode as a `Reward`."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    async def score(self, episodes: Sequence[Episode]) -> list[Value]:
        """One call for each; what fails is masked alone."""
        return list(await asyncio.gather(*map(self._one, episodes)))

    async def _one(self, episode: Episode) -> Value:
        try:
            value = self._scorer(episode)
            return await value if inspect.isawaitable(value) else value
        except HubkitError:
            raise
        except Exception as error:
            return Masked(f"{type(error).__name__}: {error}"[:300])


def _factory(term: RewardTerm) -> Callable[..., Reward | Scorer]:
    if term.name not in REWARDS:
        near = difflib.get_close_matches(term.name, list(REWARDS), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(REWARDS)}"
        raise RecipeError(f"reinforce.rewards: {term.name!r} is no reward{hint}")
    factory = REWARDS[term.name]
    try:
        parameters = inspect.signature(factory).parameters
        context = {"context": None} if "context" in parameters else {}
        inspect.signature(factory).bind(**context, **term.args)
    except TypeError as error:
        raise RecipeError(f"reinforce.rewards: {term.name}: {error}") from None
    return factory


def _made(term: RewardTerm, label: str, context: RewardContext, number: int) -> Reward:
    factory = _factory(term)
    arguments = dict(term.args)
    if "context" in inspect.signature(factory).parameters:
        arguments["context"] = TermContext(
            term,
            context.folder / label,
            context.run,
            context.judges.get(number, ()),
            context.likelihood,
        )
    try:
        reward = factory(**arguments)
    except (TypeError, ValueError) as error:
        if isinstance(error, HubkitError):
            raise
        raise RecipeError(f"reinforce.rewards: {term.name}: {error}") from None
    return reward if isinstance(reward, Reward) else _EachAlone(reward)


def _checked(value: Value) -> Value:
    """`value`, or a mask where it is no number that can be added up."""
    if isinstance(value, Masked):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return Masked("no_number")
    return number if math.isfinite(number) else Masked("not_finite")
