"""The OpenAI-style chat routes: /v1/chat/completions, /chat_tokenize."""

from __future__ import annotations

import json
import time
import uuid

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubkit.local_engine.generation import Ending, TokenText
from hubkit.local_engine.http_errors import tool_error
from hubkit.local_engine.requests import (
    ChatRequest,
    GenerateParameters,
    Message,
    TextChunk,
)
from hubkit.local_engine.service import Service, event_stream, unless_gone
from hubkit.local_engine.tgi_routes import simple_tokens, timing_headers
from hubkit.untrusted import JsonObject

_MOST_TOP_LOGPROBS = 5


async def chat_completions(service: Service, request: Request) -> Response:
    """POST /v1/chat/completions."""
    service.metrics.requested()
    return await answer(service, request, await service.read(request, ChatRequest))


async def answer(service: Service, request: Request, body: ChatRequest) -> Response:
    """Render, generate, answer at once or as a stream."""
    adapter = service.adapter(request, body.model)
    with service.generator.admit() as ticket:
        prompt, extension = await service.render(adapter, chat_messages(body))
        work = await service.prepare(
            request,
            prompt,
            chat_parameters(body),
            adapter,
            extension=extension,
            dialogue=body.user,
        )
        sequence = service.generator.start(work, ticket)
    envelope = _envelope(service, adapter)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage

        def encode(token: TokenText, ending: Ending | None) -> list[str]:
            return [
                json.dumps(chunk, ensure_ascii=False)
                for chunk in _chunks(body, envelope, token, ending, usage)
            ]

        headers = {"x-compute-type": service.generator.engine.name}
        return event_stream(sequence, encode, last="[DONE]", headers=headers)
    tokens, ending = await unless_gone(request, [sequence], sequence.collect())
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": ending.generated_text},
        "logprobs": {"content": [_logprob(token) for token in tokens]} if body.logprobs else None,
        "finish_reason": chat_reason(ending),
    }
    payload = {
        **envelope,
        "object": "chat.completion",
        "choices": [choice],
        "usage": usage_of(ending),
    }
    return JSONResponse(payload, headers=timing_headers(service, ending))


async def chat_tokenize(service: Service, request: Request) -> Response:
    """POST /chat_tokenize."""
    body = await service.read(request, ChatRequest)
    adapter = service.adapter(request, body.model)
    prompt, extension = await service.render(adapter, chat_messages(body))
    tokens = await simple_tokens(service, prompt, extension)
    return JSONResponse({"tokenize_response": tokens, "templated_text": prompt})


def chat_messages(body: ChatRequest) -> list[JsonObject]:
    """The messages as templates see them: text content only. Raises `RequestError` (422) for
    tools.
    """
    if body.tools and body.tool_choice != "none":
        raise tool_error(
            "this engine does not serve tools; leave them out or set tool_choice to none"
        )
    return [_template_message(message) for message in body.messages]


def _template_message(message: Message) -> JsonObject:
    if isinstance(message.content, list):
        parts = [
            c.text if isinstance(c, TextChunk) else f"![]({c.image_url.url})"
            for c in message.content
        ]
        content = "".join(parts)
    elif message.content is None and message.tool_calls is not None:
        content = json.dumps(message.tool_calls)
    else:
        content = message.content or ""
    return {"role": message.role, "content": content}


def chat_parameters(body: ChatRequest) -> GenerateParameters:
    """TGI's reading of OpenAI's parameters: it samples unless temperature is 0, and turns
    `presence_penalty` x into a repetition penalty of x + 2."""
    greedy = body.temperature == 0
    presence = body.presence_penalty
    top = min(body.top_logprobs or 0, _MOST_TOP_LOGPROBS) if body.logprobs else 0
    return GenerateParameters(
        do_sample=not greedy,
        temperature=None if greedy else body.temperature,
        top_p=None if greedy else body.top_p,
        repetition_penalty=None if presence is None else presence + 2.0,
        frequency_penalty=body.frequency_penalty,
        max_new_tokens=body.max_tokens
        if body.max_completion_tokens is None
        else body.max_completion_tokens,
        seed=body.seed,
        stop=body.stop or [],
        top_n_tokens=top or None,
        grammar=body.response_format,
    )


def chat_reason(ending: Ending) -> str:
    """TGI says `stop` for an end-of-sequence token, and its own words otherwise."""
    return "stop" if ending.reason == "eos_token" else ending.reason


def usage_of(ending: Ending) -> JsonObject:
    """Token counts; `cached_tokens` is how much of the prompt was not computed again."""
    return {
        "prompt_tokens": ending.input_length,
        "completion_tokens": ending.generated_tokens,
        "total_tokens": ending.input_length + ending.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": ending.cached_tokens},
    }


def _envelope(service: Service, adapter: str) -> JsonObject:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": service.model.adapters.get(adapter, service.model.model_id),
        "system_fingerprint": service.model.version,
    }


def _chunks(
    body: ChatRequest,
    envelope: JsonObject,
    token: TokenText,
    ending: Ending | None,
    usage: bool,
) -> list[JsonObject]:
    choice: JsonObject = {
        "index": 0,
        "delta": {"role": "assistant", "content": "" if token.special else token.text},
        "logprobs": {"content": [_logprob(token)]} if body.logprobs else None,
        "finish_reason": chat_reason(ending) if ending else None,
    }
    chunks: list[JsonObject] = [
        {**envelope, "object": "chat.completion.chunk", "choices": [choice], "usage": None}
    ]
    if ending and usage:
        chunks.append(
            {
                **envelope,
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": usage_of(ending),
            }
        )
    return chunks


def _logprob(token: TokenText) -> JsonObject:
    return {
        "token": token.text,
        "logprob": token.logprob,
        "top_logprobs": [
            {"token": candidate.text, "logprob": candidate.logprob} for candidate in token.top
        ],
    }
