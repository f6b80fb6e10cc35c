"""The ASGI application: routes, authorisation, error bodies."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from hubkit.local_engine import chat, completions, tgi_routes
from hubkit.local_engine.http_errors import RequestError
from hubkit.local_engine.service import Front, error_response
from hubkit.local_engine.validation import MAX_BEST_OF, MAX_STOP_SEQUENCES

_log = logging.getLogger("hubkit.local_engine")
_OPEN_PATHS = {"/health"}

Handler = Callable[[Front, Request], Awaitable[Response]]


def build_app(front: Front, *, token: str | None = None) -> Starlette:
    """All of TGI's routes. With `token`, every route but /health wants `Authorization: Bearer
    <token>`.
    """

    def route(path: str, handler: Handler, method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                _authorise(request, token)
                return await handler(front, request)
            except RequestError as error:
                front.metrics.failed(error.error_type)
                return error_response(error)

        return Route(path, endpoint, methods=[method])

    posts: dict[str, Handler] = {
        "/": tgi_routes.compat_generate,
        "/generate": tgi_routes.generate,
        "/generate_stream": tgi_routes.generate_stream,
        "/tokenize": tgi_routes.tokenize,
        "/chat_tokenize": chat.chat_tokenize,
        "/v1/chat/completions": chat.chat_completions,
        "/v1/completions": completions.completions,
        "/invocations": completions.invocations,
    }
    gets: dict[str, Handler] = {
        "/health": _health,
        "/ping": _health,
        "/info": _info,
        "/metrics": _metrics,
        "/v1/models": _models,
    }
    routes = [route(path, handler, "POST") for path, handler in posts.items()]
    routes += [route(path, handler, "GET") for path, handler in gets.items()]
    return Starlette(
        routes=routes, exception_handlers={HTTPException: _http_error, Exception: _server_error}
    )


def _authorise(request: Request, token: str | None) -> None:
    if token is None or request.url.path in _OPEN_PATHS:
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), token.encode()):
        raise RequestError(401, "unauthorized", "this endpoint wants a bearer token")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        {"error": f"{request.method} {request.url.path}: {error.detail}", "error_type": "http"},
        status_code=error.status_code,
        headers=error.headers,
    )


async def _server_error(request: Request, error: Exception) -> Response:
    _log.exception("unexpected error in %s", request.url.path, exc_info=error)
    return JSONResponse(
        {"error": "Incomplete generation", "error_type": "incomplete_generation"}, status_code=500
    )


async def _health(front: Front, request: Request) -> Response:
    return Response()


async def _info(front: Front, request: Request) -> Response:
    served, engine = front.served, front.generator.engine
    info: dict[str, Any] = {
        "model_id": served.model_id,
        "model_sha": served.revision,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": front.generator.max_concurrent,
        "max_best_of": MAX_BEST_OF,
        "max_stop_sequences": MAX_STOP_SEQUENCES,
        "max_input_tokens": engine.context - 1,
        "max_total_tokens": engine.context,
        "validation_workers": 1,
        "max_client_batch_size": 4,
        "router": "hubkit.local_engine",
        "version": served.version,
        "engine": engine.name,
        "max_batch_size": engine.parallel,
        "adapters": dict(served.adapters),
    }
    return JSONResponse(info)


async def _metrics(front: Front, request: Request) -> Response:
    return PlainTextResponse(front.metrics.render(front.generator.engine))


async def _models(front: Front, request: Request) -> Response:
    """TGI's fields of one model, and OpenAI's list of all of them, in one object."""
    now = int(time.time())
    names = [front.served.model_id, *front.served.adapters]
    models = [
        {"id": name, "object": "model", "created": now, "owned_by": front.served.model_id}
        for name in names
    ]
    return JSONResponse({**models[0], "object": "list", "data": models})
