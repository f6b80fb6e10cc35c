"""What rewards of conversations need from a Hub: judges at their commits, served; the asker whose
likelihood counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from hubkit.conversation import Message
from hubkit.hub import Hub, Ref
from hubkit.pipeline.inputs import require
from hubkit.pipeline.judges import identity_of
from hubkit.pipeline.stage import WEIGHTS
from hubkit.progress import Progress
from hubkit.publishing import records
from hubkit.recipe import DEPLOY, EMBEDDED, Judging, RewardTerm, Training
from hubkit.reinforcement import AskerLikelihood, Likelihood, RewardContext, Rewards
from hubkit.serving import ModelSpec, ServedModel, serve, spec_of

Place = tuple[int, int]
"""A judge: the number of its term, and its own among the term's."""


def judges_of(terms: Sequence[RewardTerm]) -> dict[Place, Judging]:
    """Every judge, by its place."""
    return {
        (number, k): judging
        for number, term in enumerate(terms)
        for k, judging in enumerate(term.judges)
    }


def judge_refs(hub: Hub, terms: Sequence[RewardTerm], progress: Progress) -> dict[Place, Ref]:
    """The commits of judges that are served for this, not found at an address.

    Raises:
        RepoMissingError: The Hub has no such judge.
    """
    return {
        position: require(hub, hub.qualify(judging.judge.repo or ""), progress=progress)
        for position, judging in judges_of(terms).items()
        if {DEPLOY, EMBEDDED} & set(judging.judge.endpoints)
    }


def judge_specs(terms: Sequence[RewardTerm], refs: Mapping[Place, Ref]) -> dict[Place, ModelSpec]:
    """What is asked in each judge's place. Raises `RecipeError` for a key that is not set."""
    return {
        position: spec_of(judging.judge, refs.get(position), named_by="judge")
        for position, judging in judges_of(terms).items()
    }


def reward_context(
    terms: Sequence[RewardTerm],
    refs: Mapping[Place, Ref],
    model_at: Callable[[Place], ServedModel],
    *,
    folder: Path,
    run: str,
    likelihood: Likelihood | None,
) -> RewardContext:
    """What rewards are given.

    Args:
        terms: The rewards.
        refs: The commits of judges.
        served: The judge of a place, where it answers.
        folder: Where replies that were paid for are kept.
        run: Whose money is spent.
        likelihood: Of the asker, for rewards that need it.
    """
    judges = {
        number: [
            (model_at((number, k)), identity_of(judging, refs.get((number, k))))
            for k, judging in enumerate(term.judges)
        ]
        for number, term in enumerate(terms)
        if term.judges
    }
    return RewardContext(folder, run, judges, likelihood)


def check_rewards(
    terms: Sequence[RewardTerm], refs: Mapping[Place, Ref], likelihood: Likelihood | None
) -> None:
    """Refuse rewards that cannot be made, before anything is served or asked.

    Raises:
        RecipeError: One is not known, refuses its arguments, or its judge's key is not set.
    """
    judge_specs(terms, refs)
    unserved = ServedModel.at("http://judge.invalid")
    context = reward_context(
        terms, refs, lambda _: unserved, folder=Path(), run="", likelihood=likelihood
    )
    Rewards(terms, context)


class _Likelihood:
    """How likely an asker of a Hub finds what comes next; its weights are read at the first use."""

    def __init__(self, hub: Hub, ref: Ref, record: Mapping[str, Any]) -> None:
        self._hub, self._ref, self._record = hub, ref, record

    async def of_turn(self, history: Sequence[Message], turn: str, intent: str) -> float:
        """See `Likelihood`."""
        return await self._asker.of_turn(history, turn, intent)

    async def of_end(self, history: Sequence[Message], intent: str) -> float:
        """See `Likelihood`."""
        return await self._asker.of_end(history, intent)

    @cached_property
    def _asker(self) -> AskerLikelihood:
        training = Training.model_validate(self._record["block"])
        folder = self._hub.snapshot(self._ref, allow_patterns=WEIGHTS)
        base = folder
        if training.gives_adapter:
            base = self._hub.snapshot(Ref(**self._record["inputs"]["base"]), allow_patterns=WEIGHTS)
        return AskerLikelihood(training, base, folder)


def likelihood_of(hub: Hub, ref: Ref) -> Likelihood | None:
    """How likely the asker `ref` finds what comes next; None where no asker stage made it."""
    record = records(hub, ref).get("asker")
    return _Likelihood(hub, ref, record) if record else None


@contextmanager
def served_rewards(
    hub: Hub,
    terms: Sequence[RewardTerm],
    refs: Mapping[Place, Ref],
    *,
    folder: Path,
    run: str,
    likelihood: Likelihood | None,
    progress: Progress,
) -> Iterator[Rewards]:
    """The rewards, whose judges answer until the block ends; enter them to score."""
    blocks = judges_of(terms).values()
    with serve(
        hub,
        {f"judge {position}": spec for position, spec in judge_specs(terms, refs).items()},
        log_dir=folder,
        progress=progress,
        slots=max((judging.in_flight for judging in blocks), default=1),
        tokens=max((judging.judge.context for judging in blocks), default=1),
    ) as models:
        context = reward_context(
            terms,
            refs,
            lambda position: models[f"judge {position}"],
            folder=folder / "rewards",
            run=run,
            likelihood=likelihood,
        )
        yield Rewards(terms, context)
