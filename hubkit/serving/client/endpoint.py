"""One model behind one or several addresses: asks, and bears what servers do.

What an answer means is decided on its status alone:

===========================  =======================================================================================
429                          overload: the request waits (Retry-After, else exponential) and holds no slot meanwhile
503, 502, 504, no answer     the address is starting, asleep or gone: others take over; with none, wait with patience
404 that never worked        loading, where nothing else answers either; otherwise a wrong model or URL: stop
401, 403                     a wrong key: stop
other 4xx                    this request is refused: `EndpointError` for its caller to record. When *every* request
                             so far was refused, the endpoint is misconfigured: stop
500                          tried again; the same request failing while others succeed is refused in the end
===========================  =======================================================================================

"Stop" is `MisconfiguredEndpointError`, or `EndpointUnreachableError` once patience is spent: errors
about the whole run, whereas a plain `EndpointError` is about one request."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from hubkit.conversation import Message
from hubkit.errors import (
    EndpointError,
    EndpointUnreachableError,
    MisconfiguredEndpointError,
    RecipeError,
)
from hubkit.serving.client.client_template import ClientTemplate
from hubkit.serving.client.dialects import (
    NAMES_DIALOGUES,
    Reply,
    alternates,
    at_temperature,
    chat_fields,
    generate_fields,
    read_chat,
    read_generate,
)
from hubkit.serving.client.health import Probation
from hubkit.serving.client.replica import Replica
from hubkit.serving.client.transport import (
    HttpClient,
    RefusedConnectionError,
    RequestTimeoutError,
    base_url,
)

Idle = Callable[[], AbstractAsyncContextManager[None]]
_WAITABLE = frozenset({408, 425, 502, 503, 504})
_FIRST_CONTACT_S = 20.0  # how long nothing at all may listen at an address that never answered
_NOT_FOUND_S = 60.0  # how long an address that never worked may answer 404 to everything
_SAME_REQUEST_FAULTS = 6  # server errors for one request, while others succeed, until it is refused
_BACK_OFF_S = (0.25, 30.0)  # first, longest


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request: its conversation, seed, dialogue, and a temperature of its own where it has
    one.
    """

    messages: Sequence[Message]
    seed: int
    key: str
    temperature: float | None


class Endpoint:
    """Chat completions from `addresses`, which all serve the same model. Use as ``async with
    Endpoint(...) as e``.

    `sampling` is the recipe's sampling block as a mapping. `most_in_flight` caps the requests in
    flight over all addresses together. `patience_s` is how long to wait while no address answers.
    With a `template`, prompts are rendered here and sent to ``/generate``: for servers that hold
    only another model's template."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        profile: str,
        model: str,
        sampling: Mapping[str, Any],
        token: str | None = None,
        template: ClientTemplate | None = None,
        most_in_flight: int = 64,
        request_timeout_s: float = 300.0,
        patience_s: float = 900.0,
        name: str = "endpoint",
    ) -> None:
        if not addresses:
            raise RecipeError(f"{name} has no addresses; give at least one URL under endpoints")
        self._fields = chat_fields(profile, model, sampling)
        self._template = template
        self._names_dialogues = profile in NAMES_DIALOGUES
        if template is not None:
            self._fields = generate_fields(sampling, None if model == "tgi" else model)
        self._replicas = [
            Replica(base_url(address), most=most_in_flight) for address in dict.fromkeys(addresses)
        ]
        self._home: dict[str, Replica] = {}
        self._http = HttpClient(token=token, timeout_s=request_timeout_s)
        self._probation = Probation()
        self._patience_s = patience_s
        self._silent_since: float | None = None  # the first failure since the last answer
        self._model, self.name = model, name
        self._draining = False
        self.errors: Counter[str] = Counter()

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.close()

    @property
    def in_flight(self) -> int:
        """Requests being answered right now."""
        return sum(replica.in_flight for replica in self._replicas)

    @property
    def limits(self) -> dict[str, int]:
        """How many requests each address may have in flight at the moment."""
        return {replica.url: replica.limit for replica in self._replicas}

    def drain(self) -> None:
        """Send nothing more: requests that are not out yet are cancelled, those that are out are
        answered.
        """
        self._draining = True
        self._probation.close()
        for replica in self._replicas:
            replica.drain()

    def forget(self, key: str) -> None:
        """`key` (a dialogue) is over: its replica need not be remembered."""
        self._home.pop(key, None)

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        seed: int,
        key: str = "",
        prefer: str | None = None,
        idle: Idle = contextlib.nullcontext,
        temperature: float | None = None,
    ) -> Reply:
        """The next turn after `messages`, which must not end with the assistant (servers would
        continue that turn).

        Requests with the same `key` go to the same address while it lives, so that its prefix cache
        serves them; `prefer` is the address to begin with. `temperature` goes instead of the one in
        `sampling`. `idle()` is held open while this call only waits, for the caller to let others
        work meanwhile. Raises `EndpointError` when this request is refused, and for what concerns
        all of them `MisconfiguredEndpointError` or `EndpointUnreachableError`."""
        if not alternates(messages):
            raise RecipeError(
                "a request must not end with an assistant message; servers would continue that turn"
            )
        await self._probation.enter()
        try:
            reply = await self._until_answered(
                _Asked(messages, seed, key, temperature), prefer, idle
            )
        except MisconfiguredEndpointError as error:
            self._probation.condemn(error)
            raise
        except EndpointError as error:
            if isinstance(error, EndpointUnreachableError):
                self._probation.leave()
                raise
            raise await self._probation.refused(error, self.name) from None
        except BaseException:
            self._probation.leave()
            raise
        self._probation.passed()
        return reply

    async def _until_answered(self, asked: _Asked, prefer: str | None, idle: Idle) -> Reply:
        faults = tries = 0
        answered_at_first = 0
        while True:
            if self._draining:
                raise asyncio.CancelledError
            replica = self._choose(asked.key, prefer)
            if replica is None:
                async with idle():
                    await self._wait_for_an_address()
                continue
            if not await replica.acquire():
                continue
            try:
                reply = await self._send(replica, asked)
            except EndpointError as error:
                self.errors[_kind(error)] += 1
                if error.status in (200, 500):
                    answered_at_first = answered_at_first if faults else self._answered()
                    faults += 1
                self._mark(replica, error)
                others_live = self._answered() > answered_at_first
                await self._raise_if_final(error, replica, faults if others_live else -faults)
                wait_s = min(_back_off(tries, error.retry_after_s), self._patience_s)
            else:
                replica.succeeded(reply.latency_s)
                self._silent_since = None
                return reply
            finally:
                replica.release()
            tries += 1
            if replica.broken:
                self._home.pop(asked.key, None)  # it moved out; whoever lives takes it
            async with idle():
                await asyncio.sleep(wait_s)

    def _choose(self, key: str, prefer: str | None) -> Replica | None:
        """The key's own replica while it lives, else the least loaded living one, else None."""
        home = self._home.get(key)
        if home is not None and home.opens_in_s <= 0:
            return home
        living = [replica for replica in self._replicas if replica.opens_in_s <= 0]
        if not living:
            return None
        chosen = next(
            (r for r in living if r.url == prefer and home is None and not r.broken), None
        )
        chosen = chosen or min(living, key=lambda r: (r.broken, r.load))
        if key:
            self._home[key] = chosen
        return chosen

    async def _wait_for_an_address(self) -> None:
        self._raise_if_impatient()
        await asyncio.sleep(max(0.02, min(min(r.opens_in_s for r in self._replicas), 1.0)))

    def _raise_if_impatient(self) -> None:
        silent_s = self._silent_s()
        if silent_s > self._patience_s:
            addresses = ", ".join(replica.url for replica in self._replicas)
            instead = ", ".join(f"{kind} ×{count}" for kind, count in self.errors.most_common(3))
            raise EndpointUnreachableError(
                f"none of the {self.name} addresses ({addresses}) has given an answer for {silent_s:.0f} s, only "
                f"{instead}; mend them and run the same command: it goes on where it stopped"
            )

    def _silent_s(self) -> float:
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    async def _send(self, replica: Replica, asked: _Asked) -> Reply:
        fields = {**self._fields, "seed": asked.seed}
        if self._template is not None:
            parameters = (
                fields if asked.temperature is None else at_temperature(fields, asked.temperature)
            )
            if self._template.stops:
                parameters["stop"] = [*parameters.get("stop", []), *self._template.stops][:4]
            body: dict[str, Any] = {
                "inputs": self._template.render(asked.messages),
                "parameters": parameters,
            }
            answer, seconds, headers = await self._http.post(f"{replica.url}/generate", body)
            count = headers.get("x-prompt-tokens", "")
            tokens = int(count) if count.isdigit() else None
            return read_generate(
                answer, latency_s=seconds, address=replica.url, prompt_tokens=tokens
            )
        body = {**fields, "messages": asked.messages}
        if asked.temperature is not None:
            body["temperature"] = asked.temperature
        if asked.key and self._names_dialogues:
            body["user"] = (
                f"{asked.key}-{self.name}"  # one model in both seats sees two prefixes of one dialogue
            )
        answer, seconds, _ = await self._http.post(f"{replica.url}/v1/chat/completions", body)
        return read_chat(answer, latency_s=seconds, address=replica.url)

    def _mark(self, replica: Replica, error: EndpointError) -> None:
        """Let the address's limit and breaker know."""
        if error.status == 429:
            self._silent_since = self._silent_since or time.monotonic()
            replica.overloaded(error.retry_after_s)
        elif error.status is None or error.status >= 500 or error.status in (200, 404, 408, 425):
            replica.failed(timed_out=isinstance(error, RequestTimeoutError))
            self._silent_since = self._silent_since or time.monotonic()
        else:
            self._silent_since = None

    def _answered(self) -> int:
        return sum(replica.answered for replica in self._replicas)

    async def _raise_if_final(self, error: EndpointError, replica: Replica, faults: int) -> None:
        """Return when waiting and trying again is right; raise what the caller shall see when it is
        not.

        `faults` counts the server's errors for this one request, as a negative number when no other
        request has been answered since the first of them."""
        status = error.status
        silent_s = self._silent_s()
        if status in (401, 403):
            raise MisconfiguredEndpointError(
                f"{self.name}: {error}; check the key (token_env) and that it may use this model",
                status=status,
            ) from None
        if status == 404:
            await self._raise_unless_loading(replica, silent_s)
        elif isinstance(error, RefusedConnectionError) and not self._probation.proven:
            if silent_s > _FIRST_CONTACT_S:
                raise EndpointUnreachableError(f"{self.name}: {error}") from None
            return
        refused = (
            status is not None
            and 300 <= status < 500
            and status not in (404, 429)
            and status not in _WAITABLE
        )
        hopeless = faults >= _SAME_REQUEST_FAULTS or (status == 200 and not self._probation.proven)
        if (
            refused
            or hopeless
            or (-faults >= _SAME_REQUEST_FAULTS and await self._healthy(replica))
        ):
            raise error
        self._raise_if_impatient()

    async def _healthy(self, replica: Replica) -> bool:
        with contextlib.suppress(EndpointUnreachableError):
            return (await self._http.get(f"{replica.url}/health"))[0] == 200
        return False

    async def _raise_unless_loading(self, replica: Replica, silent_s: float) -> None:
        """A 404 may be a server whose model is still loading: then its own pages answer no
        better.
        """
        if self._probation.proven:
            return
        try:
            status, listing = await self._http.get(f"{replica.url}/v1/models")
        except EndpointUnreachableError:
            return
        if status == 200:
            listed = listing.get("data") if isinstance(listing, dict) else None
            served = (
                [m.get("id") for m in listed if isinstance(m, dict)]
                if isinstance(listed, list)
                else []
            )
            raise MisconfiguredEndpointError(
                f"{self.name}: {replica.url} does not know model {self._model!r}; it serves "
                f"{', '.join(map(str, served)) or 'none by name'}. Set the seat's model to one of them",
                status=404,
            )
        if silent_s > _NOT_FOUND_S:
            raise MisconfiguredEndpointError(
                f"{self.name}: {replica.url} answers 404 to /v1/chat/completions and to /v1/models; check the URL",
                status=404,
            )


def _kind(error: EndpointError) -> str:
    if error.status is not None:
        return f"http_{error.status}" if error.status != 200 else "bad_answer"
    if isinstance(error, RequestTimeoutError):
        return "timeout"
    return (
        "refused_connection" if isinstance(error, RefusedConnectionError) else "dropped_connection"
    )


def _back_off(tries: int, retry_after_s: float | None) -> float:
    """Seconds to wait: half of an exponential plus chance, so that those who failed together do not
    return together.

    A server that says to come back at once (0, a date gone by) has given no answer all the same: it
    is not hammered."""
    if retry_after_s:
        return retry_after_s + random.uniform(0, 0.1)
    first, longest = _BACK_OFF_S
    return float(min(longest, first * 2 ** min(tries, 16)) * random.uniform(0.5, 1.0))
