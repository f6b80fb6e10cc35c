"""The embedded Hub proves itself before it is sent a token: when it is looked for, and on each new
connection afterwards.

A Hub that was idle has ended, and any program of this machine may listen at its port since. The
server of a folder knows the key in it, and answers a challenge for this folder and this port."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubkit.errors import HubUnreachableError

if TYPE_CHECKING:
    import httpcore2
    import httpx2

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

    @property
    def path(self) -> str:
        """Path and query of the question."""
        return f"/healthz?challenge={self._text}"

    def is_met_by(self, answer: Any) -> bool:
        """Whether `answer`, the JSON that came back, proves the server. Raises `OSError` where the
        key cannot be read.
        """
        message = "\0".join((self._text, str(self._root.resolve()), str(self._port)))
        key = (self._root / "key").read_bytes()
        proof = hmac.new(key, message.encode("utf-8", "replace"), hashlib.sha256).hexdigest()
        given = answer.get("proof") if isinstance(answer, dict) else None
        return hmac.compare_digest(str(given).encode(), proof.encode())


_roots: dict[str, set[Path]] = {}
"""Token of an embedded Hub → the folders whose servers it is for: a copied home has the same."""


def require(token: str, root: Path) -> None:
    """Let requests of this process with `token` go only over connections that the server of `root`
    has proven itself on (see `transport`).
    """
    _roots.setdefault(f"Bearer {token}", set()).add(root)


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
            if token not in _roots:
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
            try:
                _prove(stream, host, port, roots)
            except BaseException:
                stream.close()
                raise
            return stream

    made = httpx2.HTTPTransport()
    made.close()
    # httpx2 has no argument for how its connections are opened.
    made._pool = httpcore2.ConnectionPool(
        max_connections=100, max_keepalive_connections=20, network_backend=Backend()
    )
    return made


def _prove(stream: httpcore2.NetworkStream, host: str, port: int, roots: set[Path]) -> None:
    """Ask the challenge on a new connection.

    Raises:
        httpcore2.NetworkError: The connection breaks, or nothing comes.
        HubUnreachableError: What answers does not prove itself.
    """
    text = secrets.token_hex(16)
    challenges = [Challenge(root, port, text) for root in sorted(roots)]
    name = f"[{host}]" if ":" in host else host
    head = f"GET {challenges[0].path} HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n"
    stream.write(head.encode("ascii"), TIMEOUT_S)
    with suppress(OSError, ValueError):
        answer = json.loads(_body(stream))
        for challenge in challenges:
            with suppress(OSError):  # a home that is gone
                if challenge.is_met_by(answer):
                    return
    raise HubUnreachableError(
        f"the embedded Hub was at {host}:{port}, and another program answers there now; it was "
        "sent no token. Run the same command again: it starts the Hub where nothing listens"
    )


def _body(stream: httpcore2.NetworkStream) -> bytes:
    """The body of one answer, after which the connection stays open. Raises `ValueError`."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(stream, len(received))
    head, _, body = received.partition(b"\r\n\r\n")
    lines = [line.lower().replace(b" ", b"") for line in head.split(b"\r\n")]
    lengths = [line[15:] for line in lines if line.startswith(b"content-length:")]
    if not head.startswith(b"HTTP/1.1 200 ") or b"connection:close" in lines or len(lengths) != 1:
        raise ValueError("its answer is no proof")
    length = int(lengths[0])
    while len(body) < length:
        body += _more(stream, len(body))
    if len(body) != length:
        raise ValueError("it says more than it was asked")
    return body


def _more(stream: httpcore2.NetworkStream, so_far: int) -> bytes:
    piece = stream.read(4096, TIMEOUT_S)
    if not piece or so_far > _MAX_ANSWER_BYTES:
        raise ValueError("its answer breaks off or does not end")
    return piece
