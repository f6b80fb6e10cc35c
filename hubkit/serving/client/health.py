"""Tells a refused request from a misconfigured endpoint, within the first few requests.

Until a first answer has come, at most `CANARIES` requests are out. A refused one waits for the
verdict: another that is answered proves the endpoint, and the refusal was that request's own; when
all that are out were refused, the endpoint is at fault, and every caller hears so. Later, a long
unbroken run of refusals says the same."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hubkit.errors import EndpointError, MisconfiguredEndpointError

CANARIES = 8
REFUSALS_IN_ROW = 50
OWN_FAULTS = frozenset({"moderation", "too_long"})


@dataclass(slots=True, eq=False)
class OwnFailures:
    """The failures of one request, each compared with the other requests of that moment.

    A failure tells against the request only where its address was well at the time: the next other
    request was answered. Where that one failed too, the server was at fault, and however often a
    request fails before another one is tried, it counts once.
    """

    others_answered: int = 0
    others_failed: int = 0
    error: EndpointError | None = None  # the last
    _last: tuple[str, int] | None = None  # address and moment of a failure not compared yet

    def chance(self) -> float:
        """How likely so many failures are the server's doing.

        The server's share of failures comes from the other requests, one of each outcome added
        (Laplace's rule of succession), so that few outcomes never look like certainty.
        """
        share = (self.others_failed + 1) / (self.others_failed + self.others_answered + 2)
        return float(share**self.others_answered)

    def failed(self, address: str, moment: int) -> None:
        """The request failed at `address`."""
        if self._last is None or self._last[0] != address:
            self._last = address, moment

    def compare(self, address: str, sent_at: int | None) -> None:
        """Another request ended: answered where `sent_at` is given, failed where it is None.

        An answer whose request was sent before the failure says nothing: a server in an outage
        often finishes what it has begun.
        """
        if self._last is None or self._last[0] != address:
            return
        if sent_at is None:
            self.others_failed += 1
        elif sent_at > self._last[1]:
            self.others_answered += 1
        else:
            return
        self._last = None


class Outcomes:
    """The order in which the requests of one endpoint are sent, answered and fail; no clock."""

    def __init__(self) -> None:
        self._sent = 0
        self._failing: set[OwnFailures] = set()

    def sent(self) -> int:
        """A request is sent; gives the moment."""
        self._sent += 1
        return self._sent

    def answered(self, address: str, sent_at: int) -> None:
        """A request sent to `address` at that moment was answered."""
        for failures in self._failing:
            failures.compare(address, sent_at)

    def failed(self, failures: OwnFailures, address: str) -> None:
        """The request with these failures failed once more, at `address`."""
        self._failing.add(failures)
        for another in self._failing - {failures}:
            another.compare(address, None)
        failures.failed(address, self._sent)

    def forget(self, failures: OwnFailures) -> None:
        """The request with these failures is over."""
        self._failing.discard(failures)


class EndpointVerdict:
    """Whether one endpoint can be used: not known yet, proven, or condemned."""

    def __init__(self) -> None:
        self.proven = False
        self._out = 0
        self._refused = 0
        self._in_row = 0
        self._closed = False
        self._last: tuple[EndpointError, str] | None = None
        self._verdict: asyncio.Future[None] | None = None
        self._condemned: MisconfiguredEndpointError | None = None

    @property
    def is_full(self) -> bool:
        """Whether a request would wait for a verdict."""
        return not self.proven and self._condemned is None and self._out >= CANARIES

    async def enter(self) -> None:
        """Called before a request; waits while enough unproven ones are out."""
        if self.proven:
            return
        while not self.proven and self._condemned is None and self._out >= CANARIES:
            await self._wait()
        if self._condemned is not None:
            raise self._condemned
        self._out += 1

    def passed(self) -> None:
        """A request was answered."""
        self._in_row = 0
        if not self.proven:
            self.proven = True
            self._decide()

    def leave(self) -> None:
        """A request ended in a way that says nothing (cancelled)."""
        self._out -= 1
        self._condemn_if_all_refused()

    async def refused(self, error: EndpointError, name: str) -> EndpointError:
        """A request was refused; gives the error to raise, once it is known whose fault it was.

        A moderated or too long conversation is its own fault without waiting for others."""
        self._in_row += 1
        if self._in_row >= REFUSALS_IN_ROW:
            self._condemned = _condemnation(error, name, f"the last {self._in_row} requests")
        if self.proven:
            return self._condemned or error
        if error.kind in OWN_FAULTS:
            self.leave()
            return self._condemned or error
        self._refused += 1
        self._last = (error, name)
        self._condemn_if_all_refused()
        while not self.proven and self._condemned is None:
            await self._wait()
        return error if self.proven else self._condemned or error

    def condemn(self, error: MisconfiguredEndpointError) -> None:
        """The endpoint is at fault beyond doubt."""
        self._condemned = error
        self._decide()

    def close(self) -> None:
        """Let no request wait any more: those that do are cancelled, as are later ones."""
        self._closed = True
        if self._verdict is not None:
            self._verdict.cancel()

    def _condemn_if_all_refused(self) -> None:
        if self._last is not None and not self.proven and self._refused >= self._out:
            self.condemn(_condemnation(*self._last, f"all of the first {self._refused} requests"))

    def _decide(self) -> None:
        if self._verdict is not None and not self._verdict.done():
            self._verdict.set_result(None)

    async def _wait(self) -> None:
        if self._closed:
            raise asyncio.CancelledError
        if self._verdict is None or self._verdict.done():
            self._verdict = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._verdict)


def _condemnation(error: EndpointError, name: str, requests: str) -> MisconfiguredEndpointError:
    advice = "correct the seat's settings and run again"
    if error.kind == "parameter":
        advice = "set that key to null under the seat's sampling, or name the server's own profile"
    return MisconfiguredEndpointError(
        f"{name}: {requests} were refused, the last with: {error}; {advice}",
        status=error.status,
        kind=error.kind,
    )
