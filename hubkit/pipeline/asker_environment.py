"""An asker of a Hub as an environment: who asks, from which openings, and the server while it
runs.

``hubkit env`` is argument parsing and printing over this module."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hubkit.environment import (
    DEFAULT_LIMITS,
    AskerEnvironment,
    Limits,
    Opening,
    openings_in,
    served,
)
from hubkit.errors import RecipeError, SourceError
from hubkit.hub import Hub, Ref
from hubkit.hub.places import runs
from hubkit.pipeline import askers
from hubkit.pipeline.askers import ENGINE_TOKENS, AskerSpec
from hubkit.pipeline.rewarding import (
    Place,
    check_rewards,
    judge_refs,
    likelihood_of,
    served_rewards,
)
from hubkit.progress import Progress, silent
from hubkit.recipe import Deploy, RewardTerm, Rollout, Sampling, SeatConfig, Turns
from hubkit.reinforcement import Episode, Likelihood, Outcome
from hubkit.serving import ModelSpec, with_own_template
from hubkit.serving.budget import CAPS, check_prices
from hubkit.serving.client import ClientLimits
from hubkit.untrusted import JsonObject

DEPLOY = "deploy"
Locate = Callable[[str], list[Path]]
"""``REPO[@REV][:SPLIT]`` → parquet files here."""


@dataclass(frozen=True)
class EnvironmentOptions:
    """An environment that is to be served.

    Attributes:
        asker: ``REPO[@REVISION]``.
        data: ``REPO[@REV][:SPLIT]`` of openings; empty: those that the asker was held out from,
            where its repo says so, else none.
        system: Tells a repo that no asker stage made to play the user.
        served_at: Addresses (``URL[#MODEL]``) where it answers; ``[deploy]``: an endpoint is made
            for it; empty: our engine.
        rewards: What a conversation is worth; empty: nothing is said of it.
        turns: Most user turns, the opening included.
        retries: How often a turn of the asker that fails a check is asked for again.
        speaks_user: The asker writes people's turns under its own user header, seats not swapped.
        end_token: The token with which such an asker ends a conversation, if it has one.
        budget_usd: Most that the asker may cost while it is served; needs `usd_per_million`.
        budget_tokens: Most tokens that it may read and write.
        max_hours: For how long it asks.
        usd_per_million: US dollars per million tokens, in and out.
        slots: Conversations that our engine works on at once.
    """

    asker: str
    data: str = ""
    system: str | None = None
    served_at: Sequence[str] = ()
    deploy: Deploy = field(default_factory=Deploy)
    sampling: Sampling = field(default_factory=Sampling)
    rewards: Sequence[RewardTerm] = ()
    turns: int = 8
    retries: int = 2
    slots: int = 8
    speaks_user: bool = False
    end_token: str | None = None
    budget_usd: float | None = None
    budget_tokens: int | None = None
    max_hours: float | None = None
    usd_per_million: tuple[float, float] | None = None


@dataclass(frozen=True)
class PreparedEnvironment:
    """An environment whose asker and openings were looked up.

    Attributes:
        skipped: Rows that cannot open a conversation, by reason.
    """

    spec: AskerSpec
    block: Rollout
    openings: list[Opening]
    skipped: Counter[str]
    slots: int
    rewards: Sequence[RewardTerm] = ()
    judges: Mapping[Place, Ref] = field(default_factory=dict)
    likelihood: Likelihood | None = None

    def plan(self, hub: Hub) -> JsonObject:
        """Say what would be served, under which caps."""
        return {
            "asker": str(self.spec.ref),
            "base": str(self.spec.base) if self.spec.base else None,
            "openings": len(self.openings),
            "skipped": dict(self.skipped),
            "most_user_turns": self.block.turns.value,
            "end_mark": self.block.end_mark,
            "rewards": [term.name for term in self.rewards],
            "caps": {name: getattr(self.block, name) for name in CAPS},
            "endpoints": askers.endpoints(hub, [self.spec]),
        }

    @contextmanager
    def served(
        self,
        hub: Hub,
        *,
        port: int = 0,
        token: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
        progress: Progress = silent,
    ) -> Iterator[tuple[str, Counter[str]]]:
        """Serve it until the block ends: its URL, and its conversations by how they ended."""
        log = runs() / "environment"
        log.mkdir(parents=True, exist_ok=True)
        counts: Counter[str] = Counter()
        run = hashlib.sha256(secrets.token_bytes()).hexdigest()  # each server has its caps anew
        with (
            askers.serve_askers(
                hub, [self.spec], log, progress, slots=self.slots, tokens=ENGINE_TOKENS
            ) as models,
            served_rewards(
                hub,
                self.rewards,
                self.judges,
                folder=log,
                run=run,
                likelihood=self.likelihood,
                progress=progress,
            ) as rewards,
        ):
            model = models[0][1]

            async def reward(episode: Episode) -> Outcome:
                return (await rewards.score([episode]))[0]

            @asynccontextmanager
            async def opened() -> AsyncIterator[AskerEnvironment]:
                async with (
                    rewards,
                    model.endpoint(
                        self.block.asker,
                        limits=ClientLimits(limits.sessions),
                        name=self.spec.name,
                    ) as endpoint,
                ):
                    yield AskerEnvironment(
                        self.spec.name,
                        self.block,
                        endpoint,
                        self.openings,
                        reward if self.rewards else None,
                        counts,
                    )

            with served(opened, port=port, token=token, limits=limits) as url:
                yield url, counts


def prepare(
    hub: Hub, options: EnvironmentOptions, locate: Locate, *, progress: Progress = silent
) -> PreparedEnvironment:
    """Look up the asker and its openings.

    Raises:
        RepoMissingError: There is no such asker.
        RecipeError: It has no system message, and none is given.
        SourceError: The data has no rows that can open a conversation.
    """
    if options.end_token and not options.speaks_user:
        raise RecipeError("--end-token is of an asker with --speaks-user; others have an end mark")
    speaks_user = {options.asker: options.end_token} if options.speaks_user else None
    spec = askers.find(
        hub, options.asker, system=options.system, speaks_user=speaks_user, progress=progress
    )
    if options.speaks_user and not spec.speaks_user:
        raise RecipeError(
            f"{spec.name} was trained by an asker stage, which swaps the seats; leave out "
            "--speaks-user"
        )
    if not spec.speaks_user and not (spec.system or "").strip():
        raise RecipeError(
            f"{spec.name} does not record the system message that it plays under; say it with "
            "--system"
        )
    if list(options.served_at) == [DEPLOY]:
        spec = replace(spec, model=ModelSpec(spec.ref, spec.base, options.deploy))
    elif options.served_at:
        model = ModelSpec(askers.addressed(options.served_at))
        spec = replace(
            spec,
            model=model
            if spec.prompted or spec.speaks_user
            else with_own_template(model, hub, spec.ref),
        )
    block = _block(spec, options)
    check_prices(block.budget_usd, {"the asker": block.asker})
    name = options.data or (f"{spec.data.repo_id}@{spec.data.revision}" if spec.data else "")
    judges = judge_refs(hub, options.rewards, progress)
    likelihood = likelihood_of(hub, spec.ref)
    check_rewards(options.rewards, judges, likelihood)
    rewarded = (options.slots, options.rewards, judges, likelihood)
    if not name:
        return PreparedEnvironment(spec, block, [], Counter(), *rewarded)
    openings, skipped = openings_in(
        locate(name), spec.intent_column, most_chars=block.max_opening_chars
    )
    if not openings:
        reasons = ", ".join(f"{reason} {count}" for reason, count in skipped.items())
        raise SourceError(f"no row of {name} can open a conversation ({reasons or 'it is empty'})")
    return PreparedEnvironment(spec, block, openings, skipped, *rewarded)


def _block(spec: AskerSpec, options: EnvironmentOptions) -> Rollout:
    return Rollout(
        dialogues=1,
        turns=Turns(value=options.turns),
        end_mark=spec.end_mark,
        retries_per_turn=options.retries,
        asker=SeatConfig(
            repo=spec.ref.repo_id,
            system=spec.system,
            sampling=options.sampling,
            context=ENGINE_TOKENS,
            **_prices(options),
        ),
        chat=SeatConfig(
            repo=None,
            name="the trainer's model",
            license="not declared",
            endpoints=["http://trainer.invalid"],  # it comes to us
        ),
        budget_usd=options.budget_usd,
        budget_tokens=options.budget_tokens,
        max_hours=options.max_hours,
    )


def _prices(options: EnvironmentOptions) -> dict[str, Any]:
    """The asker's, and where it answers: a cap in dollars needs a price anywhere but here."""
    keys: dict[str, Any] = {}
    if options.usd_per_million is not None:
        price_in, price_out = options.usd_per_million
        keys = {"usd_per_million_input": price_in, "usd_per_million_output": price_out}
    urls = [url.partition("#")[0] for url in options.served_at]
    return keys | ({"endpoints": urls} if urls else {})
