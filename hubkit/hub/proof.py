"""The embedded Hub proves itself before it is sent a token: when it is looked for, and on each new
connection afterwards.

A Hub that was idle has ended, and any program of this machine may listen at its port since. The
server of a folder knows the key in it, and answers a challenge for this folder and this port."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hubkit.errors import HubUnreachableError
from hubkit.hub.places import relays
from hubkit.loopback import NAMES, host_of, in_url, is_among
from hubkit.settings import HUB_RELAYS
from hubkit.untrusted import parse_json

if TYPE_CHECKING:
    import aiohttp
    import httpx2

KEY = "key"
"""The file with what a server proves itself by, in its folder."""
TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 16_384


class Challenge:
    """A question that only the server of a folder can answer, at the port where it listens.

    Args:
        root: The Hub's folder.
        port: Where its server is said to be.
        text: What is asked; made up where it is not given.
    """

    def __init__(self, root: Path, port: int | None, text: str = "") -> None:
        self._root, self._port, self._text = root, port, text or secrets.token_hex(16)

    def path(self, route: str = "/healthz") -> str:
        """Path and query of the question."""
        return f"{route}?challenge={self._text}"

    def is_met_by(self, answer: Any) -> bool:
        """Whether `answer`, the JSON that came back, proves the server. Raises `OSError` where the
        key cannot be read.
        """
        proof_sent = answer.get("proof") if isinstance(answer, dict) else None
        expected = proof(self._root, self._text, self._port)
        return hmac.compare_digest(str(proof_sent).encode(), expected.encode())


def proof(root: Path, text: str, port: int | None) -> str:
    """What only the server of `root` can answer to `text` at `port`. Raises `OSError` where the key
    in that folder cannot be read.
    """
    message = "\0".join((text, str(root.resolve()), str(port)))
    key = (root / KEY).read_bytes()
    return hmac.new(key, message.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


_roots: dict[str, set[Path]] = {}
"""Token of an embedded Hub → the folders whose servers it is for: a copied home has the same."""


def require(token: str, root: Path) -> None:
    """Let requests of this process with `token` go only over connections that the server of `root`
    has proven itself on, and to its owner's reverse proxies.
    """
    _roots.setdefault(f"Bearer {token}", set()).add(root)


def is_needed(authorization: str, url: str) -> bool:
    """Whether a request with this header to `url` has to wait for a proof.

    Raises:
        HubUnreachableError: It holds the token of an embedded Hub, and leads elsewhere.
    """
    if authorization not in _roots or is_among(urlsplit(url).netloc, relays()):
        return False
    if urlsplit(url).scheme != "http" or host_of(url) not in NAMES:
        raise HubUnreachableError(
            f"{in_url(host_of(url))} was not sent the token of the embedded Hub, which is for "
            f"that Hub alone. Log in there with a token of its own (`hf auth login`, HF_TOKEN); "
            f"where it is a reverse proxy of yours before the embedded Hub, name it in {HUB_RELAYS}"
        )
    return True


def transport() -> httpx2.BaseTransport:
    """What carries requests to this machine: those with the token of an embedded Hub over
    connections that were proven first.
    """
    import httpx2

    class Transport(httpx2.BaseTransport):
        """Plain connections, and proven ones of each Hub."""

        def __init__(self) -> None:
            self._plain = httpx2.HTTPTransport()
            self._proven: dict[str, httpx2.HTTPTransport] = {}

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            token = request.headers.get("Authorization", "")
            if not is_needed(token, str(request.url)):
                return self._plain.handle_request(request)
            if token not in self._proven:
                self._proven[token] = _proven_transport(_roots[token])
            return self._proven[token].handle_request(request)

        def close(self) -> None:
            for inner in (self._plain, *self._proven.values()):
                inner.close()

    return Transport()


def _proven_transport(roots: set[Path]) -> httpx2.HTTPTransport:
    import httpcore2
    import httpx2

    class Backend(httpcore2.SyncBackend):
        """Opens connections that are handed out only once the server has proven itself."""

        def connect_tcp(self, host: str, port: int, *options: Any, **more: Any) -> Any:
            stream = super().connect_tcp(host, port, *options, **more)
            question = _Question(host, port, roots)
            try:
                stream.write(question.bytes, TIMEOUT_S)
                while not question.receive(stream.read(4096, TIMEOUT_S)):
                    pass
            except BaseException:
                stream.close()
                raise
            return stream

    transport = httpx2.HTTPTransport()
    transport.close()
    # httpx2 has no argument for how its connections are opened.
    transport._pool = httpcore2.ConnectionPool(
        max_connections=100, max_keepalive_connections=20, network_backend=Backend()
    )
    return transport


def connector(authorization: str, **options: Any) -> aiohttp.TCPConnector:
    """aiohttp's connections for requests with this header: with the token of an embedded Hub those
    that were proven first.

    Args:
        authorization: The header's value.
        options: Further ones of `aiohttp.TCPConnector`.
    """
    import aiohttp

    if authorization not in _roots:
        return aiohttp.TCPConnector(**options)
    roots = _roots[authorization]

    class Connector(aiohttp.TCPConnector):
        """Opens connections that are handed out only once the server has proven itself."""

        # aiohttp has no argument for how its connections are opened.
        async def _wrap_create_connection(self, *args: Any, **more: Any) -> Any:
            url = str(more["req"].url)
            is_asked = is_needed(authorization, url)
            connection, protocol = await super()._wrap_create_connection(*args, **more)
            if is_asked:
                parts = urlsplit(url)
                question = _Question(parts.hostname or "", parts.port or 80, roots)
                try:
                    await asyncio.wait_for(_answered(connection, question), TIMEOUT_S)
                except BaseException:
                    connection.close()
                    raise
                connection.set_protocol(protocol)
            return connection, protocol

    return Connector(**options)


async def _answered(connection: asyncio.Transport, question: _Question) -> None:
    """Ask the question on a new connection, and wait for the answer. Raises as `_Question`."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Answer(asyncio.Protocol):
        """Waits for the answer."""

        def data_received(self, data: bytes) -> None:
            try:
                is_whole = question.receive(data)
            except HubUnreachableError as error:
                if not done.done():
                    done.set_exception(error)
                return
            if is_whole and not done.done():
                done.set_result(None)

        def connection_lost(self, error: Exception | None) -> None:
            self.data_received(b"")

    connection.set_protocol(Answer())
    connection.write(question.bytes)
    await done


class _Question:
    """The challenge on a new connection, and its answer piece by piece.

    Args:
        host: Whom the connection leads to.
        port: At which port.
        roots: The folders, the server of one of which has to answer.

    Attributes:
        bytes: What is sent.
    """

    def __init__(self, host: str, port: int, roots: set[Path]) -> None:
        text = secrets.token_hex(16)
        self._where = f"{host}:{port}"
        self._challenges = [Challenge(root, port, text) for root in sorted(roots)]
        head = f"GET {self._challenges[0].path()} HTTP/1.1\r\nHost: {in_url(host)}:{port}\r\n\r\n"
        self.bytes = head.encode("ascii")
        self._received = b""

    def receive(self, piece: bytes) -> bool:
        """Take a piece, none of which comes where the connection ended; whether all is here, and
        proves the server.

        Raises:
            HubUnreachableError: What answers does not prove itself.
        """
        with suppress(OSError, ValueError):
            body = self._body(piece)
            if body is None:
                return False
            answer = parse_json(body)
            for challenge in self._challenges:
                with suppress(OSError):  # a home that is gone
                    if challenge.is_met_by(answer):
                        return True
        raise HubUnreachableError(
            f"the embedded Hub was at {self._where}, and another program answers there now; it was "
            f"sent no token. Run the same command again: it starts the Hub where nothing listens. "
            f"Where it is a reverse proxy of yours before that Hub, name it in {HUB_RELAYS}"
        )

    def _body(self, piece: bytes) -> bytes | None:
        """The body of the answer once it is whole, after which the connection stays open. Raises
        `ValueError`.
        """
        if not piece or len(self._received) > _MAX_ANSWER_BYTES:
            raise ValueError("its answer breaks off or does not end")
        self._received += piece
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        lines = [line.lower().replace(b" ", b"") for line in head.split(b"\r\n")]
        lengths = [line[15:] for line in lines if line.startswith(b"content-length:")]
        is_plain = head.startswith(b"HTTP/1.1 200 ") and b"connection:close" not in lines
        if not is_plain or len(lengths) != 1:
            raise ValueError("its answer is no proof")
        if len(body) > int(lengths[0]):
            raise ValueError("it says more than it was asked")
        return body if len(body) == int(lengths[0]) else None
