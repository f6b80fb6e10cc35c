"""TGI's own routes: `/`, /generate, /generate_stream, /tokenize."""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubkit.local_engine.generation import Ending, Sequence, TokenText, Work
from hubkit.local_engine.http_errors import RequestError, invalid
from hubkit.local_engine.requests import (
    CompatGenerateRequest,
    Extension,
    GenerateParameters,
    GenerateRequest,
)
from hubkit.local_engine.service import Service, close_all, event_stream, unless_gone
from hubkit.untrusted import JsonObject

Sampled = tuple[list[TokenText], Ending]


async def generate(service: Service, request: Request) -> Response:
    """POST /generate."""
    service.metrics.requested()
    return await answer(service, request, await service.read(request, GenerateRequest))


async def generate_stream(service: Service, request: Request) -> Response:
    """POST /generate_stream."""
    service.metrics.requested()
    return await stream(service, request, await service.read(request, GenerateRequest))


async def compat_generate(service: Service, request: Request) -> Response:
    """POST /: either of the two above; the answer is in a list."""
    service.metrics.requested()
    body = await service.read(request, CompatGenerateRequest)
    if body.stream:
        return await stream(service, request, body)
    response = await answer(service, request, body)
    return Response(
        b"[" + bytes(response.body) + b"]",
        headers=_timings(response),
        media_type="application/json",
    )


async def answer(service: Service, request: Request, body: GenerateRequest) -> JSONResponse:
    """Generate, then say everything at once."""
    p = body.parameters
    adapter = service.adapter(request, p.adapter_id)
    sequences: list[Sequence] = []
    try:
        for _ in range(p.best_of or 1):
            with service.generator.admit() as ticket:
                work = await service.prepare(
                    request, body.inputs, p, adapter, extension=body.hubkit
                )
                sequences.append(service.generator.start(work, ticket))
    except RequestError:
        await close_all(sequences)
        raise

    async def collect() -> list[Sampled]:
        return [await sequence.collect() for sequence in sequences]

    results = await unless_gone(request, sequences, collect())
    results.sort(key=lambda result: -_mean_logprob(result[0]))
    prefix = body.inputs if p.return_full_text else ""
    payload: JsonObject = {"generated_text": prefix + results[0][1].generated_text}
    if p.details:
        details = [_details(service, work, p, result) for result in results]
        best = details[0]
        if len(results) > 1:
            best["best_of_sequences"] = [
                {"generated_text": prefix + ending.generated_text, **detail}
                for detail, (_, ending) in zip(details[1:], results[1:], strict=True)
            ]
        payload["details"] = best
    return JSONResponse(payload, headers=timing_headers(service, results[0][1]))


async def stream(service: Service, request: Request, body: GenerateRequest) -> Response:
    """Generate, one event per token; the last one carries the whole text and the details."""
    p = body.parameters
    adapter = service.adapter(request, p.adapter_id)
    if p.best_of is not None and p.best_of > 1:
        raise invalid("`best_of` != 1 is not supported when streaming tokens")
    if p.decoder_input_details:
        raise invalid("`decoder_input_details` == true is not supported when streaming tokens")
    with service.generator.admit() as ticket:
        work = await service.prepare(request, body.inputs, p, adapter, extension=body.hubkit)
        sequence = service.generator.start(work, ticket)
    index = 0

    def encode(token: TokenText, ending: Ending | None) -> list[str]:
        nonlocal index
        index += 1
        event: JsonObject = {"index": index, "token": _token(token)}
        if token.top:
            event["top_tokens"] = [_token(candidate) for candidate in token.top]
        event["generated_text"] = event["details"] = None
        if ending:
            event["generated_text"] = (
                body.inputs if p.return_full_text else ""
            ) + ending.generated_text
            event["details"] = {
                "finish_reason": ending.reason,
                "generated_tokens": ending.generated_tokens,
                "input_length": ending.input_length,
                "seed": _shown_seed(work),
            }
        return [json.dumps(event, ensure_ascii=False)]

    return event_stream(sequence, encode, headers={"x-compute-type": service.generator.engine.name})


async def tokenize(service: Service, request: Request) -> Response:
    """POST /tokenize."""
    body = await service.read(request, GenerateRequest)
    return JSONResponse(await simple_tokens(service, body.inputs, body.hubkit))


async def simple_tokens(service: Service, text: str, extension: Extension) -> list[JsonObject]:
    """Every token of `text` with its id and its character span."""
    encoding = await service.encode(text, extension)
    return [
        {"id": i, "text": text[start:stop], "start": start, "stop": stop}
        for i, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
    ]


def timing_headers(service: Service, ending: Ending) -> dict[str, str]:
    """TGI's `x-…` headers; times in whole milliseconds."""
    total_s = ending.queue_s + ending.inference_s
    return {
        "x-compute-type": service.generator.engine.name,
        "x-compute-time": f"{total_s:.6f}",
        "x-compute-characters": str(len(ending.generated_text)),
        "x-prompt-tokens": str(ending.input_length),
        "x-generated-tokens": str(ending.generated_tokens),
        "x-total-time": str(round(total_s * 1000)),
        "x-queue-time": str(round(ending.queue_s * 1000)),
        "x-inference-time": str(round(ending.inference_s * 1000)),
        "x-time-per-token": str(round(ending.inference_s * 1000 / max(ending.generated_tokens, 1))),
        "x-cached-prompt-tokens": str(ending.cached_tokens),
    }


def _timings(response: Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("x-")}


def _token(token: TokenText) -> JsonObject:
    return {"id": token.id, "text": token.text, "logprob": token.logprob, "special": token.special}


def _details(service: Service, work: Work, p: GenerateParameters, result: Sampled) -> JsonObject:
    tokens, ending = result
    prefill = work.job.prompt_ids if p.decoder_input_details else []
    details: JsonObject = {
        "finish_reason": ending.reason,
        "generated_tokens": ending.generated_tokens,
        "seed": _shown_seed(work),
        # The engine does not score the prompt, so its log-probabilities are null.
        "prefill": [
            {"id": i, "text": service.codec.token_text(i), "logprob": None} for i in prefill
        ],
        "tokens": [_token(token) for token in tokens],
    }
    if p.top_n_tokens:
        details["top_tokens"] = [[_token(candidate) for candidate in token.top] for token in tokens]
    return details


def _shown_seed(work: Work) -> int | None:
    return work.job.sampling.seed if work.job.sampling.do_sample else None


def _mean_logprob(tokens: list[TokenText]) -> float:
    return sum(token.logprob for token in tokens) / max(len(tokens), 1)
