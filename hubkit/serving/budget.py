"""Hard caps over everything that a run asks for: tokens, money, hours. What was spent survives in
the run's journal.

Takes a recipe's caps and what was spent before; gives a `Budget`, which is asked before every
request and told after it. A request is let through only if the caps still hold when it costs all
that it can (its prompt and longest answer), added to what the requests already out may cost; so a
cap is never passed, apart from prompts that a server counts higher than estimated. While those that
are out keep a request from starting, it waits for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hubkit.errors import RecipeError
from hubkit.loopback import on_loopback

CAPS = ("budget_tokens", "budget_usd", "max_hours")  # ends of dialogues that a larger cap reopens
_WAYS = ("in", "out")
_PRICES = ("usd_per_million_input", "usd_per_million_output")


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


class Seat(Protocol):
    """What an answer of a seat may cost: its most tokens, and prices per million in US dollars."""

    @property
    def reply_tokens(self) -> int:
        """The most tokens of one answer."""
        ...

    @property
    def price_share(self) -> float:
        """The share of the prices that is paid."""
        ...

    @property
    def usd_per_million_input(self) -> float:
        """Price of a million tokens in."""
        ...

    @property
    def usd_per_million_cached_input(self) -> float | None:
        """Price of a million tokens in that were cached; None: as the others."""
        ...

    @property
    def usd_per_million_output(self) -> float:
        """Price of a million tokens out."""
        ...


def check_prices(budget_usd: float | None, seats: Mapping[str, Any]) -> None:
    """Refuse a cap in dollars over seats without prices: it would cap nothing.

    A seat needs no price where it costs none: on this machine. A price of 0 counts as given.

    Args:
        budget_usd: The cap; None for none.
        seats: The seats' blocks (`SeatConfig`) by the recipe's keys.

    Raises:
        RecipeError: A seat that may cost something has no prices, or no seat has any.
    """
    if budget_usd is None:
        return
    unpriced = [name for name, seat in seats.items() if not seat.model_fields_set & set(_PRICES)]
    paid = [name for name in unpriced if not all(map(_is_local, seats[name].endpoints))]
    if paid or len(unpriced) == len(seats):
        name = (paid or unpriced)[0]
        raise RecipeError(
            f"a budget of {budget_usd:g} USD caps nothing, because {name} has no prices; set "
            f"{name}.usd_per_million_input and {name}.usd_per_million_output, or say budget_tokens"
        )


def _is_local(address: str) -> bool:
    return address == "embedded" or on_loopback(address)


@dataclass(slots=True)
class Spent:
    """What a run has spent over all its sessions.

    Attributes:
        tokens: Tokens in and out per seat.
        requests: Answered requests.
        cached: Tokens in that the server had cached, per seat; of which seat older journals do not
            say is under ``""``.
        seconds: Seconds of driving.
    """

    tokens: dict[str, list[int]] = field(
        default_factory=lambda: {"user": [0, 0], "assistant": [0, 0]}
    )
    requests: int = 0
    cached: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """All tokens, in and out, of all seats."""
        return sum(map(sum, self.tokens.values()))

    @property
    def cached_total(self) -> int:
        """All tokens in that were cached."""
        return sum(self.cached.values())

    def sums(self) -> dict[str, float]:
        """All of it as named numbers, which can be added to another's."""
        named: dict[str, float] = {
            f"{seat}_{way}": count
            for seat, counts in self.tokens.items()
            for way, count in zip(_WAYS, counts, strict=True)
        }
        by_seat = {f"{seat}_cached": self.cached.get(seat, 0) for seat in self.tokens}
        return {
            **named, **by_seat, "requests": self.requests, "cached": self.cached_total,
            "seconds": self.seconds,
        }  # fmt: skip

    def gain(self, sums: Mapping[str, float]) -> None:
        """Add another's `sums`."""
        unattributed = int(sums.get("cached", 0))
        for seat, counts in self.tokens.items():
            for index, way in enumerate(_WAYS):
                counts[index] += int(sums.get(f"{seat}_{way}", 0))
            cached = int(sums.get(f"{seat}_cached", 0))
            self.cached[seat] = self.cached.get(seat, 0) + cached
            unattributed -= cached
        if unattributed:
            self.cached[""] = self.cached.get("", 0) + unattributed
        self.requests += int(sums.get("requests", 0))
        self.seconds += sums.get("seconds", 0.0)

    def usd(self, seats: Mapping[str, Seat]) -> float:
        """What they cost at the seats' prices."""
        return sum(
            _price(seats[seat], prompt, completion, self.cached.get(seat, 0))
            for seat, (prompt, completion) in self.tokens.items()
        )

    def add(self, seat: str, prompt: int, completion: int, cached: int = 0) -> None:
        """One more answered request."""
        self.tokens[seat][0] += prompt
        self.tokens[seat][1] += completion
        if cached:
            self.cached[seat] = self.cached.get(seat, 0) + cached
        self.requests += 1


def _price(seat: Seat, prompt: float, completion: float, cached: float = 0.0) -> float:
    """US dollars of so many tokens; `cached` of the prompt's have a price of their own."""
    cached_price = seat.usd_per_million_cached_input
    discount = 0.0
    if cached and cached_price is not None:
        discount = min(cached, prompt) * (seat.usd_per_million_input - cached_price)
    full = prompt * seat.usd_per_million_input + completion * seat.usd_per_million_output
    return seat.price_share * (full - discount) / 1e6


class Budget:
    """`caps` over what `spent` says, for requests of `seats`: they name the most tokens and the
    prices of an answer. Raises `RecipeError` as `check_prices` does.
    """

    def __init__(self, caps: Caps, spent: Spent, seats: Mapping[str, Seat]) -> None:
        check_prices(caps.budget_usd, seats)
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
        if not self._capped:
            return not self._closed
        tokens = prompt + self._seats[seat].reply_tokens
        usd = _price(self._seats[seat], prompt, self._seats[seat].reply_tokens)
        while not self._closed and not self._fits(self._held_tokens + tokens, self._held_usd + usd):
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
        """Release what `hold` set aside; the real cost has been added to `spent`, or there was
        none.
        """
        if not self._capped:
            return
        reply_tokens = self._seats[seat].reply_tokens
        self._held_tokens -= prompt + reply_tokens
        self._held_usd -= _price(self._seats[seat], prompt, reply_tokens)
        self._changed.set()
