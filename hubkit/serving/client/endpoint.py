"""One model behind one or several addresses: sends requests, and absorbs what servers do.

What an answer means is decided on its status and its kind (see `refusals`):

===========================  =======================================================================
429                          overload: the request waits (Retry-After, else exponential) and holds
                             no slot meanwhile
503, 502, 504, 52x, none     the address is starting, asleep or gone: others take over; without any,
                             wait with patience
404 that never worked        loading, where nothing else answers either; otherwise stop
no credit, a day's quota     stop, as `CreditExhaustedError`
401, 403, 501                a wrong key, or no such route: stop
moderation, too long         this request is refused: `EndpointError` for its caller to record
other 4xx                    the same. When *every* request so far was refused, the endpoint is
                             misconfigured: stop
500                          tried again; the same request failing while others succeed is refused
                             in the end
===========================  =======================================================================

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
from dataclasses import dataclass, replace
from typing import Any

from hubkit.conversation import Message
from hubkit.errors import (
    CreditExhaustedError,
    EndpointError,
    EndpointUnreachableError,
    MisconfiguredEndpointError,
    RecipeError,
)
from hubkit.serving.client import rendering
from hubkit.serving.client.address import COMPLETIONS, parse_address
from hubkit.serving.client.client_template import ClientTemplate
from hubkit.serving.client.conversation_end import SHOW_SPECIAL_TOKENS, with_end_token
from hubkit.serving.client.dialects import (
    at_temperature,
    chat_fields,
    completion_fields,
    dialect_of,
    folded,
    generate_fields,
    left_out,
    may_be_answered,
)
from hubkit.serving.client.health import EndpointVerdict, Outcomes, OwnFailures
from hubkit.serving.client.replica import Replica
from hubkit.serving.client.replies import LENGTH, STOP, Reply, read_chat, read_generate
from hubkit.serving.client.transport import (
    HttpClient,
    RefusedConnectionError,
    RequestTimeoutError,
)

Idle = Callable[[], AbstractAsyncContextManager[None]]
_WAITABLE = frozenset({408, 425, 502, 503, 504, *range(520, 531)})
_FIRST_CONTACT_S = 20.0  # how long nothing at all may listen at an address that never answered
_NOT_FOUND_S = 60.0  # how long an address that never worked may answer 404 to everything
_BY_CHANCE = 1e-6  # less likely failures than this are the request's own, not the server's
_FAILED_ATTEMPTS = 3  # answers with an unusual finish_reason, until `chat` gives up
_BACK_OFF_S = (0.25, 30.0)  # first, longest
_PROBE_S = 10.0  # longest wait for what a server says of itself


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation to be continued, its seed and dialogue, and where it has them, a temperature
    and further keys of its own.
    """

    messages: Sequence[Message]
    seed: int
    key: str = ""
    temperature: float | None = None
    fields: Mapping[str, Any] | None = None

    def require_turn(self) -> None:
        """Raise `RecipeError` where the assistant spoke last."""
        if not may_be_answered(self.messages):
            raise RecipeError(
                "a request must not end with an assistant message; servers would continue that turn"
            )


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What every request to a model carries besides the conversation.

    Attributes:
        token: Bearer token.
        headers: More headers, with their values.
        extra_body: More keys of the body; None removes one.
        chat_template_kwargs: Variables of the server's chat template.
        session_header: A header that carries the dialogue's id.
    """

    token: str | None = None
    headers: Mapping[str, str] | None = None
    extra_body: Mapping[str, Any] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    session_header: str | None = None


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """How much is asked at once, and how long answers are waited for.

    Attributes:
        in_flight: Most requests in flight at one address.
        request_timeout_s: Longest wait for one answer.
        patience_s: How long to wait while no address answers.
    """

    in_flight: int = 64
    request_timeout_s: float = 300.0
    patience_s: float = 900.0


DEFAULT_REQUEST = RequestOptions()
DEFAULT_LIMITS = ClientLimits()


class Endpoint:
    """Chat completions from addresses that all serve the same model. Use as
    ``async with Endpoint(...) as e``.

    Args:
        addresses: URLs, used as given when they name a version or a route.
        profile: The servers' dialect, one of `PROFILES`.
        model: The model's name in requests.
        sampling: The recipe's sampling block as a mapping; None for a value that is not sent.
        template: The model's own chat template. Prompts are rendered here with it and sent as text
            unless the server proves that it renders the same.
        request: What every request carries besides the conversation.
        limits: How much is asked at once, and how long answers are waited for.
        name: What messages call it.

    Attributes:
        errors: Failed attempts by kind.
        window: Tokens of a sequence as the servers state or reveal them; None until one does.
        adaptations: What was done differently from what was configured, in words.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        profile: str,
        model: str,
        sampling: Mapping[str, Any],
        template: ClientTemplate | None = None,
        request: RequestOptions = DEFAULT_REQUEST,
        limits: ClientLimits = DEFAULT_LIMITS,
        name: str = "endpoint",
    ) -> None:
        if not addresses:
            raise RecipeError(f"{name} has no addresses; give at least one URL under endpoints")
        self._profile, self._dialect = profile, dialect_of(profile)
        self._sampling, self._model, self.name = sampling, model, name
        self._extra = dict(request.extra_body or {})
        self._kwargs = dict(request.chat_template_kwargs or {})
        self._template = template
        self._as_text = False
        self._starts_twice = False
        header = request.session_header
        self._session = f"header:{header}" if header else self._dialect.session
        self._fields = self._with_extra(chat_fields(profile, model, sampling))
        if self._kwargs:
            self._fields["chat_template_kwargs"] = self._kwargs
        parsed = {address.url: address for address in map(parse_address, addresses)}
        self._replicas = [Replica(address, ceiling=limits.in_flight) for address in parsed.values()]
        self._replica_of: dict[str, Replica] = {}
        self._http = HttpClient(
            token=request.token, headers=request.headers, timeout_s=limits.request_timeout_s
        )
        self._verdict = EndpointVerdict()
        self._outcomes = Outcomes()
        self._answered: Request | None = None  # the latest request that was
        self._patience_s = limits.patience_s
        self._silent_since: float | None = None  # the first failure since the last answer
        self._last_error: EndpointError | None = None
        self._draining = False
        self._prepared: asyncio.Task[None] | None = None
        self._ready = False
        self._fold = False
        self._opens_in_prompt = False
        self.errors: Counter[str] = Counter()
        self.window: int | None = None
        self.adaptations: list[str] = []
        if keys := left_out(profile, sampling):
            self.adaptations.append(f"not sent to {profile}: {', '.join(keys)}")

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._prepared is not None:
            self._prepared.cancel()
            await asyncio.gather(self._prepared, return_exceptions=True)
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
        self._verdict.close()
        for replica in self._replicas:
            replica.drain()

    def forget(self, key: str) -> None:
        """`key` (a dialogue) is over: its replica need not be remembered."""
        self._replica_of.pop(key, None)

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        seed: int,
        key: str = "",
        prefer: str | None = None,
        idle: Idle = contextlib.nullcontext,
        temperature: float | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> Reply:
        """The next turn after `messages`, asked for again while its attempts fail.

        Args:
            messages: The conversation; it must not end with the assistant, whose turn servers
                would continue.
            seed: Sampling seed; further attempts take others.
            key: Requests with the same key go to the same address while it lives, so that its
                prefix cache serves them.
            prefer: The address to begin with.
            idle: Held open while this call only waits, for the caller to let others work.
            temperature: Replaces the one in `sampling`.
            fields: More keys of this request, where it is sent as messages.

        Raises:
            EndpointError: This request is refused, or its attempts failed.
            MisconfiguredEndpointError: All requests are refused.
            EndpointUnreachableError: No address answers any more.
        """
        for attempt in range(_FAILED_ATTEMPTS):
            attempt_seed = (seed + 7919 * attempt) & 0x7FFFFFFF
            request = Request(messages, attempt_seed, key, temperature, fields)
            reply = await self.attempt(request, prefer=prefer, idle=idle)
            if not reply.failed:
                return reply
        raise EndpointError(
            f"{self.name}: {reply.address} ended {_FAILED_ATTEMPTS} attempts at an answer with "
            f"finish_reason {reply.finish_reason!r}",
            status=200,
            kind="failed",
        )

    async def attempt(
        self, request: Request, *, prefer: str | None = None, idle: Idle = contextlib.nullcontext
    ) -> Reply:
        """One attempt at the next turn, as `chat`; its reply may have failed (`Reply.failed`)."""
        request.require_turn()
        if not self._ready:
            await self.prepare()
        if self._verdict.is_full:
            async with idle():  # those that are out may need what this caller holds
                await self._verdict.enter()
        elif not self._verdict.proven:
            await self._verdict.enter()
        try:
            reply = await self._until_answered(request, prefer, idle)
        except MisconfiguredEndpointError as error:
            self._verdict.condemn(error)
            raise
        except EndpointError as error:
            if isinstance(error, EndpointUnreachableError):
                self._verdict.leave()
                raise
            if self._verdict.proven:
                raise await self._verdict.refused(error, self.name) from None
            async with idle():
                verdict = await self._verdict.refused(error, self.name)
            raise verdict from None
        except BaseException:
            self._verdict.leave()
            raise
        self._verdict.passed()
        if reply.failed:
            self.errors[f"finish_{reply.finish_reason}"[:60]] += 1
        return self._with_thinking_apart(reply)

    def _with_thinking_apart(self, reply: Reply) -> Reply:
        """A cut-off answer of a model whose template opens its thinking is thinking as a whole."""
        if reply.opened_in_prompt:
            self._opens_in_prompt = True
        elif self._opens_in_prompt and reply.finish_reason == LENGTH and not reply.thinking:
            return replace(reply, content="", thinking=reply.content)
        return reply

    async def _until_answered(self, request: Request, prefer: str | None, idle: Idle) -> Reply:
        failures = OwnFailures()
        try:
            return await self._try_until_answered(request, prefer, idle, failures)
        finally:
            self._outcomes.forget(failures)

    async def _try_until_answered(
        self, request: Request, prefer: str | None, idle: Idle, failures: OwnFailures
    ) -> Reply:
        tries = 0
        while True:
            if self._draining:
                raise asyncio.CancelledError
            replica = self._choose(request.key, prefer)
            if replica is None:
                async with idle():
                    await self._wait_for_an_address(request, failures)
                continue
            if not await replica.acquire():
                continue
            was_folded, sent_at = self._fold, self._outcomes.sent()
            try:
                reply = await self._send(replica, request)
            except EndpointError as error:
                self.errors[_kind(error)] += 1
                self._last_error = error
                if self._adapted(error, request, was_folded=was_folded):
                    continue
                if _may_be_own(error):
                    failures.error = error
                    self._outcomes.failed(failures, replica.url)
                self._mark(replica, error)
                await self._raise_if_final(error, replica, request, failures)
                wait_s = min(_back_off(tries, error.retry_after_s), self._patience_s)
            else:
                replica.succeeded(reply.latency_s)
                self._outcomes.answered(replica.url, sent_at)
                self._answered = request
                self._silent_since = None
                return reply
            finally:
                replica.release()
            tries += 1
            if replica.broken:
                self._replica_of.pop(request.key, None)  # a living one takes it
            async with idle():
                await asyncio.sleep(wait_s)

    def _adapted(self, error: EndpointError, request: Request, *, was_folded: bool) -> bool:
        """Whether something was learned from a refusal that makes the same request worth sending
        again at once.
        """
        if error.window:
            self.window = min(error.window, self.window or error.window)
        if error.kind != "roles" or request.messages[0]["role"] != "system" or self._as_text:
            return False
        if was_folded:
            return False
        if not self._fold:
            self._fold = True
            self.adaptations.append(
                f"{self.name}: the server refuses the system role or the order of roles "
                f"({error}); its system message is sent as a user message"
            )
        return True  # also for those that were on their way when this was learned

    def _choose(self, key: str, prefer: str | None) -> Replica | None:
        """The key's own replica while it lives, else the least loaded living one, else None."""
        if len(self._replicas) == 1:
            only = self._replicas[0]
            return only if only.opens_in_s <= 0 else None
        previous = self._replica_of.get(key)
        if previous is not None and previous.opens_in_s <= 0:
            return previous
        living = [replica for replica in self._replicas if replica.opens_in_s <= 0]
        if not living:
            return None
        chosen = next(
            (r for r in living if r.url == prefer and previous is None and not r.broken), None
        )
        chosen = chosen or min(living, key=lambda r: (r.broken, r.load))
        if key:
            self._replica_of[key] = chosen
        return chosen

    async def _wait_for_an_address(self, request: Request, failures: OwnFailures) -> None:
        await self._raise_if_impatient(request, failures)
        await asyncio.sleep(max(0.02, min(min(r.opens_in_s for r in self._replicas), 1.0)))

    async def _raise_if_impatient(self, request: Request, failures: OwnFailures) -> None:
        silent_s = self._silent_s()
        if silent_s <= self._patience_s:
            return
        if failures.error is not None and await self._answers_others(request, failures.error):
            raise failures.error
        addresses = ", ".join(replica.url for replica in self._replicas)
        instead = ", ".join(f"{kind} ×{count}" for kind, count in self.errors.most_common(3))
        raise EndpointUnreachableError(
            f"none of the {self.name} addresses ({addresses}) has given an answer for "
            f"{silent_s:.0f} s, only {instead}; the last was: {self._last_error}. Correct that "
            "and run the same command: it resumes where it stopped"
        )

    async def _answers_others(self, request: Request, error: EndpointError) -> bool:
        """Whether a request that was answered before is answered again, while `request` fails.

        Asked when patience is spent and no other request was left to compare with."""
        answered_count = self._answered
        if answered_count is None or answered_count.messages == request.messages:
            return False
        self.adaptations.append(
            f"{self.name}: one request was sent a second time, to tell whether the server fails or "
            f"the request that it answered with: {error}"
        )
        try:
            await self._send(min(self._replicas, key=lambda r: r.opens_in_s), answered_count)
        except EndpointError:
            return False
        return True

    def _silent_s(self) -> float:
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    # What is sent

    def _with_extra(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        merged = {**fields, **self._extra}
        return {key: value for key, value in merged.items() if key not in self._extra
                or self._extra[key] is not None}  # fmt: skip

    async def _send(self, replica: Replica, request: Request) -> Reply:
        if self._as_text:
            return await self._send_text(replica, request)
        body, headers = self._chat_request(request)
        answer, seconds, _ = await self._http.post(replica.chat_url, body, headers)
        reply = read_chat(answer, latency_s=seconds, address=replica.url)
        return self._cut_at_stops(reply, body.get("stop")) if self._dialect.keeps_stops else reply

    def _chat_request(self, request: Request) -> tuple[dict[str, Any], dict[str, str] | None]:
        """The body and the headers of a chat request."""
        body = {**self._fields, **(request.fields or {}), "messages": request.messages}
        if self._fold:
            body["messages"] = folded(request.messages)
        if request.temperature is not None and "temperature" in body:
            body["temperature"] = request.temperature
        return body, self._name_dialogue(body, request)

    def _name_dialogue(self, body: dict[str, Any], request: Request) -> dict[str, str] | None:
        """Put the seed and the dialogue's id where this kind of server reads them."""
        if self._dialect.seed_key and self._dialect.seed_key not in self._extra:
            body[self._dialect.seed_key] = request.seed
        if not request.key or not self._session:
            return None
        # One model in both seats sees two prefixes of one dialogue.
        session = f"{request.key}-{self.name}"
        if self._session.startswith("header:"):
            return {self._session[7:]: session}
        body[self._session] = session
        return None

    async def _send_text(self, replica: Replica, request: Request) -> Reply:
        assert self._template is not None
        prompt, typed = self._template.render_typed(request.messages)
        if self._starts_twice and prompt.startswith(self._template.bos_token):
            removed = len(self._template.bos_token)
            prompt = prompt[removed:]
            typed = [(start - removed, stop - removed) for start, stop in typed]
        # the embedded engine reads these as text; others ignore the key
        extension = {"hubkit": {"typed_spans": typed}} if typed else {}
        fields = dict(self._fields)
        end_token, turn_ends = self._template.end_token, self._template.stops
        if end_token:
            turn_ends = (end_token, *turn_ends)
            fields |= SHOW_SPECIAL_TOKENS.get(self._profile, {})
        if turn_ends:
            stops = [*fields.get("stop", []), *turn_ends]
            fields["stop"] = stops[: self._dialect.most_stops or len(stops)]
        if self._dialect.text_route == "generate":
            if request.temperature is not None:
                fields = at_temperature(fields, request.temperature)
            fields["seed"] = request.seed
            body = {"inputs": prompt, "parameters": fields, **extension}
            url = f"{replica.address.root}/generate"
            answer, seconds, headers = await self._http.post(url, body)
            count = headers.get("x-prompt-tokens", "")
            tokens = int(count) if count.isdigit() else None
            reply = read_generate(
                answer, latency_s=seconds, address=replica.url, prompt_tokens=tokens
            )
            return self._with_end(reply, answer)
        if request.temperature is not None and "temperature" in fields:
            fields["temperature"] = request.temperature
        body = {**fields, "prompt": prompt, **extension}
        session_headers = self._name_dialogue(body, request)
        answer, seconds, _ = await self._http.post(
            replica.address.route(COMPLETIONS), body, session_headers
        )
        reply = read_chat(answer, latency_s=seconds, address=replica.url)
        if self._dialect.keeps_stops:
            reply = self._cut_at_stops(reply, body.get("stop"))
        return self._with_end(reply, answer)

    @staticmethod
    def _cut_at_stops(reply: Reply, stops: Any) -> Reply:
        """`reply` up to its first stop text, for servers that leave that in the answer."""
        texts = [text for text in stops or () if isinstance(text, str) and text]
        ends = [at for text in texts if (at := reply.content.find(text)) >= 0]
        if not ends:
            return reply
        return replace(reply, content=reply.content[: min(ends)], finish_reason=STOP)

    def _with_end(self, reply: Reply, answer: Any) -> Reply:
        """`reply` with the token that ends a conversation, for models that have one."""
        template = self._template
        if template is None or not template.end_token:
            return reply
        return with_end_token(reply, answer, template.end_token, template.stops)

    # What is asked before the first request

    async def prepare(self) -> None:
        """Learn the window, and whether the server renders as we do; once for all callers.

        The first request does so where it was not done.

        Raises:
            MisconfiguredEndpointError: Prompts cannot be sent as the model was trained on them.
        """
        if self._prepared is None:
            self._prepared = asyncio.ensure_future(self._look())
        await asyncio.shield(self._prepared)

    async def _look(self) -> None:
        if self._template is not None:
            await self._choose_route(self._template)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PROBE_S):
                windows = [await self._stated_window(replica) for replica in self._replicas]
                stated = [window for window in windows if window]
                if stated:
                    self.window = min(stated)
        self._ready = True

    async def _choose_route(self, template: ClientTemplate) -> None:
        """Decide whether prompts go as chat or as rendered text.

        Raises `MisconfiguredEndpointError` where neither would be what the model was trained on."""
        comparisons = [await self._comparison(replica, template) for replica in self._replicas]
        if all(comparison.same for comparison in comparisons):
            return
        if not self._dialect.text_route:
            difference = next((c.difference for c in comparisons if c.difference), "")
            raise MisconfiguredEndpointError(
                f"{self.name}: {self._replicas[0].url} (profile {self._profile}) "
                + (f"renders this model's prompts differently: {difference}" if difference else
                   "cannot show how it renders this model's prompts")
                + "; serve the model with its own chat_template.jinja on vLLM, SGLang, "
                    "llama.cpp or TGI, which take rendered prompts, and name that profile"
            )  # fmt: skip
        self._as_text = True
        if self._dialect.text_route == "generate":
            adapter = None if self._model == "tgi" else self._model
            fields = generate_fields(self._sampling, adapter)
        else:
            fields = completion_fields(self._profile, self._model, self._sampling)
        self._fields = self._with_extra(fields)
        sentinel = template.render(rendering.SENTINELS[0])
        if template.bos_token and sentinel.startswith(template.bos_token):
            self._starts_twice = await rendering.starts_twice(
                self._http, self._replicas[0].address, profile=self._profile, model=self._model,
                prompt=sentinel, bos_token=template.bos_token,
            )  # fmt: skip
        self.adaptations.append(f"{self.name}: prompts are rendered here and sent as text")

    async def _comparison(self, replica: Replica, template: ClientTemplate) -> rendering.Comparison:
        if not self._dialect.checks_rendering:
            return rendering.Comparison(None)
        return await rendering.compare(
            self._http, replica.address, profile=self._profile, model=self._model,
            template=template, kwargs=self._kwargs,
        )  # fmt: skip

    async def _stated_window(self, replica: Replica) -> int | None:
        """Tokens of a sequence as the server states them, or None."""
        address = replica.address
        paths = {"tgi": f"{address.root}/info", "llamacpp": f"{address.root}/props"}
        url = paths.get(self._profile, address.route("/models"))
        try:
            status, answer = await self._http.probe(url)
        except EndpointError:
            return None
        if status != 200 or not isinstance(answer, dict):
            return None
        settings = answer.get("default_generation_settings")
        entry = self._entry_of(answer)
        values = [
            answer.get("max_total_tokens"),
            settings.get("n_ctx") if isinstance(settings, dict) else None,
            *(entry.get(key) for key in ("max_model_len", "context_length", "max_context_length")),
        ]
        return next((v for v in values if type(v) is int and v > 0), None)

    def _entry_of(self, listing: Mapping[str, Any]) -> Mapping[str, Any]:
        """The entry of this model in a list of models; the only one, where none has its name."""
        data = listing.get("data")
        entries = [e for e in data if isinstance(e, dict)] if isinstance(data, list) else []
        named = [entry for entry in entries if entry.get("id") == self._model]
        return (named or (entries if len(entries) == 1 else [{}]))[0]

    # What an error means

    def _mark(self, replica: Replica, error: EndpointError) -> None:
        """Let the address's limit and breaker know."""
        if error.status in (429, 529):
            self._silent_since = self._silent_since or time.monotonic()
            replica.overloaded(error.retry_after_s)
        elif error.status is None or error.status >= 500 or error.status in (200, 404, 408, 425):
            replica.failed(timed_out=isinstance(error, RequestTimeoutError))
            self._silent_since = self._silent_since or time.monotonic()
        else:
            self._silent_since = None

    async def _raise_if_final(
        self, error: EndpointError, replica: Replica, request: Request, failures: OwnFailures
    ) -> None:
        """Return when waiting and trying again is right; raise what the caller is to see otherwise.

        Args:
            error: What the server answered.
            replica: Where.
            request: What was asked.
            failures: Its own failures.
        """
        status = error.status
        silent_s = self._silent_s()
        self._raise_for_all(error)
        if status == 404:
            await self._raise_unless_loading(error, replica, silent_s)
        elif isinstance(error, RefusedConnectionError) and not self._verdict.proven:
            if silent_s > _FIRST_CONTACT_S:
                raise EndpointUnreachableError(f"{self.name}: {error}") from None
            return
        refused = (
            status is not None
            and (300 <= status < 500 or error.kind in ("too_long", "moderation"))
            and status not in (404, 429)
            and status not in _WAITABLE
        )
        unproven_answer = status == 200 and not self._verdict.proven
        if refused or unproven_answer or failures.chance() < _BY_CHANCE:
            raise error
        await self._raise_if_impatient(request, failures)

    def _raise_for_all(self, error: EndpointError) -> None:
        """Raise when `error` concerns every request."""
        status, kind, retry_after_s = error.status, error.kind, error.retry_after_s
        if kind == "daily" and retry_after_s is not None and retry_after_s <= self._patience_s:
            return
        if kind in ("credit", "daily"):
            raise CreditExhaustedError(
                f"{self.name}: {error}. Nothing is lost: top up the account, or wait, and run the "
                "same command",
                status=status,
                kind=kind,
            ) from None
        if status == 401 or (status == 403 and kind not in ("moderation", "too_long")):
            raise MisconfiguredEndpointError(
                f"{self.name}: {error}; check the key (token_env) and that it may use this model",
                status=status,
                kind=kind,
            ) from None
        if kind in ("not_implemented", "policy"):
            raise MisconfiguredEndpointError(
                f"{self.name}: {error}; check the address, the model and the account's settings",
                status=status,
                kind=kind,
            ) from None

    async def _raise_unless_loading(
        self, error: EndpointError, replica: Replica, silent_s: float
    ) -> None:
        """A 404 may be a server whose model is still loading: then its own pages answer no
        better.
        """
        if self._verdict.proven:
            return
        try:
            status, listing = await self._http.probe(replica.address.route("/models"))
        except EndpointUnreachableError:
            return
        if status == 200:
            data = listing.get("data") if isinstance(listing, dict) else None
            entries = data if isinstance(data, list) else []
            names = [str(entry.get("id")) for entry in entries if isinstance(entry, dict)]
            advice = f"it lists {', '.join(names[:20]) or 'none by name'}"
            if self._model not in names:
                advice += ". Set the seat's model to one of them"
            raise MisconfiguredEndpointError(
                f"{self.name}: {error}. Model {self._model!r} was asked for; {advice}",
                status=404,
                kind=error.kind,
            )
        if silent_s > _NOT_FOUND_S or error.kind == "unknown_model":
            raise MisconfiguredEndpointError(
                f"{self.name}: {error}. {replica.url} answers {status} to its list of models; "
                "check the URL and the seat's model",
                status=404,
            )


def _may_be_own(error: EndpointError) -> bool:
    """Whether a failure may be the request's: a server error, a time-out, a dropped connection."""
    return error.status not in (429, 529) and not isinstance(error, RefusedConnectionError)


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

    A server that says to come back at once (0, a date in the past) has given no answer all the
    same: it is not hammered."""
    if retry_after_s:
        return retry_after_s + random.uniform(0, 0.1)
    first, longest = _BACK_OFF_S
    return float(min(longest, first * 2 ** min(tries, 16)) * random.uniform(0.5, 1.0))
