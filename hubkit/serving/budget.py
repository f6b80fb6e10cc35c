"""Hard caps over everything that a run asks for: tokens, money, hours. What was spent survives in
the run's journal.

Takes a recipe's caps and what was spent before; gives a `Budget`, which is asked before every
request and told after. A request is let through only if the caps still hold when it costs all that
it can (its prompt and max_tokens), beside what the requests already out may cost; so a cap is never
passed, apart from prompts that a server counts higher than we guessed. While those that are out
keep a request from starting, it waits for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

CAPS = (
    "budget_tokens",
    "budget_usd",
    "max_hours",
)  # how a dialogue ends that a larger cap lets go on
_WAYS = ("in", "out")


class Caps(Protocol):
    """What a recipe's block says may be spent at most; None is no cap."""

    @property
    def budget_usd(self) -> float | None:
        """US dollars."""
        ...

    @property
    def budget_tokens(self) -> int | None:
        """Tokens, in and out together."""
        ...

    @property
    def max_hours(self) -> float | None:
        """Hours of driving."""
        ...


class _Sampling(Protocol):
    @property
    def max_tokens(self) -> int:
        """Of one answer."""
        ...


class Seat(Protocol):
    """What an answer of a seat may cost: its most tokens, and prices per million in US dollars."""

    @property
    def sampling(self) -> _Sampling:
        """How it is sampled."""
        ...

    @property
    def usd_per_million_input(self) -> float:
        """Price of a million tokens in."""
        ...

    @property
    def usd_per_million_output(self) -> float:
        """Price of a million tokens out."""
        ...


@dataclass(slots=True)
class Spent:
    """Tokens in and out per seat, requests, and seconds of driving, over all the sessions of a
    run.
    """

    tokens: dict[str, list[int]] = field(
        default_factory=lambda: {"user": [0, 0], "assistant": [0, 0]}
    )
    requests: int = 0
    cached: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """All tokens, in and out, of all seats."""
        return sum(map(sum, self.tokens.values()))

    def sums(self) -> dict[str, float]:
        """All of it as named numbers, which can be added to another's."""
        named: dict[str, float] = {
            f"{seat}_{way}": count
            for seat, both in self.tokens.items()
            for way, count in zip(_WAYS, both, strict=True)
        }
        return {**named, "requests": self.requests, "cached": self.cached, "seconds": self.seconds}

    def gain(self, sums: Mapping[str, float]) -> None:
        """Add another's `sums`."""
        for seat, both in self.tokens.items():
            for place, way in enumerate(_WAYS):
                both[place] += int(sums.get(f"{seat}_{way}", 0))
        self.requests += int(sums.get("requests", 0))
        self.cached += int(sums.get("cached", 0))
        self.seconds += sums.get("seconds", 0.0)

    def usd(self, seats: Mapping[str, Seat]) -> float:
        """What they cost at the seats' prices."""
        return sum(_price(seats[seat], *tokens) for seat, tokens in self.tokens.items())

    def add(self, seat: str, prompt: int, completion: int, cached: int = 0) -> None:
        """One more answered request."""
        self.tokens[seat][0] += prompt
        self.tokens[seat][1] += completion
        self.cached += cached
        self.requests += 1


def _price(seat: Seat, prompt: float, completion: float) -> float:
    return (prompt * seat.usd_per_million_input + completion * seat.usd_per_million_output) / 1e6


class Budget:
    """`caps` over what `spent` says, for requests of `seats`: they name the most tokens and the
    prices of an answer.
    """

    def __init__(self, caps: Caps, spent: Spent, seats: Mapping[str, Seat]) -> None:
        self._caps, self.spent, self._seats = caps, spent, seats
        self._held_tokens, self._held_usd = 0, 0.0
        self._before_s, self._started = spent.seconds, time.monotonic()
        self._changed: asyncio.Event = asyncio.Event()
        self._capped = caps.budget_tokens is not None or caps.budget_usd is not None
        self.exhausted = ""
        self._stopped = False

    @property
    def seconds(self) -> float:
        """Seconds of driving so far, earlier sessions included."""
        return self._before_s + time.monotonic() - self._started

    async def hold(self, seat: str, prompt: int) -> bool:
        """Set aside what a request may cost; False when a cap forbids it for good."""
        self._check_hours()
        tokens = prompt + self._seats[seat].sampling.max_tokens
        usd = _price(self._seats[seat], prompt, self._seats[seat].sampling.max_tokens)
        while (
            self._capped
            and not self._closed
            and not self._fits(self._held_tokens + tokens, self._held_usd + usd)
        ):
            if not self._held_tokens:
                self.exhausted = "budget_tokens" if not self._fits(tokens, 0.0) else "budget_usd"
                self._changed.set()
                break
            self._changed.clear()
            await self._changed.wait()
        if self._closed:
            return False
        self._held_tokens += tokens
        self._held_usd += usd
        return True

    @property
    def _closed(self) -> bool:
        return self._stopped or bool(self.exhausted)

    def stop(self) -> None:
        """Let nothing more through: the run is stopping."""
        self._stopped = True
        self._changed.set()

    def _fits(self, tokens: int, usd: float) -> bool:
        caps = self._caps
        if caps.budget_tokens is not None and self.spent.total + tokens > caps.budget_tokens:
            return False
        return (
            caps.budget_usd is None or self.spent.usd(self._seats) + usd <= caps.budget_usd + 1e-12
        )

    def _check_hours(self) -> None:
        if (
            self._caps.max_hours is not None
            and self.seconds > self._caps.max_hours * 3600
            and not self.exhausted
        ):
            self.exhausted = "max_hours"
            self._changed.set()

    def settle(self, seat: str, prompt: int) -> None:
        """Give back what `hold` set aside; the real cost has been added to `spent`, or there was
        none.
        """
        max_tokens = self._seats[seat].sampling.max_tokens
        self._held_tokens -= prompt + max_tokens
        self._held_usd -= _price(self._seats[seat], prompt, max_tokens)
        self._changed.set()
