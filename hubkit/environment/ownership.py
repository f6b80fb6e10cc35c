"""An environment's server proves whose it is before it is sent a token: by a key in its owner's
folder, as the embedded Hub does."""

from __future__ import annotations

import http.client
import os
import secrets
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from hubkit.errors import EndpointUnreachableError
from hubkit.hub.network import DIRECT
from hubkit.hub.places import home, make_private
from hubkit.hub.proof import KEY, Challenge, proof
from hubkit.loopback import host_of, in_url, is_loopback
from hubkit.untrusted import parse_json

_TIMEOUT_S = 10.0
_MOST_BYTES = 16_384


def _folder() -> Path:
    return home() / "env"


def answer(challenge: str, port: int) -> str | None:
    """What only a server of this user's can answer to `challenge` at `port`; None where its key can
    be neither read nor made.
    """
    with suppress(OSError):
        folder = _folder()
        make_private(folder)
        with suppress(FileExistsError):
            handle = os.open(folder / KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
        return proof(folder, challenge, port)
    return None


def require_own(url: str) -> str:
    """`url`, once the server there has proven that this user started it with ``hubkit env``. Ask it
    before a client sends a token there: another program may have taken the port since.

    Args:
        url: The environment's address; a password in it is not sent here.

    Returns:
        The same address.

    Raises:
        EndpointUnreachableError: Nothing answers there, or what answers is not this user's.
    """
    host, port = host_of(url), urlsplit(url).port or 80
    where = f"http://{in_url(host)}:{port}"
    reason = "it is not on this machine"
    if is_loopback(host):
        challenge = Challenge(_folder(), port)
        reason = "what answers there does not prove that you started it with `hubkit env`"
        try:
            with DIRECT.open(where + challenge.path("/health"), timeout=_TIMEOUT_S) as response:
                if challenge.is_met_by(parse_json(response.read(_MOST_BYTES))):
                    return url
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = f"no environment answers there ({getattr(error, 'reason', None) or error})"
    raise EndpointUnreachableError(f"{where} must not be sent a token: {reason}")
