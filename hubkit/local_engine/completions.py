"""POST /v1/completions, the older OpenAI-style route, and POST /invocations, which takes any of
three bodies.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubkit.local_engine import chat, tgi_routes
from hubkit.local_engine.generation import Ending, Sequence, TokenText
from hubkit.local_engine.http_errors import RequestError, invalid
from hubkit.local_engine.requests import (
    ChatRequest,
    CompatGenerateRequest,
    CompletionRequest,
    GenerateParameters,
)
from hubkit.local_engine.service import EventStream, Service, close_all, unless_gone, with_ending
from hubkit.untrusted import JsonObject

_MOST_PROMPTS = 4  # TGI's --max-client-batch-size


async def completions(service: Service, request: Request) -> Response:
    """POST /v1/completions."""
    service.metrics.requested()
    return await answer(service, request, await service.read(request, CompletionRequest))


class _Invocation(BaseModel):
    model_config = ConfigDict(extra="allow")


async def invocations(service: Service, request: Request) -> Response:
    """POST /invocations: what the body holds (inputs, messages or prompt) says which route it is
    for.
    """
    service.metrics.requested()
    fields = (await service.read(request, _Invocation)).model_dump()
    if "messages" in fields:
        return await chat.answer(service, request, service.checked(fields, ChatRequest))
    if "prompt" in fields:
        return await answer(service, request, service.checked(fields, CompletionRequest))
    body = service.checked(fields, CompatGenerateRequest)
    return await (tgi_routes.stream if body.stream else tgi_routes.answer)(service, request, body)


async def answer(service: Service, request: Request, body: CompletionRequest) -> Response:
    """Generate after each prompt; answer at once or as a stream of chunks that name their prompt by
    `index`.
    """
    adapter = service.adapter(request, body.model)
    if body.suffix is not None:
        raise invalid("`suffix` is not supported by this engine")
    if not 0 < len(body.prompt) <= _MOST_PROMPTS:
        raise invalid(
            f"Number of prompts must be > 0 and <= {_MOST_PROMPTS}. Given: {len(body.prompt)}"
        )
    if body.hubkit.typed_spans and (len(body.prompt) > 1 or not isinstance(body.prompt[0], str)):
        raise invalid("`hubkit.typed_spans` needs a single prompt, as text")
    sequences: list[Sequence] = []
    try:
        for prompt in body.prompt:
            with service.generator.admit() as ticket:
                work = await service.prepare(
                    request, prompt, _parameters(body), adapter, extension=body.hubkit
                )
                sequences.append(service.generator.start(work, ticket))
    except RequestError:
        await close_all(sequences)
        raise
    envelope = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": service.model.adapters.get(adapter, service.model.model_id),
        "system_fingerprint": service.model.version,
        "object": "text_completion",
    }
    if body.stream:
        return EventStream(sequences, _events(sequences, envelope))

    async def collect() -> list[Ending]:
        return [(await sequence.collect())[1] for sequence in sequences]

    endings = await unless_gone(request, sequences, collect())
    choices = [
        {
            "index": i,
            "text": ending.generated_text,
            "logprobs": None,
            "finish_reason": ending.reason,
        }
        for i, ending in enumerate(endings)
    ]
    return JSONResponse({**envelope, "choices": choices, "usage": _usage(endings)})


async def _events(sequences: list[Sequence], envelope: Mapping[str, object]) -> AsyncIterator[str]:
    """One prompt after the other: all of them are computed at the same time, and buffered."""
    for index, sequence in enumerate(sequences):
        async for token, ending in with_ending(sequence):
            yield json.dumps(
                {**envelope, "choices": [_choice(index, token, ending)]}, ensure_ascii=False
            )
    yield "[DONE]"


def _choice(index: int, token: TokenText, ending: Ending | None) -> JsonObject:
    return {
        "index": index,
        "text": "" if token.special else token.text,
        "logprobs": None,
        "finish_reason": ending.reason
        if ending
        else "",  # the schema wants a string in every chunk
    }


def _parameters(body: CompletionRequest) -> GenerateParameters:
    greedy = body.temperature == 0
    return GenerateParameters(
        do_sample=not greedy,
        temperature=None if greedy else body.temperature,
        top_p=None if greedy else body.top_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        max_new_tokens=body.max_tokens,
        seed=body.seed,
        stop=body.stop or [],
    )


def _usage(endings: list[Ending]) -> dict[str, int]:
    prompt = sum(ending.input_length for ending in endings)
    completion = sum(ending.generated_tokens for ending in endings)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
