"""The ASGI application: routes, authorisation, error bodies."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from ipaddress import ip_address

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from hubkit.local_engine import chat, completions, tgi_routes
from hubkit.local_engine.http_errors import RequestError
from hubkit.local_engine.service import Service, error_response
from hubkit.local_engine.validation import MAX_BEST_OF, MAX_STOP_SEQUENCES
from hubkit.loopback import NAMES, host_of
from hubkit.untrusted import JsonObject

_log = logging.getLogger("hubkit.local_engine")
_OPEN_PATHS = {"/health"}

Handler = Callable[[Service, Request], Awaitable[Response]]


def build_app(
    service: Service, *, token: str | None = None, hosts: Collection[str] = ()
) -> Starlette:
    """Build the application with all of TGI's routes.

    Args:
        service: What answers.
        token: The bearer token that every route but /health requires; None requires none.
        hosts: Host names, besides IP addresses and localhost, under which the server is addressed.
    """

    def route(path: str, handler: Handler, method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                _check_source(request, hosts)
                _authorise(request, token)
                return await handler(service, request)
            except RequestError as error:
                service.metrics.failed(error.error_type)
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


def _check_source(request: Request, hosts: Collection[str]) -> None:
    """Refuse what a web page elsewhere makes a browser send: a name that resolves to this machine
    (DNS rebinding) as Host, or another site as Origin. Raises `RequestError` (403).
    """
    origin = request.headers.get("origin")
    for header, value in (("Host", f"//{request.headers.get('host', '')}"), ("Origin", origin)):
        if value is not None and not _is_local(value, hosts):
            raise RequestError(
                403,
                "forbidden",
                f"{header} {value.removeprefix('//')[:200]!r} is not this server; use its IP "
                f"address or localhost",
            )


def _is_local(url: str, hosts: Collection[str]) -> bool:
    host = host_of(url)
    if url.startswith("//"):  # an address cannot be rebound
        with suppress(ValueError):
            ip_address(host)
            return True
    return host in (*NAMES, *hosts)


def _authorise(request: Request, token: str | None) -> None:
    if token is None or request.url.path in _OPEN_PATHS:
        return
    credential = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(credential.encode(), token.encode()):
        raise RequestError(401, "unauthorized", "this endpoint requires a bearer token")


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


async def _health(service: Service, request: Request) -> Response:
    return Response()


async def _info(service: Service, request: Request) -> Response:
    model, engine = service.model, service.generator.engine
    info: JsonObject = {
        "model_id": model.model_id,
        "model_sha": model.revision,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": service.generator.max_concurrent,
        "max_best_of": MAX_BEST_OF,
        "max_stop_sequences": MAX_STOP_SEQUENCES,
        "max_input_tokens": engine.context - 1,
        "max_total_tokens": engine.context,
        "validation_workers": 1,
        "max_client_batch_size": 4,
        "router": "hubkit.local_engine",
        "version": model.version,
        "engine": engine.name,
        "max_batch_size": engine.parallel,
        "adapters": dict(model.adapters),
    }
    return JSONResponse(info)


async def _metrics(service: Service, request: Request) -> Response:
    return PlainTextResponse(service.metrics.render(service.generator.engine))


async def _models(service: Service, request: Request) -> Response:
    """TGI's fields of one model, and OpenAI's list of all of them, in one object."""
    now = int(time.time())
    names = [service.model.model_id, *service.model.adapters]
    models = [
        {"id": name, "object": "model", "created": now, "owned_by": service.model.model_id}
        for name in names
    ]
    return JSONResponse({**models[0], "object": "list", "data": models})
