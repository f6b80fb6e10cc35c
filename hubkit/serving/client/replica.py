"""One address: how many requests it may have in flight right now, and whether it is worth asking at
all.

The limit starts small and doubles while doubling pays, judged by Little's law: requests per second
are the limit over the median latency, and the median is blind to a few slow answers. When a larger
limit no longer gives more, it goes back and only probes now and then. Refusals for overload (429)
shrink it by their share, so that a stray one costs nothing and a real overload is felt at once;
time-outs halve it. Failures in a row open the breaker: nothing is sent until a cool-down has
passed, then one request tries."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Callable

from hubkit.serving.client.address import CHAT, Address

FIRST_LIMIT = 8
BREAK_AFTER = 5  # failures in a row
COOL_DOWN_S = (1.0, 30.0)  # first, longest
_DOUBLING_PAYS = 1.05  # a doubled limit must give this much more throughput to be kept
_PROBE_PAYS = 1.02  # the same for a limit raised by a quarter
_PROBE_EVERY = 4  # windows between probes once the limit is found
_STRAY = (3, 0.06)  # refusals in a window, and their share of it, from which on they are no chance
_LATENCY_ALARM = 3.0  # times the settled latency


class Replica:
    """One address. `ceiling` caps its limit; `clock` gives seconds."""

    def __init__(
        self, address: Address, *, ceiling: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.address, self.url = address, address.url
        self.chat_url = address.route(CHAT)
        self.limit = min(FIRST_LIMIT, ceiling)
        self.in_flight = 0
        self._clock = clock
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._closed_until = 0.0
        self._failures = 0
        self._cool_down_s = COOL_DOWN_S[0]
        self._trying = False
        self._tuner = _Tuner(self.limit, ceiling)
        self._refusals_in_row = 0

    @property
    def load(self) -> float:
        """Requests in flight and waiting, per slot."""
        return (self.in_flight + len(self._waiting)) / max(1, self.limit)

    @property
    def opens_in_s(self) -> float:
        """Seconds until the breaker lets a request through; 0 when it does now."""
        if self._trying:
            return COOL_DOWN_S[0]
        return max(0.0, self._closed_until - self._clock())

    @property
    def broken(self) -> bool:
        """Whether the breaker is open, or about to try."""
        return self._failures >= BREAK_AFTER

    async def acquire(self) -> bool:
        """Wait for a slot. False when the breaker opened meanwhile: choose again."""
        if self.opens_in_s > 0:
            return False
        if self.in_flight < self.limit and not self._waiting:
            self._take()
            return True
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.result():
                self.release()
            raise

    def _take(self) -> None:
        self.in_flight += 1
        self._trying = self.broken

    def release(self) -> None:
        """Give the slot back."""
        self.in_flight -= 1
        self._trying = False
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self.in_flight < self.limit and self.opens_in_s <= 0:
            future = self._waiting.popleft()
            if not future.done():
                self._take()
                future.set_result(True)

    def drain(self) -> None:
        """Cancel whoever waits for a slot."""
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()

    def succeeded(self, latency_s: float) -> None:
        """An answer came; also closes the breaker."""
        self._failures = self._refusals_in_row = 0
        self._cool_down_s = COOL_DOWN_S[0]
        self._adapt("ok", latency_s)

    def overloaded(self, retry_after_s: float | None) -> None:
        """The server said 429. Asked to wait twice in a row, nothing more is sent to it until
        then.
        """
        self._refusals_in_row += 1
        if retry_after_s and self._refusals_in_row > 1:
            self._close_for(retry_after_s)
        self._adapt("overloaded", 0.0)

    def failed(self, *, timed_out: bool = False) -> None:
        """No answer, or a server error: in a row, these open the breaker."""
        self._failures += 1
        self._adapt("timeout" if timed_out else "fault", 0.0)
        if self.broken:
            self._close_for(self._cool_down_s)
            self._cool_down_s = min(self._cool_down_s * 2, COOL_DOWN_S[1])

    def _close_for(self, seconds: float) -> None:
        self._closed_until = max(self._closed_until, self._clock() + seconds)
        for future in self._waiting:
            if not future.done():
                future.set_result(False)
        self._waiting.clear()

    def _adapt(self, outcome: str, latency_s: float) -> None:
        limit = self._tuner.saw(outcome, latency_s, full=self.in_flight >= self.limit)
        if limit != self.limit:
            self.limit = limit
            self._wake()


class _Tuner:
    """Finds the limit from what the last window of answers looked like (as many answers as the
    limit, at least 8).
    """

    def __init__(self, limit: int, ceiling: int) -> None:
        self.limit, self._ceiling = limit, ceiling
        self._searching = True  # doubling, until it no longer pays
        self._settled_s: float | None = None  # median latency at the settled limit
        self._before: tuple[int, float] | None = (
            None  # (limit, throughput) that the running trial must beat
        )
        self._windows = 0
        self._clear()

    def _clear(self) -> None:
        self._latencies: list[float] = []
        self._bad: dict[str, int] = {"overloaded": 0, "timeout": 0, "fault": 0}
        self._was_full = False

    def saw(self, outcome: str, latency_s: float, *, full: bool) -> int:
        """One outcome; gives the limit from now on. `full`: the limit was in use, so the window
        says something.
        """
        if outcome == "ok":
            self._latencies.append(latency_s)
        else:
            self._bad[outcome] += 1
        self._was_full = self._was_full or full
        outcomes = len(self._latencies) + sum(self._bad.values())
        if outcomes >= max(8, self.limit):
            self._judge(outcomes)
            self._clear()
        return self.limit

    def _judge(self, outcomes: int) -> None:
        refusals = self._bad["overloaded"] + self._bad["timeout"]
        refused = refusals / outcomes
        if (refusals >= _STRAY[0] and refused > _STRAY[1]) or self._bad["fault"] / outcomes > 0.5:
            keep = 1 - refused if not self._bad["timeout"] else 0.5
            self._settle(max(1, int(self.limit * max(0.5, min(keep, 0.9)))))
            return
        if not self._latencies:
            return
        latency = statistics.median(self._latencies)
        throughput = self.limit / max(latency, 1e-6)
        if self._before is not None:
            self._end_trial(latency, throughput)
        elif (
            self._settled_s is not None
            and latency > _LATENCY_ALARM * self._settled_s
            and self.limit > 1
        ):
            self._settle(max(1, int(self.limit * 0.8)))
        elif self._was_full and self.limit < self._ceiling:
            self._begin_trial(latency, throughput)
        else:
            self._note(latency)

    def _note(self, latency: float) -> None:
        self._settled_s = (
            latency if self._settled_s is None else 0.8 * self._settled_s + 0.2 * latency
        )

    def _end_trial(self, latency: float, throughput: float) -> None:
        assert self._before is not None
        limit, before = self._before
        self._before = None
        if throughput >= before * (_DOUBLING_PAYS if self._searching else _PROBE_PAYS):
            self._windows = (
                0 if self._searching else _PROBE_EVERY - 2
            )  # a probe that paid is soon followed by another
            if self._was_full and self.limit < self._ceiling:
                self._begin_trial(latency, throughput)
        else:
            self._settle(limit)

    def _begin_trial(self, latency: float, throughput: float) -> None:
        self._windows += 1
        if not self._searching and self._windows % _PROBE_EVERY:
            self._note(latency)
            return
        self._before = (self.limit, throughput)
        step = self.limit if self._searching else max(1, self.limit // 4)
        self.limit = min(self._ceiling, self.limit + step)

    def _settle(self, limit: int) -> None:
        self.limit, self._searching, self._before, self._settled_s, self._windows = (
            limit,
            False,
            None,
            None,
            0,
        )
