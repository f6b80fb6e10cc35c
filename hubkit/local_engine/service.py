"""What every route shares: the served model and adapters, the tokenizer, the templates, the
generator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hubkit.local_engine.engine import Job
from hubkit.local_engine.generation import Ending, Generator, Sequence, TokenText, Work
from hubkit.local_engine.http_errors import RequestError, invalid, template_error
from hubkit.local_engine.metrics import Metrics
from hubkit.local_engine.requests import Extension, GenerateParameters
from hubkit.local_engine.templates import TemplateError, TemplateRenderer
from hubkit.local_engine.text import TextCodec, Tokens
from hubkit.local_engine.validation import check_limits, checked_sampling, new_tokens, too_long
from hubkit.untrusted import JsonObject, TypedTokens

BASE = "base"
# Names that clients send when their user named no model.
_UNNAMED = {None, "", "tgi", "dummy"}
_BODY_LIMIT_BYTES = 2_000_000  # TGI's --payload-limit
_LONG_TEXT_CHARS = 20_000  # from here on, tokenizing would hold up the event loop
_DIALOGUE_HEADER = "x-dialogue-id"

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What clients may ask about the model."""

    model_id: str
    revision: str | None
    adapters: Mapping[str, str]  # name → repo id
    eos_ids: Mapping[str, frozenset[int]]  # adapter name or BASE → ids that end a generation
    version: str


class Service:
    """What the routes share."""

    def __init__(
        self,
        model: ServedModel,
        codec: TextCodec,
        renderer: TemplateRenderer,
        generator: Generator,
        *,
        default_adapters: Mapping[int, str] | None = None,
    ) -> None:
        self.model, self.codec, self.renderer, self.generator = model, codec, renderer, generator
        self._default_adapters = dict(
            default_adapters or {}
        )  # port → adapter served there by default

    @property
    def metrics(self) -> Metrics:
        """Counters."""
        return self.generator.metrics

    @property
    def context(self) -> int:
        """Tokens per sequence, prompt and completion together."""
        return self.generator.engine.context

    def adapter(self, request: Request, name: str | None) -> str:
        """The adapter (or BASE) that `name` means at the address the request came to. Raises
        `RequestError` (422).

        TGI falls back to the base model for a name it does not know; here that is an error, because
        a rollout with the wrong model is worse than none."""
        default = self._default_adapters.get((request.scope.get("server") or ("", 0))[1], BASE)
        if name in _UNNAMED:
            return default
        if name in self.model.adapters:
            return str(name)
        if name in (BASE, self.model.model_id):
            return BASE
        by_repo = {repo: adapter for adapter, repo in self.model.adapters.items()}
        if name in by_repo:
            return by_repo[str(name)]
        names = ", ".join([BASE, *self.model.adapters])
        raise invalid(f"model or adapter {str(name)[:200]!r} is not served here; served: {names}")

    async def read(self, request: Request, kind: type[Body]) -> Body:
        """The request's body as `kind`. Raises `RequestError` (413, 422)."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _BODY_LIMIT_BYTES:
                raise RequestError(
                    413, "validation", f"the body has more than {_BODY_LIMIT_BYTES} bytes"
                )
        try:
            return kind.model_validate_json(bytes(body))
        except ValidationError as error:
            raise invalid(_first_fault(error)) from error

    def checked(self, fields: JsonObject, kind: type[Body]) -> Body:
        """`fields` as `kind`. Raises `RequestError` (422)."""
        try:
            return kind.model_validate(fields)
        except ValidationError as error:
            raise invalid(_first_fault(error)) from error

    async def render(self, adapter: str, messages: list[JsonObject]) -> tuple[str, Extension]:
        """The prompt for `messages`, and which of its control tokens were typed in them. Raises
        `RequestError` (422).
        """
        typed = TypedTokens(self.codec.control_tokens)
        hidden = [{**message, "content": typed.hide(message["content"])} for message in messages]
        try:
            prompt, spans = typed.restore(await self.renderer.render(adapter, hidden))
        except TemplateError as error:
            raise template_error(str(error)) from error
        # the template has printed the tokens that the tokenizer would add
        extension = Extension(typed_spans=[list(span) for span in spans], add_special_tokens=False)
        return prompt, extension

    async def encode(self, text: str, extension: Extension) -> Tokens:
        """Tokenize `text`, off the event loop when it is long. Raises `RequestError` (422)."""
        spans = [(start, stop) for start, stop in extension.typed_spans]
        if any(not start <= stop <= len(text) for start, stop in spans):
            raise invalid("`hubkit.typed_spans` must be [start, stop] pairs inside the prompt")
        encode = partial(
            self.codec.encode,
            text,
            add_special_tokens=extension.add_special_tokens,
            typed_spans=spans,
        )
        return encode() if len(text) < _LONG_TEXT_CHARS else await asyncio.to_thread(encode)

    async def _prompt_ids(
        self, prompt: str | list[int], p: GenerateParameters, extension: Extension
    ) -> list[int]:
        if isinstance(prompt, list):
            if max(prompt) >= self.codec.size:
                raise invalid(f"token id {max(prompt)} is beyond the vocabulary")
            return prompt
        if p.truncate is None and len(prompt) > self.context * self.codec.longest_token_chars:
            at_least = len(prompt) // self.codec.longest_token_chars
            raise too_long(self.context, f"at least {at_least}", p.max_new_tokens or 1)
        return (await self.encode(prompt, extension)).ids

    async def prepare(
        self,
        request: Request,
        prompt: str | list[int],
        p: GenerateParameters,
        adapter: str,
        *,
        extension: Extension,
        dialogue: str | None = None,
    ) -> Work:
        """Validate and tokenize. Raises `RequestError` (422)."""
        sampling = checked_sampling(p)
        check_limits(p, self.context - 1)
        if not prompt:
            raise invalid("`inputs` cannot be empty")
        ids = await self._prompt_ids(prompt, p, extension)
        ids = ids[-p.truncate :] if p.truncate else ids
        if not ids:
            raise invalid("`inputs` cannot be empty")
        job = Job(
            prompt_ids=ids,
            max_new_tokens=new_tokens(p.max_new_tokens, len(ids), self.context),
            sampling=sampling,
            adapter=None if adapter == BASE else adapter,
            top_n=p.top_n_tokens or 0,
            dialogue=request.headers.get(_DIALOGUE_HEADER) or dialogue,
        )
        self.metrics.accepted(job.max_new_tokens)
        return Work(job, tuple(stop for stop in p.stop if stop), self.model.eos_ids[adapter])


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])


Result = TypeVar("Result")


async def unless_gone(
    request: Request, sequences: list[Sequence], work: Awaitable[Result]
) -> Result:
    """The result of `work`; when the client hangs up first, the sequences are cancelled and the
    slots freed.
    """

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "cancelled", "the client went away")
        return task.result()
    finally:
        for pending in (task, watch):
            pending.cancel()
        await close_all(sequences)


class EventStream(StreamingResponse):
    """Server-sent events out of running sequences, which end with the response however it ends."""

    def __init__(
        self,
        sequences: list[Sequence],
        events: AsyncIterator[str],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            self._lines(events),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", **(headers or {})},
        )
        self._sequences = sequences

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not in `_lines`: a client may be gone before the first line is asked for.
        try:
            await super().__call__(scope, receive, send)
        finally:
            await close_all(self._sequences)

    async def _lines(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        try:
            async for data in events:
                yield f"data: {data}\n\n"
        except RequestError as error:
            yield f"data: {error_json(error)}\n\n"


def event_stream(
    sequence: Sequence,
    encode: Callable[[TokenText, Ending | None], list[str]],
    *,
    last: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> EventStream:
    """`encode(token, ending or None)` for each token of `sequence`, the ending with the last one;
    then `last`.
    """

    async def events() -> AsyncIterator[str]:
        async for token, ending in with_ending(sequence):
            for data in encode(token, ending):
                yield data
        if last is not None:
            yield last

    return EventStream([sequence], events(), headers)


async def close_all(sequences: list[Sequence]) -> None:
    """Cancel what is still running."""
    for sequence in sequences:
        await sequence.aclose()


async def with_ending(sequence: Sequence) -> AsyncIterator[tuple[TokenText, Ending | None]]:
    """Each token, the last one together with the ending."""
    previous: TokenText | None = None
    async for item in sequence:
        if isinstance(item, Ending):
            if previous is not None:
                yield previous, item
            return
        if previous is not None:
            yield previous, None
        previous = item


def error_json(error: RequestError) -> str:
    """TGI's error body."""
    return bytes(JSONResponse({"error": str(error), "error_type": error.error_type}).body).decode()


def error_response(error: RequestError) -> Response:
    """TGI's error answer."""
    return Response(error_json(error), status_code=error.status, media_type="application/json")
