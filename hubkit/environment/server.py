"""The server of an environment: OpenEnv's protocol, on loopback, for as long as a block lasts.

Each WebSocket on ``/ws`` is one session with one conversation at a time. A client sends ``reset``,
``step``, ``state`` and ``close`` messages, and is answered with ``observation``, ``state`` and
``error``. ``GET /health``, ``/metadata`` and ``/schema`` describe the environment, and answer a
``challenge`` that proves whose it is (see `ownership`). A token comes as
a bearer token, or as the password of basic authentication: stock clients take no headers, but send
the password in their address."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubkit import extras
from hubkit.environment import ownership
from hubkit.environment.episode import FINISHES, AskerEnvironment, Episode
from hubkit.errors import EndpointError, EngineError, HubkitError, SchemaError
from hubkit.loopback import ADDRESS, host_of, is_loopback
from hubkit.untrusted import JsonObject

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection
    from starlette.websockets import WebSocket

_RESET_KEYS = ("seed", "episode_id", "opening", "intent")
_STEP_KEYS = ("message", "finish_reason", "metadata")
_TRY_AGAIN_LATER = 1013  # a WebSocket's close code
_FIRST_MESSAGE_S = 10.0
_TEXT = {"type": "string"}
SCHEMAS: JsonObject = {
    "action": {
        "type": "object",
        "properties": {
            "message": {**_TEXT, "description": "the chat model's answer"},
            "finish_reason": {**_TEXT, "enum": list(FINISHES)},
        },
        "required": ["message"],
        "additionalProperties": False,
    },
    "observation": {
        "type": "object",
        "properties": {
            "message": {**_TEXT, "description": "the user's turn; empty when done"},
            "messages": {"type": "array", "description": "the conversation so far"},
            "end_reason": {**_TEXT, "description": "why it is done; empty before"},
            "rewards": {"type": "object", "description": "each reward's value, when done"},
            "masked": {"type": "object", "description": "why a reward has no value, when done"},
        },
        "required": ["message", "messages", "end_reason"],
    },
    "state": {
        "type": "object",
        "properties": {"episode_id": _TEXT, "step_count": {"type": "integer"}},
    },
}

Open = Callable[[], AbstractAsyncContextManager[AskerEnvironment]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server allows.

    Attributes:
        sessions: Connections at once.
        idle_s: Seconds without a message after which a session is closed.
        message_bytes: Longest message.
    """

    sessions: int = 64
    idle_s: float = 1800.0
    message_bytes: int = 1 << 20


DEFAULT_LIMITS = Limits()


@dataclass(slots=True)
class _Sessions:
    limits: Limits
    count: int = 0
    environment: AskerEnvironment | None = None
    failure: BaseException | None = None


@contextmanager
def served(
    open_environment: Open,
    *,
    port: int = 0,
    token: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[str]:
    """Serve an environment on loopback until the block ends.

    Args:
        open_environment: Opens it on the server's event loop, and closes it at the end.
        port: 0 takes any free one.
        token: What clients must send; None requires nothing.
        limits: Bounds of sessions.

    Yields:
        The server's URL.

    Raises:
        EngineError: The port is taken, or the environment does not open.
        MissingDependencyError: The extra ``env`` is not installed.
    """
    extras.require("env", "the environment server")
    import uvicorn

    with _listening(port) as listener:
        sessions = _Sessions(limits)
        config = uvicorn.Config(
            _app(open_environment, sessions, token),
            lifespan="on",
            log_level="error",
            access_log=False,
            ws="websockets-sansio",
            ws_max_size=limits.message_bytes,
            timeout_graceful_shutdown=2,
        )
        ready = threading.Event()

        class Server(uvicorn.Server):
            """One that says when it listens."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                ready.set()

        server = Server(config)

        def run() -> None:
            try:
                asyncio.run(server.serve(sockets=[listener]))
            finally:
                ready.set()

        thread = threading.Thread(target=run, name="hubkit-environment", daemon=True)
        thread.start()
        try:
            ready.wait()
            if not server.started:
                raise sessions.failure or EngineError("the environment's server did not start")
            yield f"http://{ADDRESS}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it: else a body would wait until the client confirms the headers.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((ADDRESS, port))
        except OSError as error:
            raise EngineError(
                f"{ADDRESS}:{port} cannot be bound: {error.strerror}; take another --port, or 0"
            ) from None
        yield listener


def _app(open_environment: Open, sessions: _Sessions, token: str | None) -> Starlette:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route, WebSocketRoute

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            async with open_environment() as environment:
                sessions.environment = environment
                yield
        except BaseException as error:
            sessions.failure = error
            raise

    async def describe(request: Request) -> Response:
        if refusal := _refusal(request, None if request.url.path == "/health" else token):
            return JSONResponse({"error": refusal[1]}, status_code=refusal[0])
        described = _description(request.url.path, sessions)
        if challenge := request.query_params.get("challenge", "")[:200]:
            described["proof"] = ownership.answer(challenge, request.scope["server"][1])
        return JSONResponse(described)

    async def session(websocket: WebSocket) -> None:
        if refusal := _refusal(websocket, token):
            await websocket.send_denial_response(
                JSONResponse({"error": refusal[1]}, status_code=refusal[0])
            )
            return
        await websocket.accept()
        await _session(websocket, sessions)

    paths = ("/health", "/metadata", "/schema")
    return Starlette(
        routes=[*(Route(path, describe) for path in paths), WebSocketRoute("/ws", session)],
        lifespan=lifespan,
    )


def _description(path: str, sessions: _Sessions) -> JsonObject:
    environment = sessions.environment
    assert environment is not None
    if path == "/health":
        return {"status": "healthy"}
    if path == "/schema":
        return SCHEMAS
    from hubkit import __version__

    return {
        "name": environment.name,
        "description": f"{environment.name} plays the user; the model under training answers",
        "version": __version__,
        "openings": len(environment.openings),
        "most_user_turns": environment.block.turns.value,
        "sessions": sessions.count,
        "most_sessions": sessions.limits.sessions,
        "ends": dict(environment.counts),
    }


def _refusal(request: HTTPConnection, token: str | None) -> tuple[int, str] | None:
    """The status and sentence for a request that is not answered: one that a web page elsewhere
    made a browser send, or one without the token.
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    for name, url in (("Host", f"//{host}"), ("Origin", origin)):
        if url is not None and not is_loopback(host_of(url)):
            return 403, f"{name} is not this server; use {ADDRESS}"
    if token is None:
        return None
    credential = _credential(request.headers.get("authorization", ""))
    if hmac.compare_digest(credential.encode(), token.encode()):
        return None
    return 401, "this environment requires a token"


def _credential(header: str) -> str:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
    return ""


async def _session(websocket: WebSocket, sessions: _Sessions) -> None:
    from starlette.websockets import WebSocketDisconnect

    limits, environment = sessions.limits, sessions.environment
    assert environment is not None
    if sessions.count >= limits.sessions:
        await _turn_away(websocket, limits)
        return
    sessions.count += 1
    episode = Episode(environment)
    try:
        while True:
            try:
                async with asyncio.timeout(limits.idle_s):
                    text = await websocket.receive_text()
            except TimeoutError:
                await _send_error(
                    websocket, "SESSION_ERROR", f"no message for {limits.idle_s:g} s; session ended"
                )
                break
            if not await _answered(websocket, episode, text):
                break
        await websocket.close()
    except WebSocketDisconnect:
        pass
    finally:
        sessions.count -= 1


async def _turn_away(websocket: WebSocket, limits: Limits) -> None:
    """Answer the first message with the reason: stock clients read only answers."""
    from starlette.websockets import WebSocketDisconnect

    with contextlib.suppress(WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            await websocket.receive_text()
        sentence = f"all {limits.sessions} sessions are taken; close one, or raise --sessions"
        await _send_error(websocket, "CAPACITY_REACHED", sentence)
        await websocket.close(_TRY_AGAIN_LATER)


async def _answered(websocket: WebSocket, episode: Episode, text: str) -> bool:
    """Answer one message; whether the session continues."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        await _send_error(websocket, "INVALID_JSON", f"Invalid JSON: {error}")
        return True
    kind = message.get("type") if isinstance(message, dict) else None
    try:
        if kind == "close":
            return False
        if kind == "state":
            answer = {"type": "state", "data": episode.state()}
        elif kind == "reset":
            values = _values(message.get("data", {}), _RESET_KEYS, strict=False)
            answer = {"type": "observation", "data": await episode.reset(**values)}
        elif kind == "step":
            values = _values(message.get("data"), _STEP_KEYS, strict=True)
            values.pop("metadata", None)
            if "message" not in values:
                raise SchemaError('a step needs {"message": TEXT}')
            answer = {"type": "observation", "data": await episode.step(**values)}
        else:
            await _send_error(websocket, "UNKNOWN_TYPE", f"Unknown message type: {str(kind)[:80]}")
            return True
    except SchemaError as error:
        is_order = error.reason in ("no_reset", "ended")
        code = "EXECUTION_ERROR" if is_order else "VALIDATION_ERROR"
        await _send_error(websocket, code, str(error))
    except EndpointError as error:
        await _send_error(websocket, "EXECUTION_ERROR", f"the asker cannot be asked: {error}")
    except HubkitError as error:
        await _send_error(websocket, "EXECUTION_ERROR", str(error))
    else:
        await websocket.send_text(json.dumps(answer))
    return True


def _values(data: Any, keys: tuple[str, ...], *, strict: bool) -> dict[str, Any]:
    """Those of `keys` that `data` has. Trainers send a reset every column of their row, so others
    are ignored there.
    """
    if not isinstance(data, dict):
        raise SchemaError("data must be an object")
    if strict and (unknown_keys := data.keys() - set(keys)):
        raise SchemaError(f"a step has no {sorted(map(str, unknown_keys))[0][:80]!r}, only message")
    return {key: data[key] for key in keys if key in data}


async def _send_error(websocket: WebSocket, code: str, message: str) -> None:
    data = {"message": message, "code": code}
    await websocket.send_text(json.dumps({"type": "error", "data": data}))
